import { timestampMs } from "@bufbuild/protobuf/wkt";
import type { GetRevocationResponse } from "@curfew/contracts/gen/curfew/revocation/v1/revocation_pb.ts";
import type { Collection, Doc, DocumentStore } from "@curfew/document-store/port.ts";
import type { Bus } from "@curfew/event-log/bus.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import type { RunningService } from "@curfew/rpc/replica.ts";
import { eventually } from "@curfew/rpc/testing/suite.ts";
import { afterEach, beforeEach, expect } from "vitest";
import type { LeaseRow } from "../lease-book.ts";
import { type Client, openRevocationSuite, RawWatcher, type RevocationSuite, shortLimits } from "./revocation-suite.ts";

/** Watchers with their leases, and the effective times that wait for them: a suite for each test of the file that imports this. */

export const leaseMs = 600;
export const standingMs = 3_000;
/** A lease is counted this much longer, for the clocks' error. */
export const marginMs = (ofLeaseMs: number) => ofLeaseMs / 100;
/** For what has to happen while a lease stands, on a busy machine too. */
export const longLeases = { ...shortLimits, leaseMs: 60_000 };
/** The same, where its end is waited for. */
export const standingLeases = { ...shortLimits, leaseMs: standingMs };

export let suite: RevocationSuite;
beforeEach(async () => {
  suite = await openRevocationSuite();
});
afterEach(() => suite.close());

export const watch = async (
  service: RunningService,
  instance: string,
  path = "service/verifier",
  reportsUses = false,
) => {
  const watcher = new RawWatcher(await suite.as(path, service));
  await watcher.hello(instance, reportsUses);
  return watcher;
};
/** A watcher that holds a lease. */
export const leased = async (...args: Parameters<typeof watch>) => {
  const watcher = await watch(...args);
  expect((await watcher.mark()).lease).toBeDefined();
  return watcher;
};
export const proofFrom = (client: Client, tokenId: string) => client.getRevocation({ tokenId });
export const effective = (client: Client, tokenId: string): Promise<GetRevocationResponse & { atMs: number }> =>
  eventually(async () => {
    const answer = await proofFrom(client, tokenId);
    if (!answer.effectiveAt) throw new Error("not effective yet");
    return { ...answer, atMs: timestampMs(answer.effectiveAt) };
  });
export const messages = async () => (await suite.events(topicNames.revocations)).map(({ message }) => message);
const leaseRows = async () => (await suite.store("revocation")).collection<LeaseRow>("watchers");
export const newestLease = async (instance: string) => {
  const rows = await leaseRows();
  const [row] = await rows.find({ from: `${instance}@`, below: `${instance}A`, order: -1, limit: 1 });
  return row as LeaseRow;
};

/** `store`, where `before` and `after` are asked around each operation. */
export const scripted = (
  store: DocumentStore,
  script: { before?: (what: string) => Promise<void> | void; after?: (what: string) => Promise<void> | void },
): DocumentStore => ({
  collection: async <D extends Doc>(name: string, options?: Parameters<DocumentStore["collection"]>[1]) =>
    new Proxy(await store.collection<D>(name, options), {
      get: (inner, method) => {
        const operation = inner[method as keyof Collection<D>] as
          | ((...args: unknown[]) => Promise<unknown>)
          | undefined;
        if (!operation) return undefined;
        return async (...args: unknown[]) => {
          await script.before?.(`${name}.${String(method)}`);
          const answer = await operation.apply(inner, args);
          await script.after?.(`${name}.${String(method)}`);
          return answer;
        };
      },
    }),
  ping: () => store.ping(),
  close: () => store.close(),
});

const openGate = () => {
  let gate = Promise.withResolvers<void>();
  gate.resolve();
  return {
    passed: () => gate.promise,
    shut: () => {
      gate = Promise.withResolvers();
    },
    open: () => gate.resolve(),
  };
};

/** A bus whose producers, and one whose deliveries, wait while their gate is shut; everything else goes on. */
export const gated = (bus: Bus) => {
  const [sending, delivering] = [openGate(), openGate()];
  const wrapped: Bus = {
    openProducer: async (options) => {
      const producer = await bus.openProducer(options);
      const send: typeof producer.send = async (records) => {
        await sending.passed();
        return await producer.send(records);
      };
      return { send, reachable: true, close: () => producer.close() };
    },
    subscribe: (options) =>
      bus.subscribe({
        ...options,
        onRecords: async (records) => {
          await delivering.passed();
          await options.onRecords(records);
        },
      }),
    ends: (topic) => bus.ends(topic),
    describe: (topic) => bus.describe(topic),
    ping: () => bus.ping(),
    close: () => bus.close(),
  };
  return { bus: wrapped, sending, delivering };
};
