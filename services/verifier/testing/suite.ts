import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Message } from "@bufbuild/protobuf";
import { VerifierService } from "@curfew/contracts/gen/curfew/verifier/v1/verifier_pb.ts";
import {
  Health,
  HealthCheckResponse_ServingStatus as Serving,
} from "@curfew/contracts/gen/grpc/health/v1/health_pb.ts";
import { openSqliteStore } from "@curfew/document-store/sqlite.ts";
import type { InRecord } from "@curfew/event-log/bus.ts";
import { encodeEvent, readEvent } from "@curfew/event-log/envelope.ts";
import type { EpochRow } from "@curfew/event-log/epochs.ts";
import { eventTypeOf, topicNames } from "@curfew/event-log/event-types.ts";
import { openSqliteBus } from "@curfew/event-log/sqlite.ts";
import { openKeyring } from "@curfew/keyring/keyring.ts";
import { openPersonalStore } from "@curfew/personal-data/personal-store.ts";
import { openClient } from "@curfew/rpc/client.ts";
import { createIdentitySource } from "@curfew/rpc/credentials.ts";
import { issue, newAuthority, trustDomain } from "@curfew/rpc/testing/harness.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import { openLog } from "@curfew/runtime/log.ts";
import { parseOrganisation } from "@curfew/runtime/organisation.ts";
import { systemRandom, uuidV7 } from "@curfew/runtime/random.ts";
import { mintSecret } from "@curfew/token-format/secret.ts";
import { openVerifier } from "../service.ts";
import { gateBus } from "./bus-gate.ts";
import { digestOf } from "./histories.ts";
import { openTestRevocation } from "./revocation.ts";

const organisation = parseOrganisation(`
controllers:
  - { id: acme, name: Acme, contact: a, dpo: b }
  - { id: other, name: Other, contact: a, dpo: b }
resource_services:
  - { name: crm, controllers: [acme] }
  - { name: shop, controllers: [acme, other] }
`);

export const useOf = (more: object = {}) => ({
  scope: "invoices:read",
  resource: "invoices/7",
  purpose: "billing",
  dataCategories: ["contact"],
  controller: "acme",
  maxPeople: 1n,
  maxRecords: 1n,
  ...more,
});

const topics = Object.fromEntries(Object.values(topicNames).map((name) => [name, name === topicNames.uses ? 12 : 1]));

/** One verifier on a real bus, store, keyring and mutual TLS, all files in a directory of its own; everything it did can be read back. */
export const openVerifierSuite = async (options: { readonly readUses?: boolean } = {}) => {
  const dir = mkdtempSync(join(tmpdir(), "curfew-verifier-"));
  const authority = await newAuthority();
  const store = await openSqliteStore({ file: join(dir, "producers.db") });
  const personalStore = await openSqliteStore({ file: join(dir, "personal.db") });
  const sqlite = await openSqliteBus({
    file: join(dir, "bus.db"),
    epochs: await store.collection<EpochRow>("epochs"),
    clock: systemClock,
    topics,
  });
  const gate = gateBus(sqlite, topicNames.uses);
  const keysDir = join(dir, "keys");
  const keyring = openKeyring({ dir: keysDir, random: systemRandom, clock: systemClock });
  const personal = await openPersonalStore({ store: personalStore, keysDir, random: systemRandom, clock: systemClock });
  const logged: string[] = [];
  const log = openLog({ service: "verifier", level: "debug", write: (line) => void logged.push(line) });
  let revocation = await openTestRevocation({ authority, bus: sqlite });
  const producers = new Map<string, Awaited<ReturnType<typeof sqlite.openProducer>>>();
  const closers: (() => Promise<void> | void)[] = [];
  const uses: InRecord[] = [];
  if (options.readUses ?? true)
    await sqlite.subscribe({
      name: "reader",
      topics: [topicNames.uses],
      start: () => 0,
      onRecords: (batch) => void uses.push(...batch),
    });

  const channelOf = async (port: number, spiffePath: string) => ({
    address: `localhost:${port}`,
    identity: createIdentitySource(await issue(authority, spiffePath)),
    caPem: authority.certPem,
    trustDomain,
    expectService: "verifier",
    clock: systemClock,
  });

  let starts = 0;
  const start = async () => {
    starts += 1;
    const service = await openVerifier({
      store,
      personal,
      bus: gate.bus,
      keyring,
      organisation,
      clock: systemClock,
      random: systemRandom,
      log,
      instance: `verifier-${starts}`,
      address: "localhost:0",
      identity: createIdentitySource(await issue(authority, "/service/verifier")),
      caPem: authority.certPem,
      trustDomain,
      reflection: false,
      exclusive: true,
      revocationAddresses: [`localhost:${revocation.port}`],
    });
    closers.push(() => service.close());
    return service;
  };

  return {
    dir,
    authority,
    busStats: () => sqlite.stats(),
    gate,
    uses,
    logged,
    keyring,
    personal,
    start,
    revocation: () => revocation,
    stopRevocation: () => revocation.close(),
    restartRevocation: async () => {
      revocation = await openTestRevocation({ authority, bus: sqlite, port: revocation.port });
    },
    client: async (port: number, workload = "crm") => {
      const client = openClient(VerifierService, await channelOf(port, `/workload/${workload}`));
      closers.push(() => client.close());
      return client.rpc;
    },
    serving: async (port: number) => {
      const client = openClient(Health, await channelOf(port, "/workload/crm"));
      try {
        return (await client.rpc.check({ service: VerifierService.typeName })).status === Serving.SERVING;
      } finally {
        client.close();
      }
    },
    /** On the topic where it belongs; answers its position. */
    publish: async (message: Message) => {
      const { topic } = eventTypeOf(message);
      const producer = producers.get(topic) ?? (await sqlite.openProducer({ topic, name: "tester/1" }));
      producers.set(topic, producer);
      const { tokenId = "subjects/one" } = message as Message & { tokenId?: string };
      const nowMs = systemClock.now();
      const traceparent = `00-${"1".repeat(32)}-${"2".repeat(16)}-00`;
      const event = encodeEvent(message, {
        source: "/test",
        subject: tokenId,
        nowMs,
        random: systemRandom,
        traceparent,
      });
      const [offset = 0] = await producer.send([{ partition: 0, key: tokenId, ...event }]);
      return { topic, partition: 0, offset: BigInt(offset) };
    },
    /** A secret and what is stored of it. */
    mint: () => {
      const secret = mintSecret("s", systemRandom);
      return { secret, digest: digestOf(keyring.peppers().current.key, secret) };
    },
    /** The facts on the uses topic, as far as they have been read. */
    facts: () => uses.map((record) => readEvent(record)),
    usesEnd: async () => (await sqlite.ends(topicNames.uses)).reduce((sum, end) => sum + end, 0),
    newId: () => uuidV7(systemClock.now(), systemRandom),
    /** Every byte of every file but the keys', and every line logged. */
    traces: () => [
      ...readdirSync(dir, { withFileTypes: true })
        .filter((entry) => entry.isFile())
        .map((entry) => readFileSync(join(dir, entry.name))),
      Buffer.from(logged.join("\n")),
    ],
    close: async () => {
      gate.release();
      gate.releaseReading();
      for (const close of closers.toReversed()) await close();
      await revocation.close();
      await sqlite.close();
      await Promise.all([store.close(), personalStore.close()]);
      rmSync(dir, { recursive: true });
    },
  };
};
export type VerifierSuite = Awaited<ReturnType<typeof openVerifierSuite>>;
