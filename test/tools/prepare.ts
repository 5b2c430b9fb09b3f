import { prepareFerret, prepareKafka } from "@curfew/deploy/dev/servers.ts";
import { builtTools } from "./tools.ts";

/** Fetches and builds what the live tests run, which is mostly waiting for downloads: CI begins it beside what needs none of it. */
const say = (line: string) => process.stdout.write(`${line}\n`);
await prepareKafka(say);
await prepareFerret(say);
for (const module of ["verify", "litewitness", "versitygw"] as const) await builtTools(module);
say("the servers and tools of the live tests are there");
