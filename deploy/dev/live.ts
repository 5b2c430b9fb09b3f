import { readFileSync } from "node:fs";
import { resolve } from "node:path";
import { parseArgs } from "node:util";
import { parsePaging } from "@curfew/breach-notifier/paging.ts";
import { ConfigError } from "@curfew/runtime/config.ts";
import { DirectoryInUse, NotPrivate } from "@curfew/runtime/exclusive.ts";
import { openLog } from "@curfew/runtime/log.ts";
import { onShutdown, type ShutdownStep } from "@curfew/runtime/shutdown.ts";
import { dataDirectoryProblem } from "../embedded/options.ts";
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

/** Options, configuration and what this machine lacks, with every mistake at once. */
const readSettings = () => {
  const problems = [kafkaAvailable(), ferretAvailable()].flatMap((found) => (found.ok ? [] : [found.why]));
  let values: { readonly data?: string; readonly config?: string } = {};
  try {
    values = parseArgs({ options: { data: { type: "string" }, config: { type: "string" } } }).values;
  } catch (error) {
    problems.push(`${(error as Error).message}\n  npm run live -- [--data DIR] [--config FILE]`);
  }
  const dataDir = resolve(values.data ?? ".curfew-live");
  const unusable = dataDirectoryProblem(dataDir);
  if (unusable) problems.push(unusable);
  // A sample is not written for a start that is refused.
  if (problems.length > 0 && values.config === undefined) return refuse(problems);
  const sample = () => readFileSync(new URL("../embedded/curfew.yaml", import.meta.url), "utf8");
  try {
    const file = values.config === undefined ? configFileOf(dataDir, sample) : resolve(values.config);
    const config = readSuiteConfig(file, parsePaging);
    return problems.length > 0 ? refuse(problems) : { dataDir, config };
  } catch (error) {
    if (error instanceof ConfigError) return refuse([...problems, ...error.problems]);
    throw error;
  }
};

const main = async () => {
  const { dataDir, config } = readSettings();
  const log = openLog({ service: "live", level: "warn" });
  const steps: ShutdownStep[] = [];
  onShutdown(steps, { graceMs, log });
  try {
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
    if (error instanceof DirectoryInUse || error instanceof NotPrivate) refuse([error.message]);
    log.error({ err: error }, "cannot go on");
    process.exit(1);
  }
};

await main();
