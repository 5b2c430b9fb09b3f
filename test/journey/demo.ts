import { parseArgs, styleText } from "node:util";
import { ferretAvailable, kafkaAvailable } from "@curfew/deploy/dev/servers.ts";
import type { Canary, Finding } from "./canary.ts";
import { type MainJobResult, runMainJob, type Step } from "./main-job.ts";
import { playMoreTokens } from "./more-tokens.ts";
import { isInLeak, openStage, type Stage } from "./stage.ts";

/** `npm run demo`: the main job from leaked token to Article 33 draft, embedded, or with --live on real Kafka and MongoDB protocol. */
export interface Journey {
  readonly result: MainJobResult;
  /** Of every secret that was minted. */
  readonly canary: Canary;
  /** Found where none may be. */
  readonly found: readonly Finding[];
}

/** Plays the main job, and whatever else takes secrets, on a stage that stays open; then looks for the secrets everywhere. */
export const playJourney = async (stage: Stage, step: Step): Promise<Journey> => {
  const { secrets, ...result } = await runMainJob({ ...stage, step });
  const more = await playMoreTokens(stage.cast);
  const canary = await stage.inspect([...secrets, ...more]);
  const found = canary.found.filter(({ where }) => !isInLeak(stage, where));
  if (found.length === canary.found.length)
    throw new Error("the canary is blind: it misses the repository of the leak");
  const read = Object.values(canary.read).reduce((sum, n) => sum + n, 0);
  step(
    `the secrets are nowhere else: ${secrets.length + more.length} of them, also rotated ones, in every form`,
    `${read.toLocaleString("en")} records, rows, files, log lines, spans, mails and webhooks read: ${found.length} found`,
    "found, as it must be, in the git repository of the leak",
  );
  return { result: { ...result, secrets }, canary, found };
};

const assertAvailable = () => {
  const lacking = [kafkaAvailable(), ferretAvailable()].flatMap((found) => (found.ok ? [] : [found.why]));
  if (lacking.length === 0) return;
  process.stderr.write(`the live demo cannot run:\n${lacking.map((why) => `  ${why}\n`).join("")}`);
  process.exit(2);
};

const introduction = `A service token leaks. Watch it die everywhere and become an Article 33 case.
Real services, real certificates, a real git repository, real mail: nothing here is acted.
`;

const usage = `npm run demo -- [--json] [--live]

  --json  the last line is what happened, as one JSON object
  --live  on Kafka and a MongoDB-protocol database (Java, Maven, Go)

It starts a suite of its own and removes it, whether another runs or not.
`;

const readFlags = () => {
  try {
    const flag = { type: "boolean", default: false } as const;
    const { values } = parseArgs({ options: { json: flag, live: flag, help: flag } });
    if (!values.help) return values;
    process.stdout.write(usage);
    return process.exit(0);
  } catch (error) {
    process.stderr.write(`${(error as Error).message}\n${usage}`);
    return process.exit(2);
  }
};

const main = async () => {
  const values = readFlags();
  process.stdout.on("error", () => undefined); // the reader, `head` for example, has seen enough: all is taken down all the same
  const interrupted = Promise.withResolvers<never>();
  interrupted.promise.catch(() => undefined);
  // Where it happened to be is no help.
  for (const signal of ["SIGINT", "SIGTERM"] as const)
    process.on(signal, () => interrupted.reject(Object.assign(new Error(`stopped by ${signal}`), { stack: "" })));
  if (values.live) assertAvailable();
  const startMs = performance.now();
  const colour = (format: "bold" | "dim", text: string) => styleText(format, text, { stream: process.stdout });
  const step: Step = (title, ...details) => {
    const at = `${((performance.now() - startMs) / 1000).toFixed(2)} s`.padStart(8);
    const lines = details.map((detail) => `            ${colour("dim", detail)}\n`);
    process.stdout.write(`${at}  ${colour("bold", title)}\n${lines.join("")}`);
  };
  process.stdout.write(`${introduction}\n`);
  const stage = await openStage({
    live: values.live,
    say: (line) => void process.stdout.write(`            ${line}\n`),
  });
  try {
    const where = values.live
      ? "in processes of their own, on Kafka and a MongoDB-protocol database"
      : "in one process, on SQLite";
    step(`Curfew is running: five services ${where}`, "every connection is mutual TLS, each with its own certificate");
    const { result, found } = await Promise.race([playJourney(stage, step), interrupted.promise]);
    const { secrets: _, ...shown } = result;
    process.stdout.write(
      `\nFrom the report of the leak: refused everywhere after ${shown.leakToRefusedMs} ms, Article 33 draft after ${shown.leakToDraftMs} ms.\n`,
    );
    for (const { kind, where, form } of found) process.stderr.write(`a secret (${form}) stands in ${kind} ${where}\n`);
    if (values.json) process.stdout.write(`${JSON.stringify({ ...shown, secretsFound: found.length })}\n`);
    if (found.length > 0) throw new Error("a secret was found where none may be");
  } finally {
    await stage.close();
  }
};

if (import.meta.main) {
  await main().catch((error: Error) => {
    process.stderr.write(`the demo failed: ${error.message}\n${error.stack ?? ""}\n`);
    process.exitCode = 1;
  });
}
