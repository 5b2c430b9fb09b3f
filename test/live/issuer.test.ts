import { randomInt, randomUUID } from "node:crypto";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { Delivery } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import { IssuerService } from "@curfew/contracts/gen/curfew/issuer/v1/issuer_pb.ts";
import { openMongoStore } from "@curfew/document-store/mongo.ts";
import { openSqliteStore } from "@curfew/document-store/sqlite.ts";
import { type ReadEvent, readEvent } from "@curfew/event-log/envelope.ts";
import type { EpochRow } from "@curfew/event-log/epochs.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { openKafkaBus } from "@curfew/event-log/kafka.ts";
import { type CommitDoc, openCommits } from "@curfew/event-log/streams.ts";
import { applyTopics } from "@curfew/event-log/topics.ts";
import { openClient } from "@curfew/rpc/client.ts";
import { createIdentitySource } from "@curfew/rpc/credentials.ts";
import { openIdentityFiles } from "@curfew/rpc/identity-files.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { seededRandom } from "@curfew/simulation/seeded-random.ts";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { freePort, openServerProcess, type ServerProcess } from "../../deploy/dev/server-process.ts";
import { type FerretServer, type KafkaServer, startFerret, startKafka } from "../../deploy/dev/servers.ts";

const trustDomain = "test.example";
const hourMs = 3_600_000;
const callers = 64;
const seed = Number(process.env.TEST_SEED ?? randomInt(2 ** 31));
const policy = `
rules:
  - name: anything
    subjects: [workload/billing]
    scopes: [invoices:read]
    resources: [invoices/*]
    audiences: [invoices]
    purposes: [billing]
    delivery: [direct]
`;
const grant = {
  scopes: ["invoices:read"],
  resources: ["invoices/*"],
  audiences: ["invoices"],
  purposes: ["billing"],
};

