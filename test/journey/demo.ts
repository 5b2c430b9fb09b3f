import { randomBytes } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs, styleText } from "node:util";
import { parsePaging } from "@curfew/breach-notifier/paging.ts";
import { type LiveSuite, openLiveSuite } from "@curfew/deploy/dev/live-suite.ts";
import { ferretAvailable, kafkaAvailable } from "@curfew/deploy/dev/servers.ts";
import { openSuite, type Suite } from "@curfew/deploy/embedded/suite.ts";
import { readSuiteConfig } from "@curfew/deploy/embedded/suite-config.ts";
import { openIdentityFiles, personCertificateMs } from "@curfew/rpc/identity-files.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import { openLog } from "@curfew/runtime/log.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { stringify } from "yaml";
import { findSecrets } from "./canary.ts";
import { openCast } from "./cast.ts";
import { type MainJobResult, runMainJob } from "./main-job.ts";
import { openReceivers, type Receivers } from "./receivers.ts";

/** `npm run demo`: the main job from leaked token to Article 33 draft, embedded, or with --live on real Kafka and MongoDB protocol. */
const trustDomain = "curfew.example";

const writeConfig = (dataDir: string, receivers: Receivers, caFile: string, webhookSecretFile: string): string => {
  const sample = readFileSync(new URL("../../deploy/embedded/curfew.yaml", import.meta.url), "utf8").replace(
    /^paging:[\s\S]*/m,
    "",
  );
  const paging = {
    paging: {
      allow: [receivers.webhookAddress],
      targets: [
        {
          name: "oncall-mail",
          channel: "smtp",
          ca_file: caFile,
          host: "localhost",
          port: receivers.smtpPort,
          from: "curfew@acme.example",
          to: "oncall@acme.example",
        },
        { name: "oncall-hook", channel: "webhook", url: receivers.webhookUrl, secret_file: webhookSecretFile },
      ],
    },
  };
  const file = join(dataDir, "curfew.yaml");
  writeFileSync(file, sample + stringify(paging), { mode: 0o600 });
  return file;
};

export interface Journey {
  readonly result: MainJobResult;
  readonly secretsFound: number;
}

/** Sets the scene in a directory of its own, plays it, and takes everything down again. */
export const playJourney = async (options: {
  readonly live: boolean;
  readonly step: (title: string, ...details: string[]) => void;
}): Promise<Journey> => {
  const { step } = options;
  const folder = mkdtempSync(join(tmpdir(), "curfew-demo-"));
  const dataDir = join(folder, "data");
  const logLines: string[] = [];
  const log = openLog({ service: "demo", level: "info", write: (line) => void logLines.push(line) });
  const closers: (() => Promise<unknown> | void)[] = [() => rmSync(folder, { recursive: true, force: true })];
  try {
    const identities = await openIdentityFiles({ dir: dataDir, trustDomain, clock: systemClock, random: systemRandom });
    const mailCertificate = await identities.create("service/mail", { validMs: 86_400_000, dnsNames: ["localhost"] });
    await identities.create("workload/billing", { validMs: personCertificateMs });
    const webhookSecret = randomBytes(32).toString("base64");
    const webhookSecretFile = join(folder, "webhook-secret");
    writeFileSync(webhookSecretFile, `whsec_${webhookSecret}\n`, { mode: 0o600 });
    const receivers = await openReceivers(mailCertificate, webhookSecret);
    closers.push(() => receivers.close());
    const config = readSuiteConfig(writeConfig(dataDir, receivers, identities.caFile, webhookSecretFile), parsePaging);
    const suite: Suite | LiveSuite = options.live
      ? await openLiveSuite({ dataDir, config, log })
      : await openSuite({ dataDir, config, port: 0, reflection: false, log });
    closers.push(() => suite.close());
    step(
      "the suite runs",
      options.live ? "seven processes on real Kafka and a MongoDB-protocol database" : "one process on SQLite",
    );
    const cast = openCast(() => suite.endpoints, dataDir);
    closers.push(() => cast.close());
    const result = await runMainJob({ cast, receivers, dataDir, workDir: folder, step });
    await cast.close();
    const secretsFound = findSecrets(result.secrets, {
      directories: [dataDir],
      texts: [...logLines, ...receivers.mails, ...receivers.webhooks.map((w) => w.body)],
    }).length;
    step("the secret is in no topic, database, log or page", `${secretsFound} found`);
    return { result, secretsFound };
  } finally {
    for (const close of closers.toReversed()) await close();
  }
};

const main = async () => {
  const { values } = parseArgs({
    options: { json: { type: "boolean", default: false }, live: { type: "boolean", default: false } },
  });
  if (values.live) {
    const lacking = [kafkaAvailable(), ferretAvailable()].flatMap((found) => (found.ok ? [] : [found.why]));
    if (lacking.length > 0) {
      process.stderr.write(`the live demo cannot run:\n${lacking.map((why) => `  ${why}\n`).join("")}`);
      process.exit(2);
    }
  }
  const startMs = performance.now();
  const colour = (format: "bold" | "dim", text: string) => styleText(format, text, { stream: process.stdout });
  const step = (title: string, ...details: string[]) => {
    const at = `${((performance.now() - startMs) / 1000).toFixed(2)} s`.padStart(8);
    process.stdout.write(
      `${at}  ${colour("bold", title)}\n${details.map((d) => `          ${colour("dim", d)}\n`).join("")}`,
    );
  };
  const { result, secretsFound } = await playJourney({ live: values.live, step });
  const { secrets: _, ...shown } = result;
  process.stdout.write(
    `\nLeaked token refused everywhere after ${shown.leakToRefusedMs} ms, Article 33 draft after ${shown.leakToDraftMs} ms.\n`,
  );
  if (values.json) process.stdout.write(`${JSON.stringify({ ...shown, secretsFound })}\n`);
  if (secretsFound > 0) throw new Error("a secret was found where none may be");
};

if (import.meta.main) {
  await main().catch((error: Error) => {
    process.stderr.write(`the demo failed: ${error.message}\n${error.stack ?? ""}\n`);
    process.exitCode = 1;
  });
}
