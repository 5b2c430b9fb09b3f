import { readFileSync } from "node:fs";
import { resolve } from "node:path";
import { parseArgs } from "node:util";
import { parsePaging } from "@curfew/breach-notifier/paging.ts";
import { KeyringError } from "@curfew/keyring/key-files.ts";
import { ConfigError } from "@curfew/runtime/config.ts";
import { DirectoryInUse, NotPrivate } from "@curfew/runtime/exclusive.ts";
import { openLog } from "@curfew/runtime/log.ts";
import { onShutdown, type ShutdownStep } from "@curfew/runtime/shutdown.ts";
import { dataDirectoryProblem } from "../embedded/options.ts";
import { configFileOf } from "../embedded/suite.ts";
import { readSuiteConfig } from "../embedded/suite-config.ts";
import { firstCommands } from "../installation.ts";
import { openLiveSuite } from "./live-suite.ts";
import { ferretAvailable, kafkaAvailable } from "./servers.ts";

/** `npm run live`: the services as processes of their own, on a real Kafka broker and a MongoDB-protocol database, without containers. */
const graceMs = 30_000;

const usage = `npm run live -- [--data DIR] [--config FILE]

  --data DIR     data directory (default .curfew-live)
  --config FILE  curfew.yaml (default DIR/curfew.yaml, written at the first start)
`;

const refuse = (problems: readonly string[]): never => {
  process.stderr.write(`the live suite cannot start:\n${problems.map((p) => `  ${p}\n`).join("")}`);
  process.exit(2);
};

/** Options, configuration and what this machine lacks, with every mistake at once. */
const readSettings = () => {
  const problems = [kafkaAvailable(), ferretAvailable()].flatMap((found) => (found.ok ? [] : [found.why]));
  let values: { readonly data?: string; readonly config?: string; readonly help?: boolean } = {};
  try {
    const options = { data: { type: "string" }, config: { type: "string" }, help: { type: "boolean" } } as const;
    values = parseArgs({ options }).values;
  } catch (error) {
    problems.push(`${(error as Error).message}\n${usage}`);
  }
  if (values.help) {
    process.stdout.write(usage);
    process.exit(0);
  }
  const dataDir = resolve(values.data ?? ".curfew-live");
  const unusable = dataDirectoryProblem(dataDir);
  if (unusable) problems.push(unusable);
  // A sample is not written for a start that is refused.
  if (problems.length > 0 && values.config === undefined) return refuse(problems);
  const sample = () => readFileSync(new URL("../embedded/curfew.yaml", import.meta.url), "utf8");
  try {
    const configFile = values.config === undefined ? configFileOf(dataDir, sample) : resolve(values.config);
    const config = readSuiteConfig(configFile, parsePaging);
    return problems.length > 0 ? refuse(problems) : { dataDir, configFile, config };
  } catch (error) {
    if (error instanceof ConfigError) return refuse([...problems, ...error.problems]);
    throw error;
  }
};

const main = async () => {
  const { dataDir, configFile, config } = readSettings();
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
    say(`\nConfiguration   ${configFile}\nFor scripts     ${dataDir}/endpoints.json\n`);
    say("Try next: a token that leaks into this folder, ends, and is a case");
    for (const command of firstCommands(dataDir)) say(`  ${command}`);
    say("or, on servers and services of its own, which it starts and removes: npm run demo -- --live\n");
    const paged = parsePaging(config.sections.paging).targets.length > 0;
    if (!paged) say(`NOBODY IS BEING PAGED: no target stands under "paging" in ${configFile}.\n`);
    say("Ctrl-C stops everything.");
    say("ready");
  } catch (error) {
    if ([DirectoryInUse, NotPrivate, KeyringError].some((kind) => error instanceof kind))
      refuse([(error as Error).message]);
    log.error({ err: error }, "cannot go on");
    process.exit(1);
  }
};

await main();
