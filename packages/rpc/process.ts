import { createPrivateKey, X509Certificate } from "node:crypto";
import { readFileSync } from "node:fs";
import { hostname } from "node:os";
import { join } from "node:path";
import { openMongoStore } from "@curfew/document-store/mongo.ts";
import { type DocumentStore, StoreUnavailable } from "@curfew/document-store/port.ts";
import { openEpochs } from "@curfew/event-log/epochs.ts";
import { openKafkaBus } from "@curfew/event-log/kafka.ts";
import { ownTopics } from "@curfew/event-log/own-topic.ts";
import { restoreStore } from "@curfew/event-log/restore.ts";
import { openKeyring } from "@curfew/keyring/keyring.ts";
import { damagedKeys } from "@curfew/keyring/stored-key.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import {
  address,
  boolean,
  type Config,
  ConfigError,
  describeConfig,
  durationMs,
  type Field,
  list,
  Mistake,
  oneOf,
  optional,
  path,
  readConfig,
  type Spec,
  string,
} from "@curfew/runtime/config.ts";
import { type Log, openLog } from "@curfew/runtime/log.ts";
import { type Organisation, parseOrganisation } from "@curfew/runtime/organisation.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { onShutdown, type ShutdownStep } from "@curfew/runtime/shutdown.ts";
import { createIdentitySource, type IdentitySource } from "./credentials.ts";
import { callerOfNames } from "./identity.ts";
import type { IssuedCertificate } from "./identity-authority.ts";
import type { RunningService, ServiceParts } from "./replica.ts";

/**
 * A service as a process of its own, on Kafka and a MongoDB-protocol database: environment → adapters → `open` → signals. A service's
 * `config.ts` adds its own settings, its `main.ts` calls `runService`. Exit codes: 0 stopped by a signal, 1 failed, 2 bad configuration.
 */

const identityPollMs = 5_000;
const storePollMs = 1_000;

const organisationFile: Field<Organisation> = {
  about: "organisation.yaml: controllers, resource services, people",
  parse: (raw) => {
    const file = path({ about: "", existing: "file" }).parse(raw);
    try {
      return parseOrganisation(readFileSync(file, "utf8"));
    } catch (error) {
      if (error instanceof ConfigError) throw new Mistake(`must be right (${error.problems.join("; ")})`);
      throw new Mistake("must be a file that can be read");
    }
  },
};

const mongoUrl = /^mongodb(\+srv)?:\/\/[^@\s]+$/;
const databaseName = /^[a-z][a-z0-9_-]{0,37}$/;
const trustDomainName = /^[a-z0-9](?:[a-z0-9.-]{0,253}[a-z0-9])?$/;

/** What every service is told; `CURFEW_` and the name in capitals, e.g. CURFEW_MONGO_URL. */
const commonSpec = (service: string) =>
  ({
    mongoUrl: string({ about: "mongodb://host:port/…, without credentials", pattern: mongoUrl, expect: "mongodb://…" }),
    mongoDatabase: string({
      about: "database of this service",
      default: `curfew_${service.replaceAll("-", "_")}`,
      pattern: databaseName,
    }),
    producersDatabase: string({
      about: "database of all producers' epochs",
      default: "curfew_producers",
      pattern: databaseName,
    }),
    mongoTls: boolean({ about: "mutual TLS to the database, with this service's certificate", default: true }),
    kafkaBrokers: list(address({ about: "host:port" }), { about: "brokers, host:port, …", min: 1, max: 32 }),
    kafkaTls: boolean({ about: "mutual TLS to the brokers, with this service's certificate", default: true }),
    kafkaTopicPrefix: optional(string({ about: "put before each topic's name", pattern: /^[a-z0-9.-]{1,64}$/ })),
    keysDir: path({ about: "directory of the keys, 0700", existing: "directory", private: true }),
    identityDir: path({
      about: "directory with cert.pem and key.pem, read again when they change",
      existing: "directory",
    }),
    caFile: path({ about: "PEM of the certificate authority", existing: "file" }),
    trustDomain: string({ about: "SPIFFE trust domain", pattern: trustDomainName }),
    organisationFile,
    listen: address({ about: "host:port to listen on", anyPort: true }),
    advertiseHost: optional(
      string({
        about:
          "host under which fellow replicas reach this one; default: that of listen, or this machine's name where that is every address",
        pattern: /^[A-Za-z0-9.:[\]-]{1,253}$/,
      }),
    ),
    reflection: boolean({ about: "serve gRPC reflection", default: false }),
    logLevel: oneOf({ about: "log level", values: ["debug", "info", "warn", "error"], default: "info" }),
    restore: boolean({
      about: "copy back from its topic what a store restored from a backup lacks, before it serves; set it once",
      default: false,
    }),
    // Under the 10 s that container engines give: with a slow database the bounds of the parts add up.
    graceMs: durationMs({ about: "time to stop in", default: 8_000, minMs: 100, maxMs: 60_000 }),
  }) as const;

