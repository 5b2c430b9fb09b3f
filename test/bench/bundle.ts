import { mkdtempSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { create } from "@bufbuild/protobuf";
import { emptyHead, makeBatch, maxBatchRecords } from "@curfew/auditor/domain.ts";
import { openExports } from "@curfew/auditor/export/export.ts";
import { openFollower } from "@curfew/auditor/follower.ts";
import { ledgerKeys, sealOf } from "@curfew/auditor/ledger-keys.ts";
import { checkpointId, entryId, openReadModels } from "@curfew/auditor/projections.ts";
import { eventRecord, quiet, tokenId, use } from "@curfew/auditor/testing/rig.ts";
import { withFile } from "@curfew/bundle/file-source.ts";
import { openBundle } from "@curfew/bundle/verify-bundle.ts";
import { writeNewFile } from "@curfew/cli/new-file.ts";
import { AuditorService } from "@curfew/contracts/gen/curfew/auditor/v1/auditor_pb.ts";
import { CaseOpenedSchema } from "@curfew/contracts/gen/curfew/events/v1/breaches_pb.ts";
import { openSqliteStore } from "@curfew/document-store/sqlite.ts";
import type { OutRecord } from "@curfew/event-log/bus.ts";
import { openChain } from "@curfew/event-log/chain.ts";
import type { EpochRow } from "@curfew/event-log/epochs.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { openOutbox } from "@curfew/event-log/outbox.ts";
import { openSqliteBus } from "@curfew/event-log/sqlite.ts";
import { embeddedTopics } from "@curfew/event-log/topics.ts";
import { openKeyring } from "@curfew/keyring/keyring.ts";
import type { LogRecord } from "@curfew/ledger/leaf.ts";
import { parsePolicy } from "@curfew/ledger/policy.ts";
import { yearOf } from "@curfew/ledger/shard.ts";
import { authorization } from "@curfew/rpc/authorization.ts";
import { openClient } from "@curfew/rpc/client.ts";
import { createIdentitySource } from "@curfew/rpc/credentials.ts";
import { openServer } from "@curfew/rpc/server.ts";
import { bindService, type Handlers } from "@curfew/rpc/service-definition.ts";
import { issue, newAuthority, trustDomain } from "@curfew/rpc/testing/harness.ts";
import { systemClock as clock } from "@curfew/runtime/clock.ts";
import { systemRandom as random } from "@curfew/runtime/random.ts";
import type { Figure } from "./figures.ts";

/** An evidence bundle of a case whose entries lie scattered over a large ledger: asked for over gRPC, written to disk, then verified. */

const entriesWanted = 10_000;
const origin = `${trustDomain}/ledger`;
const caseId = `case/${tokenId(0)}/1`;
const seconds = (value: number): string => `${value.toFixed(2)} s`;

const openStores = async (dir: string) => {
  const store = await openSqliteStore({ file: join(dir, "auditor.db") });
  const epochs = await store.collection<EpochRow>("epochs");
  const bus = await openSqliteBus({ file: join(dir, "bus.db"), epochs, clock, topics: embeddedTopics });
  const keyring = openKeyring({ dir: join(dir, "keys"), random, clock });
  return { store, epochs, bus, keyring };
};
type Stores = Awaited<ReturnType<typeof openStores>>;

/** The read models that sealing `size` leaves would leave, as far as bundles use them: uses, every so many of the one token, and last its case. */
const seed = async ({ store, keyring }: Stores, size: number): Promise<void> => {
  const models = await openReadModels(store);
  const seal = sealOf(origin, ledgerKeys(keyring, origin));
  const chains = new Map<string, ReturnType<typeof openChain>>();
  const ends = new Map<string, number>();
  const recordOf = (topic: string, out: OutRecord): LogRecord => {
    const chain = chains.get(topic) ?? openChain(topic, `bench/${topic.split(".")[1]}/1`);
    chains.set(topic, chain);
    const { key: subject, partition, value, headers } = chain.link(out);
    const offset = ends.get(topic) ?? 0;
    ends.set(topic, offset + 1);
    return {
      topic,
      partition,
      offset,
      timestampMs: clock.now(),
      key: subject,
      headers: Object.entries(headers),
      value,
    };
  };
  const every = Math.floor(size / entriesWanted);
  const opened = create(CaseOpenedSchema, { caseId, tokenId: tokenId(0), signal: { eventId: "none" } });
  const last = eventRecord(opened, { subject: caseId, source: "/breach-notifier", sequence: 1 });
  let head = emptyHead;
  while (head.size < size) {
    const tokens = Array.from({ length: Math.min(maxBatchRecords, size - head.size) }, (_, i) =>
      (head.size + i) % every === 0 ? 0 : 1 + ((head.size + i) % 997),
    );
    const records = tokens.map((token, i) =>
      head.size + i === size - 1 ? recordOf(topicNames.breaches, last) : recordOf(topicNames.uses, use(token)),
    );
    const { doc, nodes, number, head: next } = makeBatch(head, records, clock.now(), seal);
    const isLast = (i: number) => doc.first + i === size - 1;
    await models.entries.insertMany(
      doc.leaves.map((leaf, i) => ({
        _id: entryId(doc.first + i),
        batch: number,
        leaf,
        nodes: nodes[i] as Uint8Array,
        type: isLast(i) ? "curfew.case.opened.v1" : "curfew.use.decided.v1",
        source: isLast(i) ? "/breach-notifier" : "/verifier",
        tokenId: tokenId(isLast(i) ? 0 : (tokens[i] as number)),
        timeMs: clock.now(),
      })),
    );
    const { root, checkpoint, positions } = doc;
    await models.checkpoints.insert({
      shard: doc.shard,
      _id: checkpointId(number),
      batch: number,
      first: doc.first,
      size: doc.size,
      root,
      checkpoint,
      positions,
      sealedAtMs: clock.now(),
      clockBack: 0,
    });
    head = next;
  }
};

const refuse = () => {
  throw new Error("not asked for here");
};

/** The method as the auditor serves it, without what else an auditor does meanwhile. */
const openService = async ({ store, bus, keyring }: Stores) => {
  const authority = await newAuthority();
  const identity = async (path: string) => createIdentitySource(await issue(authority, path));
  const shared = { caPem: authority.certPem, trustDomain, clock };
  const models = await openReadModels(store);
  const own = {
    seal: sealOf(origin, ledgerKeys(keyring, origin)),
    clocks: { cosigning: undefined, stamped: undefined },
    authority: shared,
  };
  const follower = await openFollower({ models, seal: own.seal, clock, log: quiet });
  const outbox = await openOutbox({
    store,
    bus,
    service: "auditor",
    instance: "a1",
    topic: topicNames.evidence,
    clock,
    random,
    log: quiet,
    exclusive: true,
    wake: async () => [],
  });
  const exportBundle = openExports({
    ...own,
    models,
    follower,
    outbox,
    clock,
    random,
    awaitSealed: async () => undefined,
  });
  const others = Object.fromEntries(AuditorService.methods.map(({ localName }) => [localName, refuse]));
  const server = await openServer({
    ...shared,
    address: "localhost:0",
    identity: await identity("/service/auditor"),
    services: [
      bindService(AuditorService, { ...(others as unknown as Handlers<typeof AuditorService>), exportBundle }),
    ],
    authorize: authorization,
    directory: { rolesOf: () => new Set(["auditor" as const]), isAudience: () => false },
    reflection: false,
    log: quiet,
  });
  const address = `localhost:${server.port}`;
  const as = { address, identity: await identity("/person/paula"), expectService: "auditor" };
  const client = openClient(AuditorService, { ...shared, ...as });
  const close = async () => {
    client.close();
    await server.close(0);
    await follower.close();
    await outbox.close();
  };
  return { rpc: client.rpc, verifierKey: own.seal.verifierKeyAt(yearOf(clock.now()), 0), close };
};

async function* piecesOf(answers: AsyncIterable<{ readonly piece: Uint8Array }>) {
  for await (const { piece } of answers) yield piece;
}

const measure = async (dir: string, size: number): Promise<Figure[]> => {
  const stores = await openStores(dir);
  const seedingMs = clock.monotonicMs();
  await seed(stores, size);
  const seeded = (clock.monotonicMs() - seedingMs) / 1_000;
  const { rpc, verifierKey, close } = await openService(stores);
  const file = join(dir, "case.zip");
  const before = process.cpuUsage();
  const exportingMs = clock.monotonicMs();
  await writeNewFile(file, piecesOf(rpc.exportBundle({ caseId })));
  const exported = (clock.monotonicMs() - exportingMs) / 1_000;
  const { user, system } = process.cpuUsage(before);
  const { rss } = process.memoryUsage();
  await close();
  await stores.bus.close();
  await stores.store.close();
  const policy = parsePolicy(`log ${verifierKey}\nquorum none\n`);
  const verifyingMs = clock.monotonicMs();
  const { manifest } = await withFile(file, (source) => openBundle(source, policy));
  const verified = (clock.monotonicMs() - verifyingMs) / 1_000;
  const megabytes = (statSync(file).size / 2 ** 20).toFixed(1);
  return [
    {
      what: `evidence bundle of a case, ${manifest.entries} entries out of ${size}`,
      value: exported,
      show: seconds,
      ...(size === 1_000_000 && { target: { most: 5 } }),
      notes: [
        `${megabytes} MB; ${seconds((user + system) / 1e6)} of processor time for auditor, database and client together`,
        `${(rss / 2 ** 20).toFixed(0)} MB resident; seeding took ${seconds(seeded)}`,
      ],
    },
    { what: "    verified offline", value: verified, show: seconds },
  ];
};

export const bundle = async ({ quick }: { readonly quick: boolean }): Promise<Figure[]> => {
  const figures: Figure[] = [];
  for (const size of [100_000, ...(quick ? [] : [1_000_000])]) {
    const dir = mkdtempSync(join(tmpdir(), "curfew-bench-"));
    try {
      figures.push(...(await measure(dir, size)));
    } finally {
      rmSync(dir, { recursive: true, force: true });
    }
  }
  return figures;
};
