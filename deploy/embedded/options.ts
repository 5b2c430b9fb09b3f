import { accessSync, constants, mkdirSync, statSync } from "node:fs";
import { resolve } from "node:path";
import { parseArgs } from "node:util";
import { serviceNames } from "../installation.ts";

/** Command line and environment of `npm start`; the command line wins. */
export interface Options {
  readonly dataDir: string;
  /** First of six; 0: free ones. */
  readonly port: number;
  readonly configFile?: string;
  readonly keysDir?: string;
  readonly reflection: boolean;
  readonly logLevel: "info" | "warn";
  readonly help: boolean;
}

export const usage = `npm start -- [--data DIR] [--port N] [--config FILE] [--keys DIR] [--reflection]

  --data DIR     data directory (CURFEW_DATA_DIR; default .curfew)
  --port N       first of six ports on loopback (CURFEW_PORT; default 7600; 0: free ones)
  --config FILE  curfew.yaml (CURFEW_CONFIG; default DIR/curfew.yaml, written at the first start)
  --keys DIR     keys (CURFEW_KEYS_DIR; default DIR/keys); never part of a backup of the data
  --reflection   serve gRPC reflection, for grpcurl and buf curl

  CURFEW_LOG_LEVEL  warn (default) or info
`;

const defaultPort = 7600;
/** The ledger's files have the port after those of the services. */
const lastFirstPort = 65_535 - serviceNames.length;
const flags = {
  data: { type: "string" },
  port: { type: "string" },
  config: { type: "string" },
  keys: { type: "string" },
  reflection: { type: "boolean" },
  help: { type: "boolean" },
} as const;
const environment = { data: "CURFEW_DATA_DIR", port: "CURFEW_PORT", config: "CURFEW_CONFIG", keys: "CURFEW_KEYS_DIR" };
/** Those of the `curfew` command, which may stand in the same shell. */
const others = /^CURFEW_(AS|LOG_LEVEL|TEST_.*|BENCH_.*)$/;

type Environment = Readonly<Record<string, string | undefined>>;

const readArguments = (args: readonly string[], problems: string[]) => {
  const given: Partial<Record<keyof typeof flags, string | true>> = {};
  const { tokens } = parseArgs({ args: [...args], options: flags, strict: false, tokens: true });
  for (const token of tokens) {
    if (token.kind === "positional") problems.push(`"${token.value}": only options are taken`);
    if (token.kind !== "option") continue;
    const flag = Object.hasOwn(flags, token.name) ? flags[token.name as keyof typeof flags] : undefined;
    if (!flag) problems.push(`${token.rawName}: there is no such option (npm start -- --help tells them)`);
    else if (flag.type === "boolean" && token.value !== undefined) problems.push(`${token.rawName} takes no value`);
    else if (flag.type === "string" && !token.value) problems.push(`${token.rawName} needs a value`);
    else given[token.name as keyof typeof flags] = token.value ?? true;
  }
  return given;
};

const unknownVariables = (env: Environment): string[] =>
  Object.keys(env)
    .filter((name) => name.startsWith("CURFEW_") && !others.test(name) && !Object.values(environment).includes(name))
    .map(
      (name) =>
        `${name}: there is no such setting (there are ${Object.values(environment).join(", ")}, CURFEW_LOG_LEVEL)`,
    );

/** What was asked for as far as it can be understood, and every mistake. */
export const readOptions = (args: readonly string[], env: Environment) => {
  const problems: string[] = [];
  const given = readArguments(args, problems);
  problems.push(...unknownVariables(env));
  const value = (name: keyof typeof environment): string | undefined => {
    const argument = given[name];
    if (typeof argument === "string") return argument;
    const variable = env[environment[name]];
    if (variable === "") problems.push(`${environment[name]} must not be empty`);
    return variable === "" ? undefined : variable;
  };
  const text = value("port") ?? String(defaultPort);
  const port = /^\d{1,5}$/.test(text) ? Number(text) : Number.NaN;
  if (!(port >= 0 && port <= lastFirstPort))
    problems.push(`--port (${environment.port}) must be 0 for free ports, or the first of six, 1 to ${lastFirstPort}`);
  const level = env.CURFEW_LOG_LEVEL ?? "warn";
  if (level !== "warn" && level !== "info") problems.push("CURFEW_LOG_LEVEL must be warn or info");
  const [configFile, keysDir] = [value("config"), value("keys")];
  const options: Options = {
    dataDir: resolve(value("data") ?? ".curfew"),
    port,
    ...(configFile !== undefined && { configFile: resolve(configFile) }),
    ...(keysDir !== undefined && { keysDir: resolve(keysDir) }),
    reflection: given.reflection === true,
    logLevel: level === "info" ? "info" : "warn",
    help: given.help === true,
  };
  return { options, problems };
};

/** Makes the data directory where there is none; what stands against using it, in words, or undefined. */
export const dataDirectoryProblem = (dir: string): string | undefined => {
  try {
    mkdirSync(dir, { recursive: true, mode: 0o700 });
    const stat = statSync(dir);
    if (!stat.isDirectory()) return `${dir} is not a directory: choose another with --data`;
    // Whoever can rename what is in it can put another authority in the place of ours.
    if ((stat.mode & 0o002) !== 0)
      return `everybody may write to the data directory ${dir}: chmod o-w it, or choose another with --data`;
    accessSync(dir, constants.R_OK | constants.W_OK | constants.X_OK);
    return undefined;
  } catch (error) {
    return `the data directory ${dir} cannot be written to (${(error as NodeJS.ErrnoException).code}): make it writable, or choose another with --data`;
  }
};
