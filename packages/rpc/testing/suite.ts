import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { DescService } from "@bufbuild/protobuf";
import { openSqliteStore, type SqliteStore } from "@curfew/document-store/sqlite.ts";
import type { InRecord } from "@curfew/event-log/bus.ts";
import { type ReadEvent, readEvent } from "@curfew/event-log/envelope.ts";
import type { EpochRow } from "@curfew/event-log/epochs.ts";
import { openSqliteBus } from "@curfew/event-log/sqlite.ts";
import { embeddedTopics } from "@curfew/event-log/topics.ts";
import { openKeyring } from "@curfew/keyring/keyring.ts";
import { type Clock, systemClock } from "@curfew/runtime/clock.ts";
import { openLog } from "@curfew/runtime/log.ts";
import { parseOrganisation } from "@curfew/runtime/organisation.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { openClient, type ServiceClient } from "../client.ts";
import { createIdentitySource, type IdentitySource } from "../credentials.ts";
import { createAuthority, issueCertificate } from "../identity-authority.ts";
import type { RunningService, ServiceParts } from "../replica.ts";
import { interruptibleBus, interruptibleStore } from "./outages.ts";

/**
 * What services in one process need to run for a test: stores per service, one bus, a certificate authority with identities on demand,
 * one keyring. The test opens the services it wants on `parts` and gives them to `use`:
 *
 *     const suite = await openTestSuite();
 *     const issuer = await suite.use(openIssuer(await suite.parts("issuer")));
 *     const billing = await suite.client(IssuerService, issuer, "workload/billing");
 *     …
 *     await suite.close();
 */
export interface TestSuite {
  readonly clock: Clock;
  /** A scratch directory, removed at the end. */
  readonly dir: string;
  /** Every log line of every service. */
  readonly logged: readonly string[];
  /** Parts of one more replica of a service: its own instance and identity, the store of its service. */
  parts(service: string): Promise<ServiceParts>;
  /** Waits until it is ready, and closes it with the suite (before that: `close` of the service itself). */
  use<S extends RunningService>(opening: Promise<S>): Promise<S>;
  identity(path: string): Promise<IdentitySource>;
  /** A client of a running service, as "workload/billing" or "person/dana"; it retries as clients do. */
  client<S extends DescService>(
    desc: S,
    service: RunningService,
    path: string,
    name?: string,
  ): Promise<ServiceClient<S>>;
  /** The store of a service as it really is, outage or not. */
  store(service: string): Promise<SqliteStore>;
  setStoreDown(service: string, how: false | "before" | "after"): void;
  setBusDown(down: boolean): void;
  /** All events on a topic, partition by partition. */
  events(topic: string): Promise<ReadEvent[]>;
  records(topic: string): Promise<InRecord[]>;
  close(): Promise<void>;
}

export const trustDomain = "test.example";
const certificateMs = 30 * 24 * 3_600_000;

const defaultOrganisation = `
controllers: [{ id: acme, name: Acme, contact: a, dpo: b }]
resource_services:
  - { name: invoices, controllers: [acme] }
  - { name: people, controllers: [acme] }
people:
  - { name: ada, roles: [admin] }
  - { name: sam, roles: [security] }
  - { name: dora, roles: [dpo] }
  - { name: otto, roles: [oncall] }
  - { name: aude, roles: [auditor] }
`;

