import type { Collection } from "@curfew/document-store/port.ts";
import type { EpochRow } from "@curfew/event-log/epochs.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { type Lease, openLease, type Tenure } from "@curfew/event-log/lease.ts";
import { openOutbox } from "@curfew/event-log/outbox.ts";
import { openProducerTrust } from "@curfew/event-log/producer-key.ts";
import { evidenceSettings } from "@curfew/event-log/topics.ts";
import { policyInEachYear, yearOf } from "@curfew/ledger/shard.ts";
import { RpcError } from "@curfew/rpc/errors.ts";
import type { HealthState } from "@curfew/rpc/health.ts";
import {
  advertisedAddress,
  openWaker,
  type RunningService,
  relayService,
  type ServiceParts,
  serve,
} from "@curfew/rpc/replica.ts";
import type { AnyHandler, BoundService, CallContext } from "@curfew/rpc/service-definition.ts";
import { openDriftLog } from "./checks/drift-log.ts";
import { watchEpochs } from "./checks/epoch-watch.ts";
import { openEvidenceHealth } from "./checks/health.ts";
import type { PassRow } from "./checks/passes.ts";
import { defaultPerSecond, reverification } from "./checks/reverification.ts";
import { openTopicWatch } from "./checks/topic-watch.ts";
import { type BatchDoc, LedgerBroken } from "./domain.ts";
import { openFollower } from "./follower.ts";
import { auditorService } from "./grpc.ts";
import { watchKeyRotation } from "./key-rotation.ts";
import { Interrupted, openLedger } from "./ledger.ts";
import { ledgerKeys, sealOf } from "./ledger-keys.ts";
import { openPeople, type PeopleParts } from "./people/people.ts";
import { openProjection, openReadModels } from "./projections.ts";
import { openCosigned } from "./public-log/cosigned.ts";
import { openPublicLog } from "./public-log/public-log.ts";
import type { ShardFiles } from "./public-log/shard-files.ts";
import type { Timestamping } from "./public-log/timestamp-settings.ts";
import { openTimestampRows, type TimestampStatus } from "./public-log/timestamps.ts";
import type { Witnessing } from "./public-log/witness-settings.ts";
import { checkPolicy, type WitnessStatus } from "./public-log/witnesses.ts";
import { openGapReporter } from "./reactions.ts";
import { assertNoRebuild } from "./rebuild/rebuild.ts";
import { sealLease } from "./rebuild/rebuild-once.ts";
import { sealUntil } from "./sealer.ts";
import { publishSiem } from "./siem/publisher.ts";

const name = "auditor";
const closeGraceMs = 1_000;
const healthEveryMs = 1_000;

export type AuditorServiceParts = ServiceParts & {
  /** The shared store of producers: who may have written a record, and what each says was acknowledged. */
  readonly epochs: Collection<EpochRow>;
  /** The ledger's name; a shard's is `<origin>/<year>`. Default: `<trust domain>/ledger`. */
  readonly origin?: string;
  /** Directory in which a folder for each year is kept a c2sp.org/tlog-tiles log of that shard; absent: none. */
  readonly ledgerDir?: string;
  /** Where they are kept in place of that directory. */
  readonly ledgerFiles?: ShardFiles;
  /** `min.insync.replicas` that every topic must have; absent: whatever it has. */
  readonly minInsync?: number;
  /** Records compared again with the ledger a second, at most; default: 1,000. */
  readonly reverifyPerSecond?: number;
  /** Where that log is served over plain HTTP, read-only; absent: nowhere. Needs one of those. */
  readonly ledgerListen?: { readonly host: string; readonly port: number };
  /** The store of pseudonyms and people's keys, and how it is erased from; absent: there is none, and nobody to be erased. */
  readonly people?: PeopleParts;
  /** Whose cosignatures the checkpoint of those files waits for; absent: nobody's. */
  readonly witnessing?: Witnessing;
  /** Who is asked for timestamps over that checkpoint; absent: nobody. */
  readonly timestamping?: Timestamping;
};

export type Auditor = RunningService & {
  /** Where the ledger's files are served, if they are. */
  readonly ledgerUrl?: string;
  /** How it stands with the witnesses, if there are any. Rejects with StoreUnavailable. */
  readonly witnesses?: () => Promise<WitnessStatus>;
  /** How it stands with timestamps, if anybody is asked for them. Rejects with StoreUnavailable. */
  readonly timestamps?: () => Promise<TimestampStatus>;
};

