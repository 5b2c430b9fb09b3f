import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { applyTopics } from "@curfew/event-log/topics.ts";
import { lockDirectory } from "@curfew/runtime/exclusive.ts";
import type { Log } from "@curfew/runtime/log.ts";
import type { SuiteConfig } from "../embedded/suite-config.ts";
import { type Endpoints, endpointsOf, removeEndpoints, type ServiceName, writeEndpoints } from "../installation.ts";
import { prepareInstallation, prepareServer } from "../prepare.ts";
import { freePort, openServerProcess, type ServerProcess } from "./server-process.ts";
import { type FerretServer, type KafkaServer, startFerret, startKafka } from "./servers.ts";

/** A service as a process of its own: what tests stop, pause and kill. */
export interface ServiceProcess {
  /** issuer, or verifier-2 for a further replica. */
  readonly name: string;
  readonly address: string;
  readonly pid: number;
  readonly logFile: string;
  kill(): Promise<void>;
  pause(): void;
  resume(): void;
  /** Starts it again on the same port; resolves once it serves. */
  restart(): Promise<void>;
}

/** The suite as separate processes on a real Kafka broker (mutual TLS) and a MongoDB-protocol database; all end with this process. */
export interface LiveSuite {
  readonly endpoints: Endpoints;
  readonly services: ReadonlyMap<string, ServiceProcess>;
  readonly kafka: KafkaServer;
  readonly ferret: FerretServer;
  close(): Promise<void>;
}

export interface LiveOptions {
  readonly dataDir: string;
  readonly config: SuiteConfig;
  readonly log: Log;
  /** Progress, for people. */
  readonly say?: (line: string) => void;
  /** Replicas per service; default one, the verifier two. */
  readonly replicas?: Partial<Record<ServiceName, number>>;
  readonly logLevel?: "debug" | "info" | "warn" | "error";
}

const readyLimitMs = 60_000;
const mainOf = (service: ServiceName) => fileURLToPath(new URL(`../../services/${service}/main.ts`, import.meta.url));

/** Starts one replica and resolves once it says that it serves. */
const openServiceProcess = async (
  name: string,
  service: ServiceName,
  environment: Readonly<Record<string, string>>,
  logDir: string,
): Promise<{ process: ServiceProcess; ready: Promise<void>; stop(): Promise<void> }> => {
  const port = await freePort();
  const address = `localhost:${port}`;
  const logFile = join(logDir, `${name}.log`);
  const settings = Object.entries({ ...environment, CURFEW_LISTEN: address }).map(([key, value]) => `${key}=${value}`);
  const node = [process.execPath, "--disable-warning=TimeoutNegativeWarning", "--disable-warning=ExperimentalWarning"];
  let child: ServerProcess;
  const begin = async () => {
    writeFileSync(logFile, "", { flag: "a" });
    const said = readFileSync(logFile).length;
    child = await openServerProcess({
      command: ["env", ...settings, ...node, mainOf(service)],
      port,
      logFile,
      goodCodes: [0],
    });
    return async () => {
      const deadlineMs = performance.now() + readyLimitMs;
      while (!readFileSync(logFile).subarray(said).includes(`ready ${service}`)) {
        if (performance.now() > deadlineMs)
          throw new Error(`${name} did not serve within ${readyLimitMs} ms: see ${logFile}`);
        await sleep(50);
      }
    };
  };
  const untilReady = await begin();
  return {
    process: {
      name,
      address,
      get pid() {
        return child.pid;
      },
      logFile,
      kill: () => child.kill(),
      pause: () => child.pause(),
      resume: () => child.resume(),
      restart: async () => await (await begin())(),
    },
    ready: untilReady(),
    stop: () => child.stop(),
  };
};

/** A rejection that somebody awaits later is not unhandled meanwhile. */
const later = <T>(promise: Promise<T>): Promise<T> => {
  promise.catch(() => undefined);
  return promise;
};