describe("two issuers on a real broker and a real database", () => {
  let dir: string;
  let kafka: KafkaServer;
  let ferret: FerretServer;
  let files: Awaited<ReturnType<typeof openIdentityFiles>>;
  const issuers: ServerProcess[] = [];
  const ports: number[] = [];
  const closers: (() => void)[] = [];

  const startIssuer = async (n: number, more: Record<string, string> = {}) => {
    const port = ports[n] as number;
    const environment = {
      CURFEW_MONGO_URL: ferret.url,
      CURFEW_MONGO_TLS: "false",
      CURFEW_KAFKA_BROKERS: kafka.brokers.join(),
      CURFEW_KAFKA_TLS: "false",
      CURFEW_KEYS_DIR: join(dir, "keys"),
      CURFEW_IDENTITY_DIR: files.dir("service/issuer"),
      CURFEW_IDENTITIES_DIR: files.createdDir,
      CURFEW_CA_FILE: files.caFile,
      CURFEW_TRUST_DOMAIN: trustDomain,
      CURFEW_ORGANISATION_FILE: join(dir, "organisation.yaml"),
      CURFEW_LISTEN: `localhost:${port}`,
      ...more,
    };
    const main = fileURLToPath(new URL("../../services/issuer/main.ts", import.meta.url));
    issuers[n] = await openServerProcess({
      command: ["env", ...Object.entries(environment).map(([k, v]) => `${k}=${v}`), process.execPath, main],
      port,
      logFile: join(dir, `issuer-${n}.log`),
      goodCodes: [0],
    });
  };
  const client = async (path: string, port: number) => {
    const opened = openClient(IssuerService, {
      address: `localhost:${port}`,
      identity: createIdentitySource(await files.ensure(path, { validMs: hourMs })),
      caPem: files.caPem,
      trustDomain,
      expectService: "issuer",
      clock: systemClock,
    });
    closers.push(() => opened.close());
    return opened.rpc;
  };

  beforeAll(async () => {
    dir = mkdtempSync(join(tmpdir(), "curfew-issuer-live-"));
    mkdirSync(join(dir, "keys"), { mode: 0o700 });
    writeFileSync(join(dir, "organisation.yaml"), "people: [{ name: ada, roles: [admin] }]\n");
    files = await openIdentityFiles({ dir, trustDomain, clock: systemClock, random: systemRandom });
    await files.ensure("service/issuer", { validMs: hourMs, dnsNames: ["localhost"] });
    ferret = await startFerret();
    kafka = await startKafka({
      settings: { "broker.session.timeout.ms": "1500", "broker.heartbeat.interval.ms": "300" },
    });
    await applyTopics(kafka.brokers, { replicationFactor: 1, minInsync: 1 });
    for (const n of [0, 1]) {
      ports[n] = await freePort();
      await startIssuer(n);
    }
  });
  afterAll(async () => {
    for (const close of closers) close();
    await Promise.all(issuers.map((issuer) => issuer.stop()));
    await kafka.stop();
    await ferret.stop();
    rmSync(dir, { recursive: true, force: true });
  });

  test("lose nothing that was acknowledged when one of them, the broker and the database are killed in turn", async () => {
    console.log(`TEST_SEED=${seed}`);
    const random = seededRandom(seed);
    const admin = await client("person/ada", ports[0] as number);
    const publish = () => admin.publishPolicy({ requestId: randomUUID(), policy: "tokens", document: policy });
    await vi.waitFor(publish, { timeout: 60_000, interval: 500 });
    const clients = await Promise.all(ports.map((port) => client("workload/billing", port)));

    const acknowledged = new Map<string, string>();
    const stop = new AbortController();
    let open = 0;
    const call = async () => {
      while (!stop.signal.aborted) {
        const request = { requestId: randomUUID(), grant, delivery: Delivery.DIRECT };
        // Whatever happens, the same request again, at either replica, until it is answered.
        for (let answered = false; !answered; ) {
          open += 1;
          const use = random.pick(clients);
          const answer = await use.createToken(request, { deadlineMs: 5_000 }).catch(() => undefined);
          open -= 1;
          answered = answer !== undefined;
          if (answer) acknowledged.set(request.requestId, answer.token?.tokenId ?? "");
          else await sleep(200);
        }
      }
    };
    const working = Promise.all(Array.from({ length: callers }, call));
    const more = async (n: number) => {
      const from = acknowledged.size;
      await vi.waitFor(() => expect(acknowledged.size).toBeGreaterThan(from + n), { timeout: 90_000, interval: 100 });
    };
    const victims = {
      issuer: { kill: () => issuers[0]?.kill(), restart: () => startIssuer(0) },
      broker: { kill: () => kafka.kill(), restart: () => kafka.restart() },
      database: { kill: () => ferret.kill(), restart: () => ferret.restart() },
    };
    for (const [name, victim] of Object.entries(victims)) {
      await more(50);
      await sleep(random.below(1_000));
      const inFlight = open;
      await victim.kill();
      console.log(`killed the ${name} with ${inFlight} calls in flight, ${acknowledged.size} acknowledged`);
      expect(inFlight).toBeGreaterThan(0);
      await sleep(500 + random.below(1_500));
      await victim.restart();
    }
    await more(50);
    stop.abort();
    await working;

    const wanted = new Set(acknowledged.values());
    expect(wanted.size).toBe(acknowledged.size);
    const events = await readTopic(kafka.brokers, wanted);
    const streams = new Map<string, Map<number, Set<string>>>();
    for (const { subject, sequence = 0, id } of events) {
      const stream = streams.get(subject) ?? new Map<number, Set<string>>();
      streams.set(subject, stream.set(sequence, (stream.get(sequence) ?? new Set()).add(id)));
    }
    for (const tokenId of wanted) {
      const stream = streams.get(`tokens/${tokenId}`);
      expect([...(stream ?? [])].map(([sequence, ids]) => [sequence, ids.size])).toEqual([[1, 1]]);
    }
  });

  test("one whose database comes from a backup ends, and serves again once it has restored itself from the topic", async () => {
    await Promise.all(issuers.map((issuer) => issuer.stop()));
    const store = await openMongoStore({ url: ferret.url, database: "curfew_issuer" });
    closers.push(() => void store.close());
    const commits = await openCommits(store);
    const all = async () => {
      const found: CommitDoc[] = [];
      for (let from = ""; ; from = `${found.at(-1)?._id}!`) {
        const page = await commits.find({ limit: 1_000, ...(from && { from }) });
        found.push(...page);
        if (page.length < 1_000) return found.map(({ unpublished: _, ...doc }) => doc);
      }
    };
    const backedUp = new Set((await all()).map(({ _id }) => _id));
    await startIssuer(0);
    const admin = await client("person/ada", ports[0] as number);
    const publish = async () => {
      const document = `${policy}# ${randomUUID()}\n`;
      return await admin.publishPolicy({ requestId: randomUUID(), policy: "tokens", document });
    };
    // On the topic, from which it is restored later: at first nobody may hold the relay's lease yet.
    const { version } = await vi.waitFor(
      async () => {
        const answer = await publish();
        expect(answer.published).toBe(true);
        return answer;
      },
      { timeout: 60_000, interval: 500 },
    );
    await issuers[0]?.stop();
    const before = await all();
    const lost = before.map(({ _id }) => _id).filter((id) => !backedUp.has(id));
    expect(await commits.delete(...lost)).toBe(lost.length);

    await startIssuer(0);
    await vi.waitFor(() => expect(readFileSync(join(dir, "issuer-0.log"), "utf8")).toContain("CURFEW_RESTORE=true"), {
      timeout: 60_000,
    });
    await vi.waitFor(() => expect(() => process.kill(issuers[0]?.pid ?? 0, 0)).toThrow("ESRCH"), { timeout: 60_000 });

    await startIssuer(0, { CURFEW_RESTORE: "true" });
    const next = await vi.waitFor(publish, { timeout: 60_000, interval: 500 });
    expect(next.version).toBe(version + 1);
    const after = await all();
    expect(after.filter(({ _id }) => before.some((doc) => doc._id === _id))).toEqual(before);
  });
});

/** Reads the tokens topic until every wanted token was seen, and a moment longer. */
const readTopic = async (brokers: readonly string[], wanted: ReadonlySet<string>): Promise<ReadEvent[]> => {
  const store = await openSqliteStore({ file: ":memory:" });
  const epochs = await store.collection<EpochRow>("epochs");
  const bus = await openKafkaBus({ brokers, clientId: "reader", epochs, clock: systemClock });
  const events: ReadEvent[] = [];
  const missing = new Set(wanted);
  await bus.subscribe({
    name: "reader",
    topics: [topicNames.tokens],
    start: () => 0,
    onRecords: (records) => {
      for (const event of records.map(readEvent)) {
        events.push(event);
        missing.delete(event.subject.slice("tokens/".length));
      }
    },
  });
  await vi.waitFor(() => expect(missing.size).toBe(0), { timeout: 30_000, interval: 100 });
  const end = (await bus.ends(topicNames.tokens))[0] ?? 0;
  await vi.waitFor(() => expect(events.length).toBeGreaterThanOrEqual(end), { timeout: 30_000, interval: 100 });
  await bus.close();
  await store.close();
  return events;
};