/** SERVING while the database answers: without it there is nothing to answer from. Without the bus what is sealed can still be read. */
const keepHealth = async (
  { store, clock, log }: ServiceParts,
  health: HealthState,
  signal: AbortSignal,
  ready: () => void,
): Promise<void> => {
  let last: boolean | undefined;
  while (!signal.aborted) {
    const answers = await store.ping().then(
      () => true,
      () => false,
    );
    if (signal.aborted) return;
    if (answers !== last) health.setAll(answers ? "SERVING" : "NOT_SERVING");
    if (!answers && last !== false) log.warn({}, "the database does not answer");
    if (answers) ready();
    last = answers;
    await clock.sleep(healthEveryMs, signal);
  }
};

const whenReady = (service: BoundService, isReady: () => boolean): BoundService => {
  const message = "the store has not been compared with its topic yet; try again";
  const gate = (handler: AnyHandler) => (input: unknown, ctx: CallContext) => {
    if (!isReady()) throw new RpcError({ status: "UNAVAILABLE", reason: "NOT_READY", message, retryDelayMs: 500 });
    return handler(input, ctx);
  };
  const handlers = Object.entries(service.handlers).map(([method, handler]) => [method, gate(handler)]);
  return { ...service, handlers: Object.fromEntries(handlers) };
};

/** Runs all until the first fails, and ends with the last: none works on when the next tenure begins. */
const together = async (signal: AbortSignal, works: readonly ((signal: AbortSignal) => Promise<void>)[]) => {
  const stop = new AbortController();
  const either = AbortSignal.any([signal, stop.signal]);
  const running = works.map((work) => work(either));
  const failures: unknown[] = [];
  for (const one of running)
    one.catch((error: unknown) => {
      failures.push(error);
      stop.abort();
    });
  await Promise.allSettled(running);
  if (failures.length > 0) throw failures[0];
};

/** What the topics' settings must be. */
const wantedSettings = (minInsync: number | undefined): Readonly<Record<string, string>> => {
  const { "min.insync.replicas": replicas, ...others } = evidenceSettings(minInsync ?? 1);
  return minInsync === undefined ? others : { ...others, "min.insync.replicas": replicas as string };
};

/** A tenure that seals: all of `works`, once the store was compared with its topic. */
const sealing =
  (
    compared: Promise<unknown>,
    broken: (error: LedgerBroken) => void,
    works: (tenure: Tenure) => readonly ((signal: AbortSignal) => Promise<void>)[],
  ) =>
  async (tenure: Tenure): Promise<void> => {
    const aborted = new Promise((resolve) => tenure.signal.addEventListener("abort", resolve, { once: true }));
    await Promise.race([compared, aborted]);
    if (tenure.signal.aborted) return;
    try {
      await together(tenure.signal, works(tenure));
    } catch (error) {
      if (error instanceof LedgerBroken) broken(error);
      if (!(error instanceof Interrupted)) throw error;
    }
  };

/** A policy names the ledger in one year. */
const inAllYears = (parts: AuditorServiceParts): AuditorServiceParts => {
  const { witnessing, clock } = parts;
  if (!witnessing) return parts;
  return { ...parts, witnessing: { ...witnessing, policy: policyInEachYear(witnessing.policy, clock.now()) } };
};

/** All that is not served: the ledger, what is derived from it, and what is recorded about it. Throws ConfigError for witnesses of another ledger. */
const openCore = async (parts: AuditorServiceParts) => {
  const { store, bus, clock, log } = parts;
  await assertNoRebuild(store);
  const origin = parts.origin ?? `${parts.trustDomain}/ledger`;
  const keys = ledgerKeys(parts.keyring, origin);
  const seal = sealOf(origin, keys);
  const { witnessing } = parts;
  if (witnessing) checkPolicy(witnessing.policy, seal.verifierKeys(yearOf(clock.now())));
  const waker = openWaker(name, parts);
  const outbox = await openOutbox({ ...parts, service: name, topic: topicNames.evidence, wake: waker.wake });
  const batches = await store.collection<BatchDoc>("batches");
  const models = await openReadModels(store);
  const follower = await openFollower({ models, seal, clock, log });
  const projection = openProjection({
    models,
    epochs: parts.epochs,
    trust: openProducerTrust(parts),
    report: openGapReporter(outbox, parts),
  });
  const ledger = openLedger({ batches, models, projection, seal, clock, published: follower.published });
  const drifts = openDriftLog(outbox, log);
  const { latest } = follower;
  const topics = openTopicWatch({ bus, drifts, latest, wanted: wantedSettings(parts.minInsync), clock, log });
  const passes = await store.collection<PassRow>("passes");
  const cosigning = witnessing && { policy: witnessing.policy, rows: await openCosigned(store) };
  const clocks = { cosigning, stamped: parts.timestamping && (await openTimestampRows(store)) };
  const size = () => latest()?.size ?? 0;
  const rotateKey = (signal: AbortSignal) => watchKeyRotation({ outbox, keys, origin, size, clock, log }, signal);
  return { waker, outbox, batches, models, follower, ledger, drifts, topics, passes, clocks, rotateKey };
};

