import { prepareFerret, prepareKafka } from "@curfew/deploy/dev/servers.ts";
import { builtTools } from "./tools.ts";

/** Fetches and builds what the live tests run, which is mostly waiting for downloads: CI begins it beside what needs none of it. */
const say = (line: string) => process.stdout.write(`${line}\n`);
const steps = [
  () => prepareKafka(say),
  () => prepareFerret(say),
  () => builtTools("verify"),
  () => builtTools("litewitness"),
  () => builtTools("versitygw"),
];
// What fails here is tried again, and told, by the test that needs it.
for (const step of steps) await step().catch((error: Error) => say(`not prepared: ${error.message}`));
say("the servers and tools of the live tests were prepared");