type CommonConfig = Config<ReturnType<typeof commonSpec>>;

export interface ServiceProgram<S extends Spec> {
  /** issuer, verifier, …: its certificate must name it. */
  readonly name: string;
  /** Settings beyond the common ones. */
  readonly spec: S;
  /** process.env. */
  readonly env: Readonly<Record<string, string | undefined>>;
  /** Mistakes in how settings go together, of what could be read. */
  readonly check?: (given: Partial<Config<S>>) => readonly string[];
  /** Files of the keys directory that it uses: a damaged one is a mistake in its configuration. Default: none. */
  readonly keys?: RegExp;
  /** Composes the service. What it opens besides (further stores) it closes with the service. */
  readonly open: (parts: ServiceParts, config: Config<S> & CommonConfig) => Promise<RunningService>;
}

const readIdentity = (dir: string): IssuedCertificate => ({
  certPem: readFileSync(join(dir, "cert.pem"), "utf8"),
  keyPem: readFileSync(join(dir, "key.pem"), "utf8"),
});

/** What is wrong with certificate, key and authority, together, as far as they are named. */
const identityProblems = (name: string, config: Partial<CommonConfig>): string[] => {
  const { identityDir, trustDomain, caFile } = config;
  const problems: string[] = [];
  const check = (what: string, test: () => boolean) => {
    try {
      if (!test()) problems.push(what);
    } catch {
      problems.push(what);
    }
  };
  if (identityDir && trustDomain)
    check(`CURFEW_IDENTITY_DIR must hold cert.pem of spiffe://${trustDomain}/service/${name}`, () => {
      const caller = callerOfNames(new X509Certificate(readIdentity(identityDir).certPem).subjectAltName, trustDomain);
      return caller?.kind === "service" && caller.name === name;
    });
  if (identityDir)
    check("CURFEW_IDENTITY_DIR must hold key.pem, the key of cert.pem", () => {
      const { certPem, keyPem } = readIdentity(identityDir);
      return new X509Certificate(certPem).checkPrivateKey(createPrivateKey(keyPem));
    });
  if (caFile)
    check("CURFEW_CA_FILE must hold the PEM of a certificate authority", () => {
      return new X509Certificate(readFileSync(caFile)).ca;
    });
  return problems;
};

/** Takes a renewed certificate into use; a half-written pair waits for the next look. */
const followIdentity = (dir: string, source: IdentitySource, log: Log): ShutdownStep => {
  const stop = new AbortController();
  void (async () => {
    while (!stop.signal.aborted) {
      await systemClock.sleep(identityPollMs, stop.signal);
      try {
        const found = readIdentity(dir);
        if (found.certPem === source.current().certPem) continue;
        source.replace(found);
        log.info({}, "the certificate was renewed");
      } catch (err) {
        log.warn({ err }, "the renewed certificate cannot be used yet");
      }
    }
  })();
  return { name: "identity", close: () => stop.abort() };
};

/** A database that is down when we start is waited for: ending would only make a crash loop. */
const untilReachable = async (store: DocumentStore, log: Log): Promise<void> => {
  for (let tries = 0; ; tries += 1) {
    try {
      return await store.ping();
    } catch (error) {
      if (!(error instanceof StoreUnavailable)) throw error;
      if (tries === 0) log.warn({ err: error }, "waiting for the database");
      await systemClock.sleep(storePollMs);
    }
  }
};

const everyAddress = ["0.0.0.0", "::"];

/** An address that means "all of them" reaches nobody else: then the machine's name does. */
const advertise = ({ listen, advertiseHost }: CommonConfig): { advertiseHost?: string } => {
  const host = advertiseHost ?? (everyAddress.includes(listen.host) ? hostname() : undefined);
  return host === undefined ? {} : { advertiseHost: host };
};

