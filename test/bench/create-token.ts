import { randomUUID } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { availableParallelism, tmpdir } from "node:os";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { Delivery, EvidenceMode } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import { CreateTokenRequestSchema, IssuerService } from "@curfew/contracts/gen/curfew/issuer/v1/issuer_pb.ts";
import { encapsulate, generateKeyPair, open, registerKeyInfo } from "@curfew/keyring/hpke.ts";
import { openChannel } from "@curfew/rpc/channel.ts";
import { openClient } from "@curfew/rpc/client.ts";
import { methodName } from "@curfew/rpc/service-definition.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import type { Client } from "@grpc/grpc-js";
import { type Child, openChild } from "./child.ts";
import { type Figure, median, micros, millis, ofRounds, perSecond, ratio } from "./figures.ts";
import { watchOthers } from "./machine.ts";

/**
 * CreateToken acknowledged, its commit durable, beside plain SQLite inserts of the same bytes with a commit each; and beside what bounds
 * it here whatever CreateToken does: a bare grpc-js server that inserts as many bytes through the same store and answers.
 */

const callers = 64;
const policy = `
rules:
  - name: read-invoices
    subjects: [workload/billing]
    scopes: [invoices:read]
    resources: [invoices/*]
    audiences: [crm]
    purposes: [billing]
    data_categories: [contact]
    delivery: [sealed, direct]
    evidence: batched
`;
const grant = {
  scopes: ["invoices:read"],
  resources: ["invoices/*"],
  audiences: ["crm"],
  purposes: ["billing"],
  dataCategories: ["contact"],
  evidenceMode: EvidenceMode.BATCHED,
};
/** About the bytes of the commit document of a token: event, headers, sealed secret; and of an answer. */
const commitBytes = 1_200;
const answerBytes = 300;
const same = (bytes: Buffer): Buffer => bytes;

/** Inserts of as many bytes, each with its own commit: write-ahead log; FULL is our durability, OFF waits for no fsync. */
const openPeer = (synchronous: "FULL" | "OFF") => {
  const dir = mkdtempSync(join(tmpdir(), "curfew-bench-"));
  const db = new DatabaseSync(join(dir, "peer.db"));
  db.exec(`PRAGMA journal_mode = WAL; PRAGMA synchronous = ${synchronous}`);
  db.exec("CREATE TABLE commits (id TEXT PRIMARY KEY NOT NULL, doc BLOB NOT NULL)");
  const insert = db.prepare("INSERT INTO commits VALUES (?, ?)");
  const doc = systemRandom(commitBytes);
  return {
    run(ms: number): number {
      const startMs = performance.now();
      let n = 0;
      for (; performance.now() - startMs < ms; n += 1) insert.run(`tokens/tok_${randomUUID()}@0000000001`, doc);
      return (n / (performance.now() - startMs)) * 1000;
    },
    close() {
      db.close();
      rmSync(dir, { recursive: true });
    },
  };
};

/** So many callers, each asking again at once: calls answered a second. */
const rateOf = async (callers: number, ms: number, call: () => Promise<void>): Promise<number> => {
  const startMs = performance.now();
  let answered = 0;
  const caller = async () => {
    while (performance.now() - startMs < ms) {
      await call();
      answered += 1;
    }
  };
  await Promise.all(Array.from({ length: callers }, caller));
  return (answered / (performance.now() - startMs)) * 1000;
};

const asking = (client: Client, path: string, bytes: () => Buffer, check: (answer: Buffer) => void) => () =>
  new Promise<void>((resolve, reject) => {
    client.makeUnaryRequest(path, same, same, bytes(), { deadline: Date.now() + 10_000 }, (error, answer) => {
      if (error || !answer) return reject(error);
      check(answer);
      resolve();
    });
  });