export const openLiveSuite = async (options: LiveOptions): Promise<LiveSuite> => {
  const { dataDir, config, log } = options;
  const say = options.say ?? (() => undefined);
  const closers: (() => Promise<void> | void)[] = [];
  const closeAll = async () => {
    for (const close of closers.toReversed()) await close();
  };
  try {
    const lock = lockDirectory(dataDir);
    closers.push(() => lock.release());
    removeEndpoints(dataDir);
    closers.push(() => removeEndpoints(dataDir));
    const { identities, keysDir } = await prepareInstallation(dataDir, config);
    closers.push(() => identities.close());
    const { files } = identities;
    const keystore = await prepareServer(files, "kafka", ["localhost"]);
    const logDir = join(dataDir, "logs");
    for (const dir of [logDir, join(dataDir, "kafka"), join(dataDir, "ferretdb")]) mkdirSync(dir, { recursive: true });

    say("starting the database (FerretDB) and the broker (Kafka); the first time builds and fetches them");
    const ferret = await startFerret({ dir: join(dataDir, "ferretdb"), log: say });
    closers.push(() => ferret.stop());
    const kafka = await startKafka({ dir: join(dataDir, "kafka"), tls: { ca: files.caFile, keystore }, log: say });
    closers.push(() => kafka.stop());
    const own = identities.sourceOf("issuer").current();
    await applyTopics(kafka.brokers, {
      replicationFactor: 1,
      minInsync: 1,
      ssl: { ca: files.caPem, cert: own.certPem, key: own.keyPem },
    });

    const environmentOf = (service: ServiceName): Record<string, string> => ({
      CURFEW_MONGO_URL: ferret.url,
      CURFEW_MONGO_TLS: "false",
      CURFEW_KAFKA_BROKERS: kafka.brokers.join(","),
      CURFEW_KEYS_DIR: keysDir,
      CURFEW_IDENTITY_DIR: files.dir(`service/${service}`),
      CURFEW_CA_FILE: files.caFile,
      CURFEW_TRUST_DOMAIN: config.trustDomain,
      CURFEW_ORGANISATION_FILE: join(dataDir, "organisation.yaml"),
      CURFEW_REFLECTION: "true",
      CURFEW_LOG_LEVEL: options.logLevel ?? "info",
    });
    const services = new Map<string, ServiceProcess>();
    const starting: Promise<void>[] = [];
    const run = async (service: ServiceName, extra: Readonly<Record<string, string>> = {}) => {
      const count = options.replicas?.[service] ?? (service === "verifier" ? 2 : 1);
      for (let n = 1; n <= count; n += 1) {
        const name = n === 1 ? service : `${service}-${n}`;
        const opened = await openServiceProcess(name, service, { ...environmentOf(service), ...extra }, logDir);
        closers.push(() => opened.stop());
        starting.push(later(opened.ready));
        services.set(name, opened.process);
      }
    };
    const addresses = (service: ServiceName) =>
      [...services.values()]
        .filter((p) => p.name === service || p.name.startsWith(`${service}-`))
        .map((p) => p.address);
    say("starting the services");
    await run("issuer", { CURFEW_IDENTITIES_DIR: files.createdDir });
    await run("revocation");
    await run("verifier", { CURFEW_REVOCATION_ADDRESSES: addresses("revocation").join(",") });
    await run("auditor", { ...config.auditorEnvironment, CURFEW_LEDGER_DIR: join(dataDir, "ledger") });
    await run("breach-notifier", { CURFEW_PAGING_FILE: join(dataDir, "paging.yaml") });
    await Promise.all(starting);
    const endpoints = endpointsOf(
      config.trustDomain,
      files,
      [...services].map(([name, { address }]) => [name, address]),
    );
    writeEndpoints(dataDir, endpoints);
    return { endpoints, services, kafka, ferret, close: closeAll };
  } catch (error) {
    await closeAll().catch((err) => log.error({ err }, "closing after a failed start failed too"));
    throw error;
  }
};

/** Removes what an earlier live run left in `dataDir`, if it is one. */
export const removeLiveData = (dataDir: string) => {
  if (existsSync(join(dataDir, "ferretdb"))) rmSync(dataDir, { recursive: true, force: true });
};
