import { randomUUID } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { Delivery, EvidenceMode } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import { CreateTokenRequestSchema, IssuerService } from "@curfew/contracts/gen/curfew/issuer/v1/issuer_pb.ts";
import { generateKeyPair, open, registerKeyInfo } from "@curfew/keyring/hpke.ts";
import { openChannel } from "@curfew/rpc/channel.ts";
import { openClient } from "@curfew/rpc/client.ts";
import { methodName } from "@curfew/rpc/service-definition.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { type Child, openChild } from "./child.ts";
import { type Figure, micros, ofRounds, perSecond, ratio } from "./figures.ts";

/** CreateToken acknowledged, its commit durable, beside plain SQLite inserts of the same bytes with a commit each. */

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
/** About the bytes of the commit document of a token: event, headers, sealed secret. */
const commitBytes = 1_200;
const same = (bytes: Buffer): Buffer => bytes;

/** Inserts of as many bytes, each with its own commit and the same durability: write-ahead log, synchronous=FULL. */
const openPeer = () => {
  const dir = mkdtempSync(join(tmpdir(), "curfew-bench-"));
  const db = new DatabaseSync(join(dir, "peer.db"));
  db.exec("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL");
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
  return {
    close: () => client.close(),
    async run(delivery: Delivery, ms: number): Promise<number> {
      let acknowledged = 0;
      const untilMs = performance.now() + ms;
      const call = () =>
        new Promise<void>((resolve, reject) => {
          const request = create(CreateTokenRequestSchema, { requestId: randomUUID(), grant, delivery });
          const bytes = Buffer.from(toBinary(CreateTokenRequestSchema, request));
          client.makeUnaryRequest(path, same, same, bytes, { deadline: Date.now() + 10_000 }, (error, answer) => {
            if (error || !answer) return reject(error);
            if (!fromBinary(output, answer).token) throw new Error("no token");
            acknowledged += 1;
            resolve();
          });
        });
      const startMs = performance.now();
      await Promise.all(
        Array.from({ length: callers }, async () => {
          while (performance.now() < untilMs) await call();
        }),
      );
      return (acknowledged / (performance.now() - startMs)) * 1000;
    },
  };
};

export const createToken = async ({ quick }: { readonly quick: boolean }): Promise<Figure[]> => {
  const server = await openChild("server-process.ts", { services: ["issuer"], tokens: 0, evidence: "batched" });
  const peer = openPeer();
  const issuing = await openCallers(server);
  try {
    const ms = quick ? 1_500 : 4_000;
    await issuing.run(Delivery.SEALED, ms);
    await issuing.run(Delivery.DIRECT, ms);
    peer.run(500);
    const rates = { peer: [] as number[], sealed: [] as number[], direct: [] as number[] };
    const costs: string[] = [];
    await server.cpu();
    for (let round = 0; round < (quick ? 3 : 7); round += 1) {
      rates.peer.push(peer.run(ms));
      await server.cpu();
      for (const [name, delivery] of [
        ["sealed", Delivery.SEALED],
        ["direct", Delivery.DIRECT],
      ] as const) {
        const rate = await issuing.run(delivery, ms);
        rates[name].push(rate);
        const { main, all } = await server.cpu();
        const calls = (rate * ms) / 1000;
        costs.push(
          `${name}: ${micros((main * 1000) / calls)} of the serving thread, ${micros((all * 1000) / calls)} of all threads`,
        );
      }
    }
    const file = process.env.CURFEW_BENCH_PROFILE;
    if (file !== undefined) {
      await server.profile(undefined);
      await issuing.run(Delivery.SEALED, 5_000);
      await server.profile(`${file}.create.cpuprofile`);
    }
    const against = (rounds: readonly number[]) => rounds.map((rate, i) => rate / (rates.peer[i] as number));
    const what = `CreateToken acknowledged, ${callers} callers / SQLite inserts of the same bytes, one commit each`;
    return [
      ofRounds(against(rates.sealed), {
        what: `${what}; sealed`,
        show: ratio,
        target: { least: 1 },
        notes: [
          ...costs.slice(-2),
          "Concurrent callers share an fsync: where one takes 3 ms the peer does 300 a second.",
        ],
      }),
      ofRounds(against(rates.direct), { what: `${what}; shown once`, show: ratio, target: { least: 1 } }),
      ofRounds(rates.sealed, { what: "    CreateToken, sealed", show: perSecond }),
      ofRounds(rates.direct, { what: "    CreateToken, shown once", show: perSecond }),
      ofRounds(rates.peer, { what: "    SQLite inserts", show: perSecond }),
    ];
  } finally {
    issuing.close();
    peer.close();
    await server.close();
  }
};