/** The same connection and as many bytes, inserted by a server that does nothing else. */
const openFloor = async () => {
  const child = await openChild("echo-process.ts", { insertBytes: commitBytes });
  const address = await child.address("echo");
  const connection = await child.connection("workload/billing");
  const { client } = openChannel({ ...connection, address, expectService: "echo", clock: systemClock });
  const bytes = systemRandom(answerBytes);
  const call = asking(
    client,
    "/echo/Echo",
    () => Buffer.from(bytes),
    () => undefined,
  );
  return {
    run: (callers: number, ms: number) => rateOf(callers, ms, call),
    cpu: () => child.cpu(),
    close: async () => {
      client.close();
      await child.close();
    },
  };
};

const openCallers = async (server: Child) => {
  const address = await server.address("issuer");
  const as = async (path: string) => ({
    ...(await server.connection(path)),
    address,
    expectService: "issuer",
    clock: systemClock,
  });
  const admin = openClient(IssuerService, await as("person/ada"));
  await admin.rpc.publishPolicy({ requestId: randomUUID(), policy: "tokens", document: policy });
  admin.close();
  const billing = openClient(IssuerService, await as("workload/billing"));
  const pair = generateKeyPair(systemRandom);
  const requestId = randomUUID();
  const { challenge } = await billing.rpc.registerKey({ requestId, publicKey: pair.publicKey });
  if (!challenge) throw new Error("no challenge");
  const info = registerKeyInfo(`spiffe://${(await server.trust()).trustDomain}/workload/billing`);
  const proof = open(pair.privateKey, challenge.enc, challenge.ciphertext, info, Buffer.alloc(0));
  await billing.rpc.registerKey({ requestId, publicKey: pair.publicKey, proof });
  billing.close();
  const { client } = openChannel(await as("workload/billing"));
  const path = `/${methodName(IssuerService.method.createToken)}`;
  const output = IssuerService.method.createToken.output;
  const request = (delivery: Delivery) => () =>
    Buffer.from(
      toBinary(
        CreateTokenRequestSchema,
        create(CreateTokenRequestSchema, { requestId: randomUUID(), grant, delivery }),
      ),
    );
  const check = (answer: Buffer) => {
    if (!fromBinary(output, answer).token) throw new Error("no token");
  };
  return {
    close: () => client.close(),
    run: (delivery: Delivery, callers: number, ms: number) =>
      rateOf(callers, ms, asking(client, path, request(delivery), check)),
  };
};

type Callers = Awaited<ReturnType<typeof openCallers>>;
const deliveries = { sealed: Delivery.SEALED, direct: Delivery.DIRECT } as const;
const names = ["sealed", "direct"] as const;

const nothing = { calls: 0, main: 0, all: 0, client: 0, commits: 0 };

/** Rounds in turn; for each delivery what a call costs both processes, over all rounds; and what others took of the machine meanwhile. */
const measure = async (
  { server, issuing, peer, floor }: { server: Child; issuing: Callers; peer: Peer; floor: Floor },
  rounds: number,
  ms: number,
) => {
  const rates = { peer: [] as number[], floor: [] as number[], sealed: [] as number[], direct: [] as number[] };
  const cost = { sealed: { ...nothing }, direct: { ...nothing } };
  await floor.cpu();
  const others = watchOthers();
  const ownCpu = process.cpuUsage();
  for (let round = 0; round < rounds; round += 1) {
    rates.peer.push(peer.run(ms));
    rates.floor.push(await floor.run(callers, ms));
    for (const name of names) {
      const [, commits] = await Promise.all([server.cpu(), server.commits()]);
      const before = process.cpuUsage();
      const rate = await issuing.run(deliveries[name], callers, ms);
      const { user, system } = process.cpuUsage(before);
      const [{ main, all }, committed] = await Promise.all([server.cpu(), server.commits()]);
      rates[name].push(rate);
      const sum = cost[name];
      sum.calls += (rate * ms) / 1000;
      sum.main += main * 1000;
      sum.all += all * 1000;
      sum.client += user + system;
      sum.commits += committed - commits;
    }
  }
  const { user, system } = process.cpuUsage(ownCpu);
  const oursMs = (user + system + cost.sealed.all + cost.direct.all) / 1000 + (await floor.cpu()).all;
  const costs = names.map((name) => {
    const { calls, main, all, client, commits } = cost[name];
    const cpu = `${micros(main / calls)} of the serving thread, ${micros(all / calls)} of all its threads, ${micros(client / calls)} of the client`;
    return `${name}, a call: ${cpu}; ${ratio(commits / calls)} fsyncs of the store`;
  });
  return { rates, costs: [...costs, others(oursMs)] };
};

