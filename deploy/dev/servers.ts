import { spawn } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import {
  accessSync,
  constants,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { cached, type Log } from "./cache.ts";
import { freePort, openServerProcess, type ServerProcess } from "./server-process.ts";

export type Availability = { ok: true } | { ok: false; why: string };

/** A real server for development and live tests; it ends with this process, however this process ends. */
export interface DevServer {
  /** Data, configuration and logs. */
  readonly dir: string;
  /** Of the current process; another after a restart. */
  readonly pid: number;
  /** Ends it in order, and removes `dir` if it was made here. */
  stop(): Promise<void>;
  /** SIGKILL: nothing is flushed, the data stays. */
  kill(): Promise<void>;
  /** SIGSTOP, and returns once every thread stands still: connections stay open and nothing answers. */
  pause(): void;
  resume(): void;
  /** Starts it again after `kill` on the same port and data; resolves once it answers. */
  restart(): Promise<void>;
}
export interface KafkaServer extends DevServer {
  /** `["localhost:<port>"]` */
  readonly brokers: string[];
}
export interface FerretServer extends DevServer {
  /** `mongodb://127.0.0.1:<port>/` */
  readonly url: string;
}

export interface KafkaOptions {
  /** Data of an earlier run is kept. Default: a new folder, removed by `stop`. */
  dir?: string;
  /** PEM files: the authority of client certificates; the broker's PKCS#8 key and chain in one (for localhost, both key usages). */
  tls?: { ca: string; keystore: string };
  /** Broker settings on top of ours. */
  settings?: Record<string, string>;
  log?: Log;
}

const here = (path: string) => fileURLToPath(new URL(path, import.meta.url));
const quiet: Log = () => {};
const shaOf = (...files: string[]) => {
  const hash = createHash("sha256");
  for (const file of files) hash.update(readFileSync(here(file)));
  return hash.digest("hex").slice(0, 16);
};

const onPath = (program: string) =>
  (process.env.PATH ?? "").split(delimiter).some((folder) => {
    try {
      accessSync(join(folder, program), constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });

const need = (programs: string[], how: string): Availability => {
  const absent = programs.filter((p) => !onPath(p));
  return absent.length === 0 ? { ok: true } : { ok: false, why: `${absent.join(" and ")} not found on PATH: ${how}` };
};

/** Whether `prepareKafka` can work here, or what to install. */
export const kafkaAvailable = (): Availability =>
  need(["java", "mvn"], "install a JDK 17 or later and Maven (Debian: apt-get install openjdk-17-jdk-headless maven)");

/** Whether `prepareFerret` can work here, or what to install. */
export const ferretAvailable = (): Availability =>
  need(["go"], "install Go 1.26 or later (https://go.dev/doc/install) and put its bin folder on PATH");

const demand = (available: Availability) => {
  if (!available.ok) throw new Error(available.why);
};

const run = (command: string, args: string[]) =>
  new Promise<void>((done, fail) => {
    const child = spawn(command, args, { stdio: ["ignore", "pipe", "pipe"] });
    let said = "";
    const keep = (chunk: Buffer) => {
      said = (said + chunk.toString()).slice(-3000);
    };
    child.stdout.on("data", keep);
    child.stderr.on("data", keep);
    child.once("error", fail);
    child.once("close", (code, signal) =>
      code === 0 ? done() : fail(new Error(`${command} ended with ${signal ?? code}:\n${said}`)),
    );
  });

/** The folder of the broker's jars; fetched with Maven, and a class-data archive made, once per version of `kafka/pom.xml`. */
export const prepareKafka = async (log: Log = quiet): Promise<string> => {
  demand(kafkaAvailable());
  const name = `kafka-${shaOf("kafka/pom.xml")}`;
  const fetch = async (path: string) => {
    log("fetching Kafka (once, 43 MB)");
    const copy = ["-q", "-B", "-f", here("kafka/pom.xml"), "dependency:copy-dependencies", "-DincludeScope=runtime"];
    await run("mvn", [...copy, `-DoutputDirectory=${path}`]);
  };
  const libs = await cached(name, fetch, log);
  // The archive records where the jars are, so it can only be made once they are in their place.
  const archive = async (path: string) => {
    log("making Kafka's class-data archive (once, a few seconds)");
    const server = await openKafka({}, libs, { format: [], broker: [`-XX:ArchiveClassesAtExit=${path}`] });
    await server.stop();
  };
  await cached(`${name}.jsa`, archive, log);
  return libs;
};

/** The server's binary; fetched and built with Go once per version of `ferretdb/`. */
export const prepareFerret = (log: Log = quiet): Promise<string> => {
  const build = async (path: string) => {
    demand(ferretAvailable());
    log("fetching and building FerretDB (once, about a minute)");
    // A copy, with what it is built from, since that is changed.
    const copy = mkdtempSync(join(tmpdir(), "curfew-ferretdb-"));
    try {
      cpSync(here("ferretdb"), copy, { recursive: true });
      await run("go", ["mod", "vendor", "-C", copy]);
      useIndexes(join(copy, "vendor"));
      await run("go", ["build", "-C", copy, "-mod=vendor", "-trimpath", "-o", path, "."]);
    } finally {
      rmSync(copy, { recursive: true, force: true });
    }
  };
  const sources = ["go.sum", "main.go", "indexes.json"].map((file) => `ferretdb/${file}`);
  return cached(`ferretdb-${shaOf(...sources)}`, build, log);
};

interface Replacement {
  readonly file: string;
  readonly was: string;
  readonly is: string;
}

/** Lets FerretDB find documents as a database does: `ferretdb/indexes.json` says why. */
const useIndexes = (vendor: string): void => {
  const { replacements } = JSON.parse(readFileSync(here("ferretdb/indexes.json"), "utf8")) as {
    readonly replacements: readonly Replacement[];
  };
  for (const { file, was, is } of replacements) {
    const path = join(vendor, file);
    const source = readFileSync(path, "utf8");
    if (!source.includes(was)) throw new Error(`${file} is not what ferretdb/indexes.json was made for`);
    writeFileSync(
      path,
      source.replace(was, () => is),
    );
  }
};

/** One Kafka broker (and controller) on free ports; answers when this resolves. */
export const startKafka = async (options: KafkaOptions = {}): Promise<KafkaServer> => {
  const libs = await prepareKafka(options.log);
  const archive = [`-XX:SharedArchiveFile=${libs}.jsa`];
  return openKafka(options, libs, { format: archive, broker: archive });
};

const openKafka = async (
  options: KafkaOptions,
  libs: string,
  extra: { format: string[]; broker: string[] },
): Promise<KafkaServer> => {
  const { dir, forget } = folder(options.dir, "curfew-kafka-");
  const [port, controllerPort] = [await freePort(), await freePort()];
  const properties = join(dir, "server.properties");
  const logFile = join(dir, "kafka.log");
  const java = (jvm: string[], ...args: string[]) => [
    ...["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", ...jvm],
    ...[`-Dlog4j2.configurationFile=${here("kafka/log4j2.properties")}`, `-Dcurfew.log=${logFile}`],
    ...["-cp", join(libs, "*"), ...args],
  ];
  try {
    writeFileSync(properties, kafkaProperties(join(dir, "data"), port, controllerPort, options));
    if (!existsSync(join(dir, "data", "meta.properties"))) {
      const clusterId = randomBytes(16).toString("base64url");
      // With "=": one id in 64 begins with "-", and would be taken for an option.
      const tool = ["kafka.tools.StorageTool", "format", "-c", properties, `--cluster-id=${clusterId}`];
      await run("java", java(extra.format, ...tool));
    }
    const command = ["java", ...java(extra.broker, "kafka.Kafka", properties)];
    const open = () => openServerProcess({ command, port, logFile, goodCodes: [143] });
    return Object.assign(devServer(dir, await open(), open, forget), { brokers: [`localhost:${port}`] });
  } catch (e) {
    forget();
    throw e;
  }
};

const kafkaProperties = (data: string, port: number, controllerPort: number, { tls, settings }: KafkaOptions) => {
  const protocol = tls ? "SSL" : "PLAINTEXT";
  const mutualTls = tls && {
    "ssl.keystore.type": "PEM",
    "ssl.keystore.location": resolve(tls.keystore),
    "ssl.truststore.type": "PEM",
    "ssl.truststore.location": resolve(tls.ca),
    "ssl.client.auth": "required",
    "ssl.protocol": "TLSv1.3",
    "ssl.enabled.protocols": "TLSv1.3",
  };
  const all = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.quorum.voters": `1@localhost:${controllerPort}`,
    listeners: `BROKER://localhost:${port},CONTROLLER://localhost:${controllerPort}`,
    "listener.security.protocol.map": `BROKER:${protocol},CONTROLLER:${protocol}`,
    "inter.broker.listener.name": "BROKER",
    "controller.listener.names": "CONTROLLER",
    "log.dirs": data,
    "auto.create.topics.enable": "false",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "1",
    "group.initial.rebalance.delay.ms": "0",
    "log.cleaner.dedupe.buffer.size": "2097152",
    // After a kill the broker may register again only when its old session is over.
    "broker.session.timeout.ms": "1500",
    "broker.heartbeat.interval.ms": "300",
    ...mutualTls,
    ...settings,
  };
  return Object.entries(all)
    .map(([name, value]) => `${name}=${value}\n`)
    .join("");
};

/** One FerretDB on SQLite on a free port; answers when this resolves. Data of an earlier run in `dir` is kept. */
export const startFerret = async (options: { dir?: string; log?: Log } = {}): Promise<FerretServer> => {
  const binary = await prepareFerret(options.log);
  const { dir, forget } = folder(options.dir, "curfew-ferret-");
  try {
    const data = join(dir, "data");
    mkdirSync(data, { recursive: true });
    const port = await freePort();
    const command = [binary, `127.0.0.1:${port}`, data];
    const open = () => openServerProcess({ command, port, logFile: join(dir, "ferretdb.log"), goodCodes: [0] });
    return Object.assign(devServer(dir, await open(), open, forget), { url: `mongodb://127.0.0.1:${port}/` });
  } catch (e) {
    forget();
    throw e;
  }
};

const folder = (given: string | undefined, prefix: string) => {
  const dir = given === undefined ? mkdtempSync(join(tmpdir(), prefix)) : resolve(given);
  mkdirSync(dir, { recursive: true });
  const forget = () => {
    if (given === undefined) rmSync(dir, { recursive: true, force: true });
  };
  return { dir, forget };
};

const devServer = (dir: string, first: ServerProcess, open: () => Promise<ServerProcess>, forget: () => void) => {
  let current = first;
  return {
    dir,
    get pid() {
      return current.pid;
    },
    async stop() {
      await current.stop();
      forget();
    },
    kill: () => current.kill(),
    pause: () => current.pause(),
    resume: () => current.resume(),
    async restart() {
      await current.kill();
      current = await open();
    },
  };
};
