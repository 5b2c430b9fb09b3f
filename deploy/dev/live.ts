import { readFileSync } from "node:fs";
import { resolve } from "node:path";
import { parseArgs } from "node:util";
import { parsePaging } from "@curfew/breach-notifier/paging.ts";
import { ConfigError } from "@curfew/runtime/config.ts";
import { DirectoryInUse, NotPrivate } from "@curfew/runtime/exclusive.ts";
import { openLog } from "@curfew/runtime/log.ts";
import { onShutdown, type ShutdownStep } from "@curfew/runtime/shutdown.ts";
import { configFileOf } from "../embedded/suite.ts";
import { readSuiteConfig } from "../embedded/suite-config.ts";
import { openLiveSuite } from "./live-suite.ts";
import { ferretAvailable, kafkaAvailable } from "./servers.ts";

/** `npm run live`: the services as processes of their own, on a real Kafka broker and a MongoDB-protocol database, without containers. */
const graceMs = 30_000;

const refuse = (problems: readonly string[]): never => {
  process.stderr.write(`the live suite cannot start:\n${problems.map((p) => `  ${p}\n`).join("")}`);
  process.exit(2);
};

const main = async () => {
  const { values } = parseArgs({
    options: { data: { type: "string", default: ".curfew-live" }, config: { type: "string" } },
  });
  const dataDir = resolve(values.data);
  const lacking = [kafkaAvailable(), ferretAvailable()].flatMap((found) => (found.ok ? [] : [found.why]));
  if (lacking.length > 0) refuse(lacking);
  const log = openLog({ service: "live", level: "warn" });
  const steps: ShutdownStep[] = [];
  onShutdown(steps, { graceMs, log });
  try {
    const sample = () => readFileSync(new URL("../embedded/curfew.yaml", import.meta.url), "utf8");
    const config = readSuiteConfig(values.config ? resolve(values.config) : configFileOf(dataDir, sample), parsePaging);
    const say = (line: string) => process.stdout.write(`${line}\n`);
    const suite = await openLiveSuite({ dataDir, config, log, say });
    steps.push({ name: "suite", close: () => suite.close() });
    say(`\nKafka ${suite.kafka.brokers.join(",")} (mutual TLS)   MongoDB protocol ${suite.ferret.url}`);
    for (const each of suite.services.values())
      say(`  ${each.name.padEnd(16)} ${each.address}   pid ${each.pid}   ${each.logFile}`);
    say(
      `\nFor scripts     ${dataDir}/endpoints.json\nTry next        npm run demo -- --live\nCtrl-C stops everything.`,
    );
    say("ready");
  } catch (error) {
    if (error instanceof ConfigError) refuse(error.problems);
    if (error instanceof DirectoryInUse || error instanceof NotPrivate) refuse([error.message]);
    log.error({ err: error }, "cannot go on");
    process.exit(1);
  }
};

await main();
