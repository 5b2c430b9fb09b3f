import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { parsePaging } from "@curfew/breach-notifier/paging.ts";
import { type LiveSuite, openLiveSuite } from "@curfew/deploy/dev/live-suite.ts";
import { openSuite } from "@curfew/deploy/embedded/suite.ts";
import { readSuiteConfig } from "@curfew/deploy/embedded/suite-config.ts";
import type { Endpoints } from "@curfew/deploy/installation.ts";
import { openIdentityFiles, personCertificateMs } from "@curfew/rpc/identity-files.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import type { Log } from "@curfew/runtime/log.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { stringify } from "yaml";
import { type Canary, openCanary } from "./canary.ts";
import { type Cast, openCast } from "./cast.ts";
import { lookAtKafka, lookAtMongo, lookAtSqlite, lookAtSqliteBus } from "./places.ts";
import { openReceivers, type Receivers } from "./receivers.ts";
import { recordingLog, recordSpans } from "./recorders.ts";

/** A running suite, the people and workloads around it, and everything it says: where a journey is played and then inspected. */
export interface Stage {
  readonly cast: Cast;
  readonly receivers: Receivers;
  /** The suite's data directory, below `workDir`, which is the journey's own. */
  readonly dataDir: string;
  readonly workDir: string;
  readonly webhookSecret: string;
  readonly log: Log;
  /** What the `curfew` command wrote, one entry per run. */
  readonly printed: string[];
  /** Runs the `curfew` command against this suite, as a process of its own. */
  curfew(...args: string[]): Promise<{ readonly code: number | null; readonly complaint: string }>;
  /** Looks for secrets in every place there is: topics, databases, files, logs, spans, mails, webhooks, the command's output. */
  inspect(secrets: readonly string[]): Promise<Canary>;
  close(): Promise<void>;
}

const trustDomain = "curfew.example";
const root = fileURLToPath(new URL("../../", import.meta.url));
const commandLimitMs = 60_000;
const certificateMs = 86_400_000;

/** The sample configuration with two targets that are paged. */
const writeConfig = (dataDir: string, receivers: Receivers, caFile: string, webhookSecretFile: string): string => {
  const sample = readFileSync(join(root, "deploy/embedded/curfew.yaml"), "utf8").replace(/^paging:[\s\S]*/m, "");
  const mail = { ca_file: caFile, host: "localhost", port: receivers.smtpPort };
  const addresses = { from: "curfew@acme.example", to: "oncall@acme.example" };
  const targets = [
    { name: "oncall-mail", channel: "smtp", ...mail, ...addresses },
    { name: "oncall-hook", channel: "webhook", url: receivers.webhookUrl, secret_file: webhookSecretFile },
  ];
  const paging = { paging: { allow: [receivers.webhookAddress], targets } };
  const file = join(dataDir, "curfew.yaml");
  writeFileSync(file, sample + stringify(paging), { mode: 0o600 });
  return file;
};

const runCurfew = async (dataDir: string, args: readonly string[], printed: string[]) => {
  const command = ["--disable-warning=ExperimentalWarning", join(root, "packages/cli/main.ts"), ...args];
  const env = { ...process.env, CURFEW_DATA_DIR: dataDir };
  const child = spawn(process.execPath, command, { stdio: ["ignore", "pipe", "pipe"], timeout: commandLimitMs, env });
  const said = { out: "", complaint: "" };
  child.stdout.on("data", (chunk: Buffer) => {
    said.out += chunk.toString("latin1");
  });
  child.stderr.on("data", (chunk: Buffer) => {
    said.complaint += chunk.toString("latin1");
  });
  const [code] = (await once(child, "close")) as [number | null];
  printed.push(said.out + said.complaint);
  return { code, complaint: said.complaint };
};

/** A suite that is open, and how its topics and databases are read by somebody from outside. */
interface Running {
  readonly endpoints: Endpoints;
  lookAtStores(look: Canary["look"]): Promise<void>;
  close(): Promise<void>;
}

/** Progress, for people who wait. */
type Say = (line: string) => void;

