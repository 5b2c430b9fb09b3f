import { readFileSync } from "node:fs";
import { resolve } from "node:path";
import { parseArgs } from "node:util";
import { parsePaging } from "@curfew/breach-notifier/paging.ts";
import { ConfigError } from "@curfew/runtime/config.ts";
import { DirectoryInUse, NotPrivate } from "@curfew/runtime/exclusive.ts";
import { openLog } from "@curfew/runtime/log.ts";
import { onShutdown, type ShutdownStep } from "@curfew/runtime/shutdown.ts";
import { configFileOf, openSuite, type Suite } from "./suite.ts";
import { readSuiteConfig } from "./suite-config.ts";

const usage = `npm start -- [--data DIR] [--port N] [--config FILE] [--keys DIR] [--reflection]

  --data DIR     data directory (CURFEW_DATA_DIR; default .curfew)
  --port N       first of five ports on loopback (CURFEW_PORT; default 7600; 0: free ones)
  --config FILE  curfew.yaml (CURFEW_CONFIG; default DIR/curfew.yaml, written at the first start)
  --keys DIR     keys (CURFEW_KEYS_DIR; default DIR/keys); never part of a backup of the data
  --reflection   serve gRPC reflection, for grpcurl and buf curl
`;
const graceMs = 5_000;
const lastFirstPort = 65_531;

const refuse = (problems: readonly string[]): never => {
  process.stderr.write(`curfew cannot start:\n${problems.map((p) => `  ${p}\n`).join("")}`);
  process.exit(2);
};

const readOptions = () => {
  const { env } = process;
  try {
    const { values } = parseArgs({
      options: {
        data: { type: "string", default: env.CURFEW_DATA_DIR ?? ".curfew" },
        port: { type: "string", default: env.CURFEW_PORT ?? "7600" },
        config: { type: "string", ...(env.CURFEW_CONFIG !== undefined && { default: env.CURFEW_CONFIG }) },
        keys: { type: "string", ...(env.CURFEW_KEYS_DIR !== undefined && { default: env.CURFEW_KEYS_DIR }) },
        reflection: { type: "boolean", default: false },
        help: { type: "boolean", default: false },
      },
    });
    if (values.help) {
      process.stdout.write(usage);
      process.exit(0);
    }
    const port = /^\d{1,5}$/.test(values.port) ? Number(values.port) : -1;
    if (port < 0 || port > lastFirstPort) refuse([`--port must be 0, or 1 to ${lastFirstPort}`]);
    return { ...values, port, data: resolve(values.data) };
  } catch (error) {
    return refuse([(error as Error).message, ...usage.split("\n")]);
  }
};

const greet = (suite: Suite, dataDir: string, configFile: string, pagedTargets: number) => {
  const { services, ca, identities } = suite.endpoints;
  const lines = [
    "",
    "Curfew is running, every service in this one process:",
    ...Object.entries(services).map(([name, address]) => `  ${name.padEnd(16)} ${address}   gRPC, mutual TLS`),
    "",
    `Configuration   ${configFile}`,
    `Certificates    ${ca} (authority)`,
    ...Object.keys(identities)
      .filter((path) => !path.startsWith("service/"))
      .map((path) => `                ${dataDir}/identity/${path}`),
    `For scripts     ${dataDir}/endpoints.json`,
    "",
    "Try next:",
    "  npm run demo                          watch a leaked token die and become an Article 33 case",
    `  npx curfew --data ${dataDir} --as person/ada policy publish default deploy/embedded/policy.yaml`,
    `  npx curfew --data ${dataDir} identity create workload/billing`,
    `  npx curfew --data ${dataDir} --as workload/billing token create --scope invoices:read …`,
    "",
    ...(pagedTargets === 0 ? [`NOBODY IS BEING PAGED: no target stands under "paging" in ${configFile}.`, ""] : []),
    "Ctrl-C stops it.",
  ];
  process.stdout.write(`${lines.join("\n")}\n`);
};

const main = async () => {
  const options = readOptions();
  const log = openLog({ service: "curfew", level: process.env.CURFEW_LOG_LEVEL === "info" ? "info" : "warn" });
  const steps: ShutdownStep[] = [];
  onShutdown(steps, { graceMs, log });
  try {
    const sample = () => readFileSync(new URL("./curfew.yaml", import.meta.url), "utf8");
    const configFile = options.config ? resolve(options.config) : configFileOf(options.data, sample);
    const config = readSuiteConfig(configFile, parsePaging);
    const suite = await openSuite({
      dataDir: options.data,
      ...(options.keys !== undefined && { keysDir: resolve(options.keys) }),
      config,
      port: options.port,
      reflection: options.reflection,
      log,
    });
    steps.push({ name: "suite", close: () => suite.close() });
    greet(suite, options.data, configFile, parsePaging(config.sections.paging).targets.length);
    process.stdout.write(`ready in ${Math.round(performance.now())} ms\n`);
    await suite.failed;
  } catch (error) {
    if (error instanceof ConfigError) refuse(error.problems);
    if (error instanceof DirectoryInUse || error instanceof NotPrivate) refuse([error.message]);
    if ((error as NodeJS.ErrnoException).code === "EADDRINUSE")
      refuse([`a port is taken: ${(error as Error).message}`]);
    log.error({ err: error }, "cannot go on");
    process.exit(1);
  }
};

await main();
