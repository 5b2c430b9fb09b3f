import { createPrivateKey, createPublicKey, hash } from "node:crypto";
import { create, type Message } from "@bufbuild/protobuf";
import { NotificationDraftedSchema } from "@curfew/contracts/gen/curfew/events/v1/breaches_pb.ts";
import { TokenExpiredSchema } from "@curfew/contracts/gen/curfew/events/v1/tokens_pb.ts";
import { UseDecidedSchema } from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import { openChain } from "@curfew/event-log/chain.ts";
import { encodeEvent } from "@curfew/event-log/envelope.ts";
import { eventTypeOf, topicWriters } from "@curfew/event-log/event-types.ts";
import type { ProducerKey } from "@curfew/event-log/producer-key.ts";
import { signCheckpoint } from "@curfew/ledger/checkpoint.ts";
import { leafHash } from "@curfew/ledger/hash.ts";
import { encodeLeaf, type LogRecord } from "@curfew/ledger/leaf.ts";
import { type NoteSigner, noteSigner, verifierKeyText } from "@curfew/ledger/note-key.ts";
import { parsePolicy } from "@curfew/ledger/policy.ts";
import { claimedTimestamp, NONCE_BYTES, timestampQuery } from "@curfew/ledger/timestamp.ts";
import { Frontier, type NodeAddress, proveConsistency, proveInclusion } from "@curfew/ledger/tree.ts";
import { seededRandom } from "@curfew/simulation/seeded-random.ts";
import { type Selection, signManifest } from "../manifest.ts";
import { type BundleParts, type BundleStamp, writeBundle } from "../write-bundle.ts";

/** A log in memory, of real events with their chains, and bundles of it. Everything follows from the seed, the signatures too. */

export const origin = "test.example/ledger";
const keyOf = (n: number) => {
  const pkcs8 = Buffer.concat([Buffer.from("302e020100300506032b657004220420", "hex"), Buffer.alloc(32, n)]);
  return createPrivateKey({ key: pkcs8, format: "der", type: "pkcs8" });
};
export const signerOf = (n: number, name = origin): { signer: NoteSigner; verifierKey: string } => ({
  signer: noteSigner(name, keyOf(n)),
  verifierKey: verifierKeyText(name, createPublicKey(keyOf(n))),
});
export const { signer, verifierKey } = signerOf(1);
export const policyText = `log ${verifierKey}\nquorum none\n`;
export const policy = parsePolicy(policyText);
export const trustDomain = "test.example";
/** Of an authority whose key is gone; ends in 2126. */
const caPem = `-----BEGIN CERTIFICATE-----
MIIBdTCCARugAwIBAgIUTnabTFhLfRyJFxnwfvMt7JHr5b8wCgYIKoZIzj0EAwIw
DzENMAsGA1UEAwwEdGVzdDAgFw0yNjExMjcwMjQxMDJaGA8yMTI2MTEwMzAyNDEw
MlowDzENMAsGA1UEAwwEdGVzdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABN5C
4sg93/2wyBsoMuWWH+3yhaTgyW2GbcxZ+A/IaVTRh40p2B8R182T4qNZ+4RKy/JF
Vmh+iPUWtwexSRj25OCjUzBRMB0GA1UdDgQWBBTiWUFIbf3AWxE2PU94kU2EsLv0
AzAfBgNVHSMEGDAWgBTiWUFIbf3AWxE2PU94kU2EsLv0AzAPBgNVHRMBAf8EBTAD
AQH/MAoGCCqGSM49BAMCA0gAMEUCIQCFyF301yRJlJun/ZUJLTDHBA/R7D/HqO+L
9tjQTyn7rgIgcItX4p8Ji/OKcW6gVH1dw/GPU78Eq+FV4YP/VVMXhkM=
-----END CERTIFICATE-----
`;
export const startMs = Date.UTC(2026, 10, 24, 22, 30);
export const tokenId = (n: number) => `tok_00000000-0000-8000-8000-${String(n).padStart(12, "0")}`;
export const caseId = `case/${tokenId(1)}/1`;
export const draft = JSON.stringify({ template: "a draft", fields: [{ number: 7, value: caseId }] });

const random = seededRandom(7);
const encoded = (message: Message, subject: string, at: number, sequence?: number) =>
  encodeEvent(message, {
    source: "/test",
    subject,
    nowMs: startMs + at * 60_000,
    random: random.bytes,
    traceparent: `00-${"a".repeat(32)}-${"b".repeat(16)}-00`,
    ...(sequence !== undefined && { sequence }),
  });

const use = (n: number, token: number, service: string): readonly [Message, string] => [
  create(UseDecidedSchema, { useId: `use-${n}`, tokenId: tokenId(token), resourceService: service }),
  tokenId(token),
];

