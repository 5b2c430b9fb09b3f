import { readFileSync } from "node:fs";
import { join } from "node:path";
import { LedgerBroken } from "@curfew/auditor/domain.ts";
import { parsePaging } from "@curfew/breach-notifier/paging.ts";
import { StoreBehind } from "@curfew/event-log/own-topic.ts";
import { KeyringError } from "@curfew/keyring/key-files.ts";
import { damagedKeys } from "@curfew/keyring/stored-key.ts";
import { yearOf } from "@curfew/ledger/shard.ts";
import { AddressUnavailable } from "@curfew/rpc/server.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import { ConfigError } from "@curfew/runtime/config.ts";
import { DirectoryInUse, NotPrivate } from "@curfew/runtime/exclusive.ts";
import { openLog } from "@curfew/runtime/log.ts";
import { onShutdown, type ShutdownStep } from "@curfew/runtime/shutdown.ts";
import { firstCommands } from "../installation.ts";
import { dataDirectoryProblem, readOptions, usage } from "./options.ts";
import { configFileOf, DatabaseUnusable, openSuite, type Suite } from "./suite.ts";
import { readSuiteConfig } from "./suite-config.ts";

/** Ctrl-C stops it within these. */
const graceMs = 5_000;

const refuse = (problems: readonly string[]): never => {
  process.stderr.write(`curfew cannot start:\n${problems.map((p) => `  ${p}\n`).join("")}`);
  process.exit(2);
};

/** Options and configuration, with every mistake in both at once. */
const readSettings = () => {
  const { options, problems } = readOptions(process.argv.slice(2), process.env);
  if (options.help) {
    process.stdout.write(usage);
    process.exit(0);
  }
  const unusable = dataDirectoryProblem(options.dataDir);
  if (unusable) problems.push(unusable);
  // Which is where it would stand.
  if (unusable && !options.configFile) return refuse(problems);
  const keysDir = options.keysDir ?? join(options.dataDir, "keys");
  for (const damage of damagedKeys(keysDir, /\.key$/))
    problems.push(`${keysDir}: ${damage}: restore it from the backup of the keys, no other can take its place`);
  const sample = () => readFileSync(new URL("./curfew.yaml", import.meta.url), "utf8");
  try {
    const configFile = options.configFile ?? configFileOf(options.dataDir, sample);
    const config = readSuiteConfig(configFile, parsePaging);
    return problems.length > 0 ? refuse(problems) : { options, configFile, config };
  } catch (error) {
    if (error instanceof ConfigError) return refuse([...problems, ...error.problems]);
    throw error;
  }
};

const greet = (suite: Suite, dataDir: string, configFile: string, pagedTargets: number) => {
  const { services, ca, identities, ledger } = suite.endpoints;
  const year = yearOf(systemClock.now());
  const lines = [
    "",
    "Curfew is running, every service in this one process:",
    ...Object.entries(services).map(([name, address]) => `  ${name.padEnd(16)} ${address}   gRPC, mutual TLS`),
    `  ${"ledger".padEnd(16)} ${ledger}   HTTP, read-only: a tlog-tiles log for each year, like ${ledger}${year}/ (also in ${dataDir}/ledger)`,
    "",
    `Configuration   ${configFile}`,
    `Certificates    ${ca} (authority)`,
    ...Object.keys(identities)
      .filter((path) => !path.startsWith("service/"))
      .map((path) => `                ${dataDir}/identity/${path}`),
    `For scripts     ${dataDir}/endpoints.json`,
    "",
    "Try next: a token that leaks into this folder, ends, and is a case",
    ...firstCommands(dataDir).map((command) => `  ${command}`),
    "or, on a suite of its own: npm run demo",
    "",
    ...(pagedTargets === 0 ? [`NOBODY IS BEING PAGED: no target stands under "paging" in ${configFile}.`, ""] : []),
    "Ctrl-C stops it.",
  ];
  process.stdout.write(`${lines.join("\n")}\n`);
};

const brokenLedger = (
  error: LedgerBroken,
  dataDir: string,
) => `curfew stops, nothing may be signed on top of this: ${error.message}
  If the auditor's store was lost or put back: npx curfew auditor rebuild --help (of ${dataDir})
  If not: somebody or something has changed what was sealed. Keep ${dataDir} as it is, and compare: npx curfew verify --help
`;

const main = async () => {
  const { options, configFile, config } = readSettings();
  const log = openLog({ service: "curfew", level: options.logLevel });
  const steps: ShutdownStep[] = [];
  onShutdown(steps, { graceMs, log });
  try {
    const { dataDir, keysDir, port, reflection } = options;
    const suite = await openSuite({ dataDir, ...(keysDir && { keysDir }), config, port, reflection, log });
    steps.push({ name: "suite", close: () => suite.close() });
    greet(suite, dataDir, configFile, parsePaging(config.sections.paging).targets.length);
    process.stdout.write(`ready in ${Math.round(performance.now())} ms\n`);
    await suite.failed;
  } catch (error) {
    if (error instanceof ConfigError) refuse(error.problems);
    if (error instanceof AddressUnavailable)
      refuse([`${error.message}: end what listens there, or choose other ports with --port (0: free ones)`]);
    if ([DirectoryInUse, NotPrivate, KeyringError, DatabaseUnusable].some((kind) => error instanceof kind))
      refuse([(error as Error).message]);
    if (error instanceof LedgerBroken) process.stderr.write(brokenLedger(error, options.dataDir));
    else if (error instanceof StoreBehind) process.stderr.write(`curfew does not start: ${error.message}\n`);
    else log.error({ err: error }, "cannot go on");
    process.exit(1);
  }
};

await main();