/** What no change of ours can better on this machine. */
const bounds = async (fsyncing: number, floor: readonly number[]) => {
  const unsynced = openPeer("OFF");
  unsynced.run(200);
  const withoutFsync = unsynced.run(500);
  unsynced.close();
  const { publicKey } = generateKeyPair(systemRandom);
  const seal = async () => void (await encapsulate(publicKey));
  await rateOf(1, 200, seal);
  const before = process.cpuUsage();
  const sealing = await rateOf(64, 500, seal);
  const { user, system } = process.cpuUsage(before);
  const fsyncMs = 1000 / fsyncing - 1000 / withoutFsync;
  return [
    `an insert of the peer takes ${millis(1000 / fsyncing)}, ${millis(fsyncMs)} of them for its own fsync; where that takes 3 ms, it does 300 a second`,
    `a bare grpc-js server with the same insert and nothing else: ${perSecond(median(floor))}, ratio ${ratio(median(floor) / fsyncing)}; its client shares the ${availableParallelism()} cores`,
    `an X25519 encapsulation: ${micros((user + system) / (sealing / 2))} of a core`,
  ];
};

/** Ratios at other numbers of callers, one short run each. */
const axis = async (issuing: Callers, peer: Peer, ms: number) => {
  const rows: string[] = [];
  for (const some of [1, 8, 64, 256]) {
    const against = peer.run(ms);
    const sealed = (await issuing.run(Delivery.SEALED, some, ms)) / against;
    const direct = (await issuing.run(Delivery.DIRECT, some, ms)) / against;
    rows.push(`${some}: ${ratio(sealed)} and ${ratio(direct)}`);
  }
  return `ratio, sealed and shown once, by callers: ${rows.join("; ")}`;
};
type Peer = ReturnType<typeof openPeer>;
type Floor = Awaited<ReturnType<typeof openFloor>>;

export const createToken = async ({ quick }: { readonly quick: boolean }): Promise<Figure[]> => {
  const server = await openChild("server-process.ts", { services: ["issuer"], tokens: 0, evidence: "batched" });
  const peer = openPeer("FULL");
  const floor = await openFloor();
  const issuing = await openCallers(server);
  try {
    const ms = quick ? 1_500 : 4_000;
    for (const name of names) await issuing.run(deliveries[name], callers, ms);
    await floor.run(callers, ms);
    peer.run(500);
    const { rates, costs } = await measure({ server, issuing, peer, floor }, quick ? 3 : 7, ms);
    const by = await axis(issuing, peer, ms / 2);
    const what = `CreateToken acknowledged, ${callers} callers / SQLite inserts of the same bytes, one commit each`;
    const against = (rounds: readonly number[]) => rounds.map((rate, i) => rate / (rates.peer[i] as number));
    const notes = [...costs, ...(await bounds(median(rates.peer), rates.floor)), by];
    const file = process.env.CURFEW_BENCH_PROFILE;
    if (file !== undefined) {
      await server.profile(undefined);
      await issuing.run(Delivery.SEALED, callers, 5_000);
      await server.profile(`${file}.create.cpuprofile`);
    }
    return [
      ofRounds(against(rates.sealed), { what: `${what}; sealed`, show: ratio, target: { least: 1 }, notes }),
      ofRounds(against(rates.direct), { what: `${what}; shown once`, show: ratio, target: { least: 1 } }),
      ofRounds(rates.sealed, { what: "    CreateToken, sealed", show: perSecond }),
      ofRounds(rates.direct, { what: "    CreateToken, shown once", show: perSecond }),
      ofRounds(rates.floor, { what: "    bare grpc-js server, the same insert", show: perSecond }),
      ofRounds(rates.peer, { what: "    SQLite inserts", show: perSecond }),
    ];
  } finally {
    issuing.close();
    peer.close();
    await Promise.all([server.close(), floor.close()]);
  }
};