/** Uses of two tokens in turn; the first token ends, and a case about it gets a draft. */
export const sampleRecords = (
  uses: number,
  service = "invoices",
  keyOf?: (producer: string, topic: string) => ProducerKey,
): LogRecord[] => {
  const chains = new Map<string, ReturnType<typeof openChain>>();
  const ends = new Map<string, number>();
  const record = (message: Message, subject: string, at: number, sequence?: number): LogRecord => {
    const { topic } = eventTypeOf(message);
    const { headers, value } = encoded(message, subject, at, sequence);
    const producer = `${topicWriters[topic]}/a/1`;
    const chain = chains.get(topic) ?? openChain(topic, producer, keyOf?.(producer, topic));
    chains.set(topic, chain);
    const [linked] = chain.linkSend([{ partition: 0, key: subject, headers: { ...headers }, value }]);
    const offset = ends.get(topic) ?? 0;
    ends.set(topic, offset + 1);
    const fields = { partition: 0, key: subject, value, headers: Object.entries(linked?.headers ?? {}) };
    return { topic, offset, timestampMs: startMs + at * 60_000, ...fields };
  };
  const drafted = create(NotificationDraftedSchema, { caseId, draftSha256: hash("sha256", draft, "buffer") });
  return [
    ...Array.from({ length: uses }, (_, n) => record(...use(n, 1 + (n % 2), service), n)),
    record(create(TokenExpiredSchema, { tokenId: tokenId(1) }), `tokens/${tokenId(1)}`, uses, 1),
    record(drafted, caseId, uses + 1, 1),
  ];
};

const nodeKey = ({ level, index }: NodeAddress) => `${level}/${index}`;

/** The tree over the leaves of these records, sealed a minute apart. */
export const sampleLog = (records: readonly LogRecord[]) => {
  const nodes = new Map<string, Uint8Array>();
  const frontier = new Frontier();
  const checkpoints = [""];
  const leaves = records.map((record, i) => encodeLeaf(record, startMs + i * 60_000).leaf);
  for (const leaf of leaves) {
    frontier.append(leafHash(leaf), (level, index, node) => void nodes.set(nodeKey({ level, index }), node));
    checkpoints.push(signCheckpoint({ origin, size: frontier.size, root: frontier.root() }, [signer]));
  }
  const read = (wanted: readonly NodeAddress[]) => wanted.map((node) => nodes.get(nodeKey(node)) as Uint8Array);
  const drafted = records.findIndex(({ topic }) => topic === "curfew.breaches.v1");
  return { leaves, checkpoints, size: leaves.length, drafted, read };
};
export type SampleLog = ReturnType<typeof sampleLog>;

export const everything: Selection = { token: "", case: "", from: "", to: "" };

/** What a bundle of the leaves `indexes` is made of. */
export const partsOf = (log: SampleLog, indexes: readonly number[], selection = everything): BundleParts => ({
  facts: {
    origin,
    trustDomain,
    madeAt: new Date(startMs + 3_600_000).toISOString(),
    selection,
    range: {
      first: selection.from === "" ? 0 : (indexes[0] ?? 0),
      end: selection.to === "" ? log.size : (indexes.at(-1) ?? 0) + 1,
    },
    size: log.size,
  },
  verifierKey,
  caPem,
  policy: policyText,
  checkpoint: log.checkpoints[log.size] as string,
  async *entries() {
    for (const index of indexes)
      yield { index, leaf: log.leaves[index] as Uint8Array, proof: await proveInclusion(index, log.size, log.read) };
  },
  firstCheckpoint: async (index) => ({
    checkpoint: log.checkpoints[index + 1] as string,
    size: index + 1,
    proof: await proveConsistency(index + 1, log.size, log.read),
  }),
  stamp: async () => undefined,
  drafts: () => (indexes.includes(log.drafted) ? [{ index: log.drafted, json: draft }] : []),
  sign: async (digest) => signManifest(digest, signer),
});

/** A timestamp by `tsa` over the checkpoint of `size` leaves. */
export const stampOf = async (
  log: SampleLog,
  size: number,
  tsa: { readonly reply: (query: Uint8Array) => Promise<Uint8Array> },
): Promise<BundleStamp> => {
  const checkpoint = log.checkpoints[size] as string;
  const response = await tsa.reply(timestampQuery(Buffer.from(checkpoint), random.bytes(NONCE_BYTES)));
  const { timeMs } = await claimedTimestamp(response, Buffer.from(checkpoint));
  return { checkpoint, size, proof: await proveConsistency(size, log.size, log.read), response, timeMs };
};

export const bytesOf = async (parts: BundleParts): Promise<Buffer> => {
  const pieces: Uint8Array[] = [];
  for await (const piece of writeBundle(parts)) pieces.push(Uint8Array.from(piece));
  return Buffer.concat(pieces);
};

export const allOf = ({ size }: SampleLog) => Array.from({ length: size }, (_, i) => i);