/** Opens the real adapters; each is on `steps`, to be closed, as soon as it is open. */
const openParts = async (
  name: string,
  config: CommonConfig,
  log: Log,
  steps: ShutdownStep[],
): Promise<ServiceParts> => {
  const identity = createIdentitySource(readIdentity(config.identityDir));
  const caPem = readFileSync(config.caFile, "utf8");
  const instance = `${name}-${Buffer.from(systemRandom(6)).toString("hex")}`;
  const keyring = openKeyring({ dir: config.keysDir, random: systemRandom, clock: systemClock });
  const tls = config.mongoTls && {
    tls: {
      ca: config.caFile,
      cert: join(config.identityDir, "cert.pem"),
      key: join(config.identityDir, "key.pem"),
    },
  };
  const openStore = async (database: string) => {
    const store = await openMongoStore({ url: config.mongoUrl, database, ...tls });
    steps.push({ name: `store ${database}`, close: () => store.close() });
    return store;
  };
  const store = await openStore(config.mongoDatabase);
  await untilReachable(store, log);
  const producers = await openStore(config.producersDatabase);
  const bus = await openKafkaBus({
    brokers: config.kafkaBrokers.map(({ host, port }) => `${host.includes(":") ? `[${host}]` : host}:${port}`),
    clientId: instance,
    clock: systemClock,
    log,
    epochs: await openEpochs(producers),
    identity: () => identity.current(),
    ...(config.kafkaTls && {
      ssl: () => ({ ca: caPem, cert: identity.current().certPem, key: identity.current().keyPem }),
    }),
    ...(config.kafkaTopicPrefix && { topicPrefix: config.kafkaTopicPrefix }),
  });
  steps.push({ name: "bus", close: () => bus.close() }, followIdentity(config.identityDir, identity, log));
  const { host, port } = config.listen;
  return {
    store,
    bus,
    keyring,
    organisation: config.organisationFile,
    clock: systemClock,
    random: systemRandom,
    log,
    instance,
    address: `${host.includes(":") ? `[${host}]` : host}:${port}`,
    ...advertise(config),
    identity,
    caPem,
    trustDomain: config.trustDomain,
    reflection: config.reflection,
    exclusive: false,
  };
};

/** Of a service that has streams of its own; the others have nothing to restore. */
const restore = async (name: string, { store, bus, log }: ServiceParts): Promise<void> => {
  const topic = ownTopics[name];
  if (topic === undefined) return log.warn({}, "CURFEW_RESTORE: this service has nothing to restore");
  const restored = await restoreStore({ bus, store, topic, service: name, clock: systemClock, log });
  log.warn({ topic, ...restored }, "restored: start without CURFEW_RESTORE from now on");
};

const complain = (name: string, problems: readonly string[]): never => {
  process.stderr.write(`${name}: the configuration is wrong:\n${problems.map((p) => `  ${p}\n`).join("")}`);
  process.exit(2);
};

const configOf = <S extends Spec>(program: ServiceProgram<S>): Config<S> & CommonConfig => {
  const { name, spec, env, keys } = program;
  const check = (given: Partial<Config<S> & CommonConfig>) => [
    ...identityProblems(name, given),
    ...(keys && given.keysDir !== undefined ? damagedKeys(given.keysDir, keys) : []).map(
      (damage) => `CURFEW_KEYS_DIR must hold keys that can be used: ${damage}`,
    ),
    ...(program.check?.(given) ?? []),
  ];
  try {
    return readConfig<Spec>(
      env,
      { ...commonSpec(name), ...spec },
      { check: check as (given: object) => string[] },
    ) as Config<S> & CommonConfig;
  } catch (error) {
    if (error instanceof ConfigError) return complain(name, error.problems);
    throw error;
  }
};

/**
 * Runs a service until a signal. Prints `ready <name> <host:port>` on standard output once it serves; logs go to standard error.
 * `--help` lists the settings.
 */
export const runService = async <const S extends Spec>(program: ServiceProgram<S>): Promise<void> => {
  const { name } = program;
  if (process.argv.includes("--help")) {
    process.stdout.write(`${describeConfig({ ...commonSpec(name), ...program.spec }).join("\n")}\n`);
    return;
  }
  const config = configOf(program);
  const log = openLog({ service: name, level: config.logLevel });
  const steps: ShutdownStep[] = [];
  onShutdown(steps, { graceMs: config.graceMs, log });
  try {
    const parts = await openParts(name, config, log, steps);
    if (config.restore) await restore(name, parts);
    const service = await program.open(parts, config);
    steps.push({ name, close: (at) => service.close(at) });
    void service.ready.then(() => process.stdout.write(`ready ${name} ${config.listen.host}:${service.port}\n`));
    await Promise.race([service.ready, service.failed]);
    await service.failed;
  } catch (err) {
    if (err instanceof ConfigError) complain(name, err.problems);
    if (["NotPrivate", "KeyringError", "AddressUnavailable"].includes((err as Error).name))
      complain(name, [(err as Error).message]);
    log.error({ err }, "cannot go on");
    process.exit(1);
  }
};
