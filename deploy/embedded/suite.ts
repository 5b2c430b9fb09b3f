import { existsSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { openAuditor } from "@curfew/auditor/service.ts";
import { parsePaging } from "@curfew/breach-notifier/paging.ts";
import { openBreachNotifier } from "@curfew/breach-notifier/service.ts";
import { openSqliteStore, type SqliteStore } from "@curfew/document-store/sqlite.ts";
import { openEpochs } from "@curfew/event-log/epochs.ts";
import { openSqliteBus } from "@curfew/event-log/sqlite.ts";
import { embeddedTopics } from "@curfew/event-log/topics.ts";
import { openIssuer } from "@curfew/issuer/service.ts";
import { openKeyring } from "@curfew/keyring/keyring.ts";
import { openPersonalStore } from "@curfew/personal-data/personal-store.ts";
import { openRevocation } from "@curfew/revocation/service.ts";
import type { IdentitySource } from "@curfew/rpc/credentials.ts";
import type { IdentityFiles } from "@curfew/rpc/identity-files.ts";
import type { RunningService, ServiceParts } from "@curfew/rpc/replica.ts";
import { type Clock, systemClock } from "@curfew/runtime/clock.ts";
import { lockDirectory } from "@curfew/runtime/exclusive.ts";
import type { Log } from "@curfew/runtime/log.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { openVerifier } from "@curfew/verifier/service.ts";
import {
  type Endpoints,
  endpointsOf,
  openIdentities,
  removeEndpoints,
  type ServiceName,
  serviceNames,
  writeEndpoints,
} from "../installation.ts";
import type { SuiteConfig } from "./suite-config.ts";

/** The whole suite in one process, on SQLite in one directory, every connection mutual TLS on loopback. */
export interface Suite {
  readonly endpoints: Endpoints;
  readonly identities: IdentityFiles;
  /** For tests and benchmarks: commits and operations of each database. */
  stats(): Record<string, { commits: number; operations: number }>;
  /** Rejects when a service cannot go on. */
  readonly failed: Promise<never>;
  close(): Promise<void>;
}

export interface SuiteOptions {
  readonly dataDir: string;
  /** Default: `keys` in the data directory. Never part of a backup of the data. */
  readonly keysDir?: string;
  readonly config: SuiteConfig;
  /** The first of six ports: the services in the order of `serviceNames`, and the ledger's files; 0: free ones. */
  readonly port: number;
  readonly reflection: boolean;
  readonly log: Log;
  readonly clock?: Clock;
}

interface Opened {
  close(): Promise<void> | void;
}

/** A database of the data directory cannot be opened. */
export class DatabaseUnusable extends Error {
  override name = "DatabaseUnusable";
}

/** SQLite does not say of which file it complains. */
const opening = <T>(file: string, opened: Promise<T>): Promise<T> =>
  opened.catch((cause: Error) => {
    throw new DatabaseUnusable(
      `${file} cannot be opened (${cause.message}): it must be writable, on a disk with space; if it is damaged, put it back from a backup (npx curfew restore --help)`,
      { cause },
    );
  });

const openDatabases = async (
  dataDir: string,
  keysDir: string,
  clock: Clock,
  sourceOf: (name: ServiceName) => IdentitySource,
) => {
  const storeDir = join(dataDir, "store");
  mkdirSync(storeDir, { recursive: true, mode: 0o700 });
  const stores = new Map<string, SqliteStore>();
  for (const name of [...serviceNames, "personal", "producers"]) {
    const file = join(storeDir, `${name}.db`);
    stores.set(name, await opening(file, openSqliteStore({ file })));
  }
  const store = (name: ServiceName | "personal" | "producers") => stores.get(name) as SqliteStore;
  const epochs = await openEpochs(store("producers"));
  const identity = (service: string) => sourceOf(service as ServiceName).current();
  const file = join(dataDir, "bus.db");
  const bus = await opening(file, openSqliteBus({ file, epochs, clock, identity, topics: embeddedTopics }));
  const personal = await openPersonalStore({ store: store("personal"), keysDir, random: systemRandom, clock });
  return {
    store,
    epochs,
    personal,
    bus,
    stats: () =>
      Object.fromEntries([["bus", bus.stats()], ...[...stores].map(([name, each]) => [name, each.stats()] as const)]),
    async close() {
      await bus.close();
      await Promise.all([...stores.values()].map((each) => each.close()));
    },
  };
};

/** What the auditor needs beyond the others: its log's files in the data directory, served on the port after those of the services. */
const ledgerParts = ({ dataDir, config, port }: SuiteOptions) => ({
  ledgerDir: join(dataDir, "ledger"),
  ledgerListen: { host: "localhost", port: port === 0 ? 0 : port + serviceNames.length },
  ...(config.witnessing && { witnessing: config.witnessing }),
  ...(config.timestamping && { timestamping: config.timestamping }),
});

/**
 * Opens everything and resolves once every service serves and `endpoints.json` is written. Throws DirectoryInUse when another instance
 * has the directory, NotPrivate when the keys are readable by others, KeyringError and DatabaseUnusable for damaged files, ConfigError
 * for the paging section.
 */
export const openSuite = async (options: SuiteOptions): Promise<Suite> => {
  const { dataDir, config, log } = options;
  const clock = options.clock ?? systemClock;
  const opened: Opened[] = [];
  const closeAll = async () => {
    for (const each of opened.toReversed()) await each.close();
  };
  const keep = <T extends Opened>(each: T): T => {
    opened.push(each);
    return each;
  };
  try {
    const lock = lockDirectory(dataDir);
    keep({ close: () => lock.release() });
    removeEndpoints(dataDir); // of an instance that was killed
    keep({ close: () => removeEndpoints(dataDir) });
    const keysDir = options.keysDir ?? join(dataDir, "keys");
    const keyring = openKeyring({ dir: keysDir, random: systemRandom, clock });
    const identities = keep(await openIdentities({ dir: dataDir, config, clock, log }));
    const databases = keep(await openDatabases(dataDir, keysDir, clock, identities.sourceOf));
    const parts = (name: ServiceName): ServiceParts => ({
      store: databases.store(name),
      bus: databases.bus,
      keyring,
      organisation: config.organisation,
      clock,
      random: systemRandom,
      log: log.child({ role: name }),
      instance: `${name}-${Buffer.from(systemRandom(6)).toString("hex")}`,
      address: `localhost:${options.port === 0 ? 0 : options.port + serviceNames.indexOf(name)}`,
      identity: identities.sourceOf(name),
      caPem: identities.files.caPem,
      trustDomain: config.trustDomain,
      reflection: options.reflection,
      exclusive: true,
    });
    const paging = parsePaging(config.sections.paging);
    const services = new Map<ServiceName, RunningService>();
    const run = async <S extends RunningService>(name: ServiceName, opening: Promise<S>): Promise<S> => {
      const service = keep(await opening);
      service.failed.catch(() => undefined);
      services.set(name, service);
      return service;
    };
    await run("issuer", openIssuer({ ...parts("issuer"), identitiesDir: identities.files.createdDir }));
    const revocation = await run("revocation", openRevocation(parts("revocation")));
    await run(
      "verifier",
      openVerifier({
        ...parts("verifier"),
        personal: databases.personal,
        revocationAddresses: [`localhost:${revocation.port}`],
      }),
    );
    const { ledgerUrl } = await run(
      "auditor",
      openAuditor({
        ...parts("auditor"),
        epochs: databases.epochs,
        people: { personal: databases.personal, settings: config.personalData },
        ...ledgerParts(options),
      }),
    );
    await run("breach-notifier", openBreachNotifier({ ...parts("breach-notifier"), paging }));
    const failed = Promise.race([...services.values()].map((service) => service.failed));
    failed.catch(() => undefined);
    await Promise.race([Promise.all([...services.values()].map((service) => service.ready)), failed]);
    const endpoints = endpointsOf(
      config.trustDomain,
      identities.files,
      [...services].map(([name, { port }]) => [name, `localhost:${port}`]),
      ledgerUrl,
    );
    writeEndpoints(dataDir, endpoints);
    return { endpoints, identities: identities.files, stats: databases.stats, failed, close: closeAll };
  } catch (error) {
    await closeAll().catch((err) => log.error({ err }, "closing after a failed start failed too"));
    throw error;
  }
};

/** The configuration of a data directory: its own `curfew.yaml`, copied from the sample at the first start. */
export const configFileOf = (dataDir: string, sample: () => string): string => {
  const file = join(dataDir, "curfew.yaml");
  if (!existsSync(file)) {
    mkdirSync(dataDir, { recursive: true, mode: 0o700 });
    writeFileSync(file, sample(), { mode: 0o600, flag: "wx" });
  }
  return file;
};