/** Seals the five topics while it holds the lease, and answers from what it or another replica has sealed. */
export const openAuditor = async (given: AuditorServiceParts): Promise<Auditor> => {
  const parts = inAllYears(given);
  const { bus, clock, random, log, instance, reverifyPerSecond: perSecond = defaultPerSecond } = parts;
  const core = await openCore(parts);
  const { waker, outbox, batches, follower, ledger, topics } = core;
  let lease: Lease | undefined;
  const failed = Promise.withResolvers<never>();
  failed.promise.catch(() => undefined); // whoever waits sees it; nobody has to
  const broken = (error: LedgerBroken) => {
    log.error({ err: error }, "the ledger is broken: what is stored contradicts what was signed");
    failed.reject(error);
    void lease?.close();
  };
  follower.failed.catch(failed.reject);
  outbox.failed.catch(failed.reject);
  let isReady = false;

  const people = openPeople({ ...parts, ...core });
  people.failed.catch(failed.reject);
  const latestBatch = () => follower.latest()?.batch ?? 0;
  const tiles = await openPublicLog(parts, core);
  const { commits } = outbox.streams;
  const health = openEvidenceHealth({ ...core, ...tiles.face, commits, bus, clock, log });
  const server = await serve(parts, [
    whenReady(auditorService({ ...core, health, authority: parts, clock, random, broken }), () => isReady),
    ...people.services.map((service) => whenReady(service, () => isReady && people.isReplayed())),
    relayService(outbox.relay, outbox.topic),
  ]).catch((error: unknown) => tiles.close().then(() => Promise.reject(error)));
  const address = advertisedAddress(parts, server.port);
  outbox.start(address);
  const { exclusive } = parts;
  const contender = { rows: outbox.leases, holder: instance, address: () => address, clock, log, exclusive };
  // A lease of its own: whatever becomes of this topic, sealing goes on.
  const siem = openLease({
    ...contender,
    name: "siem-auditor",
    work: ({ signal }) => publishSiem({ bus, batches, latest: latestBatch, instance, clock, log }, signal),
  });
  const erasing = openLease({ ...contender, name: "people-auditor", work: people.work });
  lease = openLease({
    ...contender,
    name: sealLease,
    work: sealing(outbox.compared, broken, (tenure) => [
      (signal) => sealUntil({ ledger, bus, topics, ...tiles.guard, clock, log }, { ...tenure, signal }),
      ...reverification({ ...core, files: tiles.files, bus, perSecond, clock, log }),
      (signal) => watchEpochs({ ...core, epochs: parts.epochs, bus, clock, log }, signal),
      ...tiles.works,
      core.rotateKey,
    ]),
  });
  const closing = new AbortController();
  const ready = Promise.withResolvers<void>();
  ready.promise.catch(() => undefined); // whoever runs the service looks at it
  outbox.compared.then(() => {
    isReady = true;
    void keepHealth(parts, server.health, closing.signal, ready.resolve);
    void health.run(closing.signal).catch(failed.reject);
  }, ready.reject);
  const close = async () => {
    closing.abort();
    await tiles.close();
    await server.close(closeGraceMs);
    await people.close();
    await Promise.all([lease?.close(), siem.close(), erasing.close()]);
    await outbox.close();
    await follower.close();
    waker.close();
  };
  let closed: Promise<void> | undefined;
  return {
    port: server.port,
    ...tiles.face,
    ready: ready.promise,
    failed: failed.promise,
    close() {
      closed ??= close();
      return closed;
    },
  };
};