const openEmbedded = async (dataDir: string, configFile: string, log: Log): Promise<Running> => {
  const config = readSuiteConfig(configFile, parsePaging);
  const suite = await openSuite({ dataDir, config, port: 0, reflection: false, log });
  return {
    endpoints: suite.endpoints,
    async lookAtStores(look) {
      await lookAtSqliteBus(join(dataDir, "bus.db"), look);
      lookAtSqlite(dataDir, look);
    },
    close: () => suite.close(),
  };
};

const openLive = async (dataDir: string, configFile: string, log: Log, say: Say): Promise<Running> => {
  const config = readSuiteConfig(configFile, parsePaging);
  const suite: LiveSuite = await openLiveSuite({ dataDir, config, log, say, logLevel: "debug" });
  const auditor = join(dataDir, "identity/service/auditor");
  const tls = { ca: suite.endpoints.ca, cert: join(auditor, "cert.pem"), key: join(auditor, "key.pem") };
  return {
    endpoints: suite.endpoints,
    async lookAtStores(look) {
      await lookAtKafka(suite.kafka.brokers, tls, look);
      await lookAtMongo(suite.ferret.url, look);
    },
    close: () => suite.close(),
  };
};

/** Sets the scene in a directory of its own: certificates, receivers of pages, and the suite, embedded or as separate processes. */
export const openStage = async (options: { readonly live: boolean; readonly say?: Say }): Promise<Stage> => {
  const workDir = mkdtempSync(join(tmpdir(), "curfew-journey-"));
  const dataDir = join(workDir, "data");
  const closers: (() => unknown)[] = [() => rmSync(workDir, { recursive: true, force: true })];
  const close = async () => {
    for (const each of closers.splice(0).toReversed()) await each();
  };
  try {
    const spans: string[] = [];
    const logLines: string[] = [];
    const printed: string[] = [];
    if (!options.live) closers.push(recordSpans(spans));
    const log = recordingLog(logLines);
    const identities = await openIdentityFiles({ dir: dataDir, trustDomain, clock: systemClock, random: systemRandom });
    const certificate = await identities.create("service/mail", { validMs: certificateMs, dnsNames: ["localhost"] });
    await identities.create("workload/billing", { validMs: personCertificateMs });
    const webhookSecret = randomBytes(32).toString("base64");
    const webhookSecretFile = join(workDir, "webhook-secret");
    writeFileSync(webhookSecretFile, `whsec_${webhookSecret}\n`, { mode: 0o600 });
    const receivers = await openReceivers(certificate, webhookSecret);
    closers.push(() => receivers.close());
    const configFile = writeConfig(dataDir, receivers, identities.caFile, webhookSecretFile);
    const suite = await (options.live ? openLive : openEmbedded)(
      dataDir,
      configFile,
      log,
      options.say ?? (() => undefined),
    );
    closers.push(() => suite.close());
    const cast = openCast(() => suite.endpoints, dataDir);
    closers.push(() => cast.close());
    const inspect = async (secrets: readonly string[]) => {
      const canary = openCanary(secrets);
      const lookAtTexts = (kind: string, texts: readonly string[]) => {
        for (const [n, text] of texts.entries()) canary.look(kind, `${kind} ${n}`, text);
      };
      await suite.lookAtStores(canary.look);
      canary.lookBelow(workDir);
      lookAtTexts("log line", logLines);
      lookAtTexts("span", spans);
      lookAtTexts("mail", receivers.mails);
      const webhooks = receivers.webhooks.map(({ id, body }) => `${id}\n${body}`);
      lookAtTexts("webhook", webhooks);
      lookAtTexts("printed", printed);
      return canary;
    };
    const curfew = (...args: string[]) => runCurfew(dataDir, args, printed);
    return { cast, receivers, dataDir, workDir, webhookSecret, log, printed, curfew, inspect, close };
  } catch (error) {
    await close();
    throw error;
  }
};

export const leakFolder = "leak-repository";

/** Whether something was found where it had to be: in the repository that the secret was committed to. */
export const isInLeak = (stage: Pick<Stage, "workDir">, where: string): boolean =>
  relative(stage.workDir, where).startsWith(`${leakFolder}/`);