export const openTestSuite = async (
  options: { readonly organisation?: string; readonly clock?: Clock } = {},
): Promise<TestSuite> => {
  const { clock = systemClock } = options;
  const dir = mkdtempSync(join(tmpdir(), "curfew-suite-"));
  const authority = await createAuthority({ trustDomain, clock: systemClock });
  const organisation = parseOrganisation(options.organisation ?? defaultOrganisation);
  const keyring = openKeyring({ dir: join(dir, "keys"), random: systemRandom, clock });
  const logged: string[] = [];
  const producers = await openSqliteStore({ file: join(dir, "producers.db") });
  const innerBus = await openSqliteBus({
    file: join(dir, "bus.db"),
    epochs: await producers.collection<EpochRow>("epochs"),
    clock: systemClock,
    topics: embeddedTopics,
  });
  const bus = interruptibleBus(innerBus);
  const stores = new Map<string, { inner: SqliteStore; outer: ReturnType<typeof interruptibleStore> }>();
  const running = new Set<RunningService>();
  const closers: (() => void)[] = [];
  let instances = 0;

  const storeOf = async (service: string) => {
    const found = stores.get(service);
    if (found) return found;
    const inner = await openSqliteStore({ file: join(dir, `${service}.db`) });
    const opened = { inner, outer: interruptibleStore(inner) };
    stores.set(service, opened);
    return opened;
  };
  const identity = async (path: string) =>
    createIdentitySource(
      await issueCertificate(authority, {
        spiffePath: `/${path}`,
        validMs: certificateMs,
        dnsNames: ["localhost"],
        commonName: path.slice(path.indexOf("/") + 1),
      }),
    );
  const records = async (topic: string): Promise<InRecord[]> => {
    const found: InRecord[] = [];
    const wanted = (await innerBus.ends(topic)).reduce((sum, end) => sum + end, 0);
    if (wanted === 0) return found;
    const all = Promise.withResolvers<void>();
    const onRecords = (batch: readonly InRecord[]) => {
      found.push(...batch);
      if (found.length >= wanted) all.resolve();
    };
    const reading = await innerBus.subscribe({ name: "test", topics: [topic], start: () => 0, onRecords });
    await Promise.race([all.promise, reading.failed]);
    await reading.close();
    return found.sort((a, b) => a.partition - b.partition || a.offset - b.offset);
  };

  return {
    clock,
    dir,
    logged,
    identity,
    records,
    async parts(service) {
      instances += 1;
      return {
        store: (await storeOf(service)).outer.store,
        bus: bus.bus,
        keyring,
        organisation,
        clock,
        random: systemRandom,
        log: openLog({ service, level: "debug", write: (line) => void logged.push(line) }),
        instance: `${service}-${instances}`,
        address: "localhost:0",
        identity: await identity(`service/${service}`),
        caPem: authority.certPem,
        trustDomain,
        reflection: false,
        exclusive: false,
      };
    },
    async use(opening) {
      const service = await opening;
      running.add(service);
      await service.ready;
      return service;
    },
    async client(desc, service, path, name) {
      const client = openClient(desc, {
        address: `localhost:${service.port}`,
        identity: await identity(path),
        caPem: authority.certPem,
        trustDomain,
        // curfew.breach.v1.BreachService is served by breach-notifier; every other package is named as its service.
        expectService: name ?? (desc.typeName.split(".")[1] as string),
        clock: systemClock,
      });
      closers.push(() => client.close());
      return client.rpc;
    },
    store: async (service) => (await storeOf(service)).inner,
    setStoreDown: (service, how) => stores.get(service)?.outer.setDown(how),
    setBusDown: (down) => bus.setDown(down),
    events: async (topic) => (await records(topic)).map(readEvent),
    async close() {
      for (const close of closers) close();
      bus.end();
      for (const { outer } of stores.values()) outer.setDown(false);
      await Promise.all([...running].map((service) => service.close()));
      await innerBus.close();
      for (const { inner } of stores.values()) await inner.close();
      await producers.close();
      rmSync(dir, { recursive: true });
    },
  };
};

/** Asks until the answer is there, at most `ms`; the last error or answer is what a failure shows. */
export const eventually = async <T>(ask: () => Promise<T> | T, ms = 10_000): Promise<T> => {
  const until = systemClock.monotonicMs() + ms;
  for (;;) {
    try {
      return await ask();
    } catch (error) {
      if (systemClock.monotonicMs() > until) throw error;
      await systemClock.sleep(20);
    }
  }
};
