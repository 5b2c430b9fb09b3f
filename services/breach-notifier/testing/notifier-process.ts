import { join } from "node:path";
import type { Collection, Doc, DocumentStore } from "@curfew/document-store/port.ts";
import { openSqliteStore } from "@curfew/document-store/sqlite.ts";
import type { EpochRow } from "@curfew/event-log/epochs.ts";
import { openSqliteBus } from "@curfew/event-log/sqlite.ts";
import type { CommitDoc } from "@curfew/event-log/streams.ts";
import { topics } from "@curfew/event-log/topics.ts";
import { openKeyring } from "@curfew/keyring/keyring.ts";
import { createIdentitySource } from "@curfew/rpc/credentials.ts";
import { createAuthority, issueCertificate } from "@curfew/rpc/identity-authority.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import { openLog } from "@curfew/runtime/log.ts";
import { parseOrganisation } from "@curfew/runtime/organisation.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { parsePaging } from "../paging.ts";
import { openBreachNotifier } from "../service.ts";

/**
 * A notifier on files as a process of its own, to be killed: `kill.test.ts` forks it with its orders as JSON. It tells over IPC what it
 * commits, and stops for good at the commit that it was told to stop at.
 */
export interface Orders {
  /** Where all files are; taken up again by the next process. */
  readonly dir: string;
  readonly paging: object;
  readonly stopAt?: Passed;
}

/** A commit with an event of this ce_type is about to be inserted, or was. */
export interface Passed {
  readonly when: "before" | "after";
  readonly type: string;
}

export const openFiles = async (dir: string) => {
  const store = await openSqliteStore({ file: join(dir, "breach-notifier.db") });
  const producers = await openSqliteStore({ file: join(dir, "producers.db") });
  const bus = await openSqliteBus({
    file: join(dir, "bus.db"),
    epochs: await producers.collection<EpochRow>("epochs"),
    clock: systemClock,
    topics: Object.fromEntries(topics.map(({ name, partitions }) => [name, partitions])),
  });
  const close = async () => {
    await bus.close();
    await store.close();
    await producers.close();
  };
  return { store, bus, close };
};

const watched = (store: DocumentStore, pass: (passed: Passed) => Promise<void>): DocumentStore => ({
  ping: () => store.ping(),
  close: () => store.close(),
  async collection<D extends Doc>(name: string, options?: Parameters<DocumentStore["collection"]>[1]) {
    const inner = await store.collection<D>(name, options);
    if (name !== "commits") return inner;
    const outer: Collection<D> = {
      async insert(doc) {
        const types = (doc as unknown as CommitDoc).events.map(({ headers }) => headers.ce_type ?? "");
        for (const type of types) await pass({ when: "before", type });
        const verdict = await inner.insert(doc);
        for (const type of types) await pass({ when: "after", type });
        return verdict;
      },
      insertMany: (docs) => inner.insertMany(docs),
      get: (id) => inner.get(id),
      getMany: (ids) => inner.getMany(ids),
      find: (query) => inner.find(query),
      set: (id, fields) => inner.set(id, fields),
      unset: (id, ...fields) => inner.unset(id, ...fields),
      unsetMany: (ids, ...fields) => inner.unsetMany(ids, ...fields),
      delete: (...ids) => inner.delete(...ids),
      getLatest: (id) => inner.getLatest(id),
      findLatest: (query) => inner.findLatest(query),
    };
    return outer;
  },
});

const run = async ({ dir, paging, stopAt }: Orders): Promise<void> => {
  const trustDomain = "test.example";
  const authority = await createAuthority({ trustDomain, clock: systemClock });
  const certificate = await issueCertificate(authority, {
    spiffePath: "/service/breach-notifier",
    validMs: 3_600_000,
    dnsNames: ["localhost"],
    commonName: "breach-notifier",
  });
  const { store, bus } = await openFiles(dir);
  const pass = async (passed: Passed) => {
    process.send?.(passed);
    if (passed.type === stopAt?.type && passed.when === stopAt.when) await new Promise(() => undefined);
  };
  const service = await openBreachNotifier({
    store: watched(store, pass),
    bus,
    keyring: openKeyring({ dir: join(dir, "keys"), random: systemRandom, clock: systemClock }),
    organisation: parseOrganisation(
      "controllers: [{ id: acme, name: Acme, contact: a, dpo: b }]\nresource_services: [{ name: invoices, controllers: [acme] }]\npeople: []",
    ),
    clock: systemClock,
    random: systemRandom,
    log: openLog({ service: "breach-notifier", level: "warn" }),
    instance: `breach-notifier-${process.pid}`,
    address: "localhost:0",
    identity: createIdentitySource(certificate),
    caPem: authority.certPem,
    trustDomain,
    reflection: false,
    exclusive: false,
    paging: parsePaging(paging),
  });
  await service.ready;
};

const [, file, orders] = process.argv;
if (file === import.meta.filename && orders !== undefined) await run(JSON.parse(orders) as Orders);
