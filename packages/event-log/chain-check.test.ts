import { create } from "@bufbuild/protobuf";
import { GapCauseSchema, ProducerEpochClosedSchema } from "@curfew/contracts/gen/curfew/events/v1/evidence_pb.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { beforeAll, beforeEach, describe, expect, it } from "vitest";
import type { OutRecord } from "./bus.ts";
import { type ChainedRecord, keyHeader, openChain, signatureHeader } from "./chain.ts";
import { openChainCheck } from "./chain-check.ts";
import type { SealedRecord } from "./chain-state.ts";
import { encodeEvent } from "./envelope.ts";
import type { EpochState } from "./epochs.ts";
import { topicNames } from "./event-types.ts";
import { createProducerKey } from "./producer-key.ts";
import { type Identities, openIdentities } from "./testing/producer-identity.ts";

const { uses, tokens, evidence } = topicNames;
const startMs = Date.UTC(2026, 10, 27);
const dayMs = 86_400_000;
let nowMs = startMs;
const clock: Clock = { now: () => nowMs, monotonicMs: () => 0, sleep: async () => undefined };
let us: Identities;
let strangers: Identities;
beforeEach(() => {
  nowMs = startMs;
});
beforeAll(async () => {
  us = await openIdentities(clock, ["issuer", "verifier", "auditor"]);
  strangers = await openIdentities(clock, ["verifier"]);
});

const out = (n: number, partition = 0): OutRecord => ({
  partition,
  key: `k${n}`,
  headers: { ce_id: `id-${n}` },
  value: Buffer.from(`value ${n}`),
});

const epochOf = (producer: string, topic: string, identities = us) => {
  const [service = ""] = producer.split("/");
  const key = createProducerKey(producer, topic, () => identities.identity(service));
  return { key, chain: openChain(topic, producer, key), certification: key.certification() };
};

/** A ledger that a test fills, record by record, each at the next offset of its partition. */
const openLedgerOf = (more: Partial<SealedRecord> = {}) => {
  const check = openChainCheck(us.trust);
  const ends = new Map<string, number>();
  const end = (topic: string, partition: number) => ends.get(`${topic}/${partition}`) ?? 0;
  const put = (topic: string, ...records: readonly ChainedRecord[]) => {
    for (const { partition, key, headers, value } of records) {
      const offset = end(topic, partition);
      ends.set(`${topic}/${partition}`, offset + 1);
      const at = { topic, partition, offset, timestampMs: nowMs, sealedAtMs: nowMs, oversize: false };
      check.add({ ...at, key, value, headers: Object.entries(headers), ...more });
    }
  };
  const auditor = epochOf("auditor/a/1", evidence);
  let closings = 0;
  return {
    put,
    /** As the auditor closes an epoch. */
    close(producer: string, topic: string, state: EpochState, signed?: { certification: string; signature: string }) {
      closings += 1;
      const closing = create(ProducerEpochClosedSchema, {
        producer,
        topic,
        ended: state.ended ?? false,
        chains: [0, 1, 2].map((partition) => ({
          partition,
          acknowledged: BigInt(state.acknowledged[partition] ?? 0),
          endOffset: BigInt(end(topic, partition)),
        })),
        ...(signed && {
          certification: signed.certification,
          signature: Buffer.from(signed.signature, "base64url"),
        }),
      });
      const { headers, value } = encodeEvent(closing, {
        source: "/auditor",
        subject: `epochs/${producer}`,
        sequence: closings,
        nowMs,
        random: systemRandom,
        traceparent: `00-${"a".repeat(32)}-${"b".repeat(16)}-00`,
      });
      put(evidence, ...auditor.chain.linkSend([{ partition: 0, key: producer, headers: { ...headers }, value }]));
    },
    result() {
      const { chains, findings } = check.finish();
      const told = findings.map(({ producer, cause, topic, partition, offset }) => [
        producer,
        GapCauseSchema.value[cause]?.localName,
        `${topic}/${partition}@${offset}`,
      ]);
      return { chains, told };
    },
  };
};

const verifier = "verifier/v/1";

describe("the producer chains of a ledger, checked offline", () => {
  it("are whole: what each says of itself is signed, closed and complete", () => {
    const ledger = openLedgerOf();
    const { chain, key, certification } = epochOf(verifier, uses);
    ledger.put(uses, ...chain.linkSend([out(1, 0), out(2, 1), out(3, 0)]));
    ledger.put(uses, ...chain.linkSend([out(4, 0)]), ...chain.linkSend([out(5, 1), out(6, 1)]));
    const state = { acknowledged: { 0: 3, 1: 3 }, ended: true };
    ledger.close(verifier, uses, state, { certification, signature: key.signState(state) });
    const { chains, told } = ledger.result();
    expect(told).toEqual([]);
    const whole = { producer: verifier, topic: uses, first: 1, last: 3, signed: 3, closed: 3, ended: true };
    expect(chains).toEqual([
      { ...whole, partition: 0 },
      { ...whole, partition: 1 },
      expect.objectContaining({ producer: "auditor/a/1", last: 1, signed: 1, closed: undefined, ended: false }),
    ]);
  });

  it("signs once a send, on the last record of each chain", () => {
    const { chain } = epochOf(verifier, uses);
    const linked = chain.linkSend([out(1, 0), out(2, 1), out(3, 0), out(4, 2)]);
    expect(linked.map(({ headers }) => headers[signatureHeader] !== undefined)).toEqual([false, true, true, true]);
    expect(new Set(linked.map(({ headers }) => headers[signatureHeader]).filter(Boolean)).size).toBe(1);
    expect(linked.map(({ headers }) => headers[keyHeader] !== undefined)).toEqual([true, true, false, true]);
  });

  it("shows a record that was deleted before it was sealed: in the middle, the first, and the last ones", () => {
    for (const [removed, causes] of [
      [[1], [["HOLE", 1]]],
      [
        [0],
        [
          ["HOLE", 0],
          // With it went what certifies the chain.
          ["MISSING_SIGNATURE", 2],
        ],
      ],
      [[2], [["SHORT", 2]]],
    ] as const) {
      const ledger = openLedgerOf();
      const { chain, key, certification } = epochOf(verifier, uses);
      const sent = [1, 2, 3].flatMap((n) => chain.linkSend([out(n)]));
      ledger.put(uses, ...sent.filter((_, i) => !(removed as readonly number[]).includes(i)));
      const state = { acknowledged: { 0: 3 } };
      ledger.close(verifier, uses, state, { certification, signature: key.signState(state) });
      expect(ledger.result().told).toEqual(causes.map(([cause, at]) => [verifier, cause, `${uses}/0@${at}`]));
    }
  });

  it("shows all of an epoch deleted: its closing states what is not there", () => {
    const ledger = openLedgerOf();
    const { key, certification } = epochOf(verifier, uses);
    const state = { acknowledged: { 1: 7 } };
    ledger.close(verifier, uses, state, { certification, signature: key.signState(state) });
    const { chains, told } = ledger.result();
    expect(told).toEqual([[verifier, "SHORT", `${uses}/1@0`]]);
    expect(chains).toContainEqual(
      expect.objectContaining({ producer: verifier, partition: 1, first: 0, last: 0, closed: 7 }),
    );
  });

  it("takes more than was acknowledged, and nothing stated, for what they are", () => {
    const ledger = openLedgerOf();
    const { chain, key, certification } = epochOf(verifier, uses);
    ledger.put(uses, ...chain.linkSend([out(1, 0), out(2, 0), out(3, 1)]));
    const state = { acknowledged: { 0: 1 } };
    ledger.close(verifier, uses, state, { certification, signature: key.signState(state) });
    const { chains, told } = ledger.result();
    expect(told).toEqual([]);
    expect(chains).toMatchObject([
      { partition: 0, last: 2, signed: 2, closed: 1, ended: false },
      { partition: 1, last: 1, signed: 1, closed: undefined, ended: false },
      {},
    ]);
  });

  /** Forged by somebody who can write to the topic, and knows all that stands there. */
  const forgedAfter = (n: number, how: (record: ChainedRecord) => ChainedRecord) => {
    const { chain, key, certification } = epochOf(verifier, uses);
    const ledger = openLedgerOf();
    for (let i = 1; i <= n; i += 1) ledger.put(uses, ...chain.linkSend([out(i)]));
    // `link` alone signs nothing, and has the right number and the right hash before it.
    ledger.put(uses, how(chain.link(out(666))));
    const state = { acknowledged: { 0: n } };
    ledger.close(verifier, uses, state, { certification, signature: key.signState(state) });
    return ledger.result().told;
  };

  it("shows a record forged with the right number and hash: unsigned, or signed by another key", () => {
    expect(forgedAfter(3, (record) => record)).toEqual([[verifier, "MISSING_SIGNATURE", `${uses}/0@3`]]);
    const other = createProducerKey(verifier, uses, () => us.identity("verifier"));
    const signedBy = (record: ChainedRecord): ChainedRecord => ({
      ...record,
      headers: { ...record.headers, [signatureHeader]: other.sign(["00".repeat(32)]) },
    });
    expect(forgedAfter(3, signedBy)).toContainEqual([verifier, "BAD_SIGNATURE", `${uses}/0@3`]);
  });

  it("shows a record forged before others: what its producer sent next follows another one", () => {
    const ledger = openLedgerOf();
    const { chain } = epochOf(verifier, uses);
    ledger.put(uses, ...chain.linkSend([out(1)]));
    const [second] = chain.linkSend([out(2)]) as [ChainedRecord];
    ledger.put(uses, { ...second, value: Buffer.from("forged"), headers: { ...second.headers } }, second);
    expect(ledger.result().told).toEqual([
      [verifier, "FORK", `${uses}/0@2`],
      // The signature that was copied covers the true record.
      [verifier, "BAD_SIGNATURE", `${uses}/0@1`],
    ]);
  });

  it("shows a record played again, in its partition or in another one", () => {
    for (const partition of [0, 1]) {
      const ledger = openLedgerOf();
      const { chain, key, certification } = epochOf(verifier, uses);
      const sent = [1, 2].flatMap((n) => chain.linkSend([out(n)]));
      ledger.put(uses, ...sent, { ...(sent[0] as ChainedRecord), partition });
      const state = { acknowledged: { 0: 2 } };
      ledger.close(verifier, uses, state, { certification, signature: key.signState(state) });
      const expected = partition === 0 ? ["FORK", `${uses}/0@2`] : ["BAD_SIGNATURE", `${uses}/1@0`];
      expect(ledger.result().told).toContainEqual([verifier, ...expected]);
    }
  });

  it("shows records that changed places", () => {
    const ledger = openLedgerOf();
    const { chain } = epochOf(verifier, uses);
    const [a, b, c] = [1, 2, 3].flatMap((n) => chain.linkSend([out(n)])) as [
      ChainedRecord,
      ChainedRecord,
      ChainedRecord,
    ];
    ledger.put(uses, a, c, b);
    expect(ledger.result().told).toEqual([
      [verifier, "HOLE", `${uses}/0@1`],
      [verifier, "FORK", `${uses}/0@2`],
    ]);
  });

  it("shows who is not the service that the producer's name says", async () => {
    const impostors = {
      "by another authority": epochOf(verifier, uses, strangers),
      "by another service of ours": (() => {
        const key = createProducerKey(verifier, uses, () => us.identity("issuer"));
        return { key, chain: openChain(uses, verifier, key) };
      })(),
      "by a workload of that name": await (async () => {
        const identity = await us.issue("/workload/verifier");
        const key = createProducerKey(verifier, uses, () => identity);
        return { key, chain: openChain(uses, verifier, key) };
      })(),
      "for another topic": (() => {
        const key = createProducerKey(verifier, tokens, () => us.identity("verifier"));
        return { key, chain: openChain(uses, verifier, key) };
      })(),
      "in another epoch": (() => {
        const key = createProducerKey("verifier/v/2", uses, () => us.identity("verifier"));
        return { key, chain: openChain(uses, verifier, key) };
      })(),
    };
    for (const [who, { chain }] of Object.entries(impostors)) {
      const ledger = openLedgerOf();
      ledger.put(uses, ...chain.linkSend([out(1)]));
      expect(ledger.result().told, who).toEqual([[verifier, "UNKNOWN_PRODUCER", `${uses}/0@0`]]);
    }
    const ledger = openLedgerOf();
    ledger.put(tokens, ...epochOf("verifier/v/3", tokens).chain.linkSend([out(1)]));
    expect(ledger.result().told).toEqual([["verifier/v/3", "UNKNOWN_PRODUCER", `${tokens}/0@0`]]);
  });

  it("show what was put behind the end of a closed chain, or with its key where it had none, once another record follows", () => {
    for (const partition of [0, 1]) {
      const ledger = openLedgerOf();
      const { chain, key, certification } = epochOf(verifier, uses);
      const other = epochOf("verifier/other/1", uses);
      ledger.put(uses, ...chain.linkSend([out(1)]), ...other.chain.linkSend([out(2)]));
      const state = { acknowledged: { 0: 1 }, ended: true };
      ledger.close(verifier, uses, state, { certification, signature: key.signState(state) });
      ledger.put(uses, chain.link(out(3, partition)));
      ledger.put(uses, ...other.chain.linkSend([out(4, partition)]));
      const { told } = ledger.result();
      expect(told).toEqual([[verifier, "MISSING_SIGNATURE", `${uses}/${partition}@${partition === 0 ? 2 : 0}`]]);
    }
  });

  it("are taken unsigned from before there were signatures, and not once their service signs", () => {
    const ledger = openLedgerOf();
    const old = openChain(uses, "verifier/old/1");
    ledger.put(uses, old.link(out(1)));
    ledger.put(uses, ...epochOf(verifier, uses).chain.linkSend([out(2)]));
    // A process of the old version, for as long as an update may take.
    ledger.put(uses, old.link(out(3)));
    expect(ledger.result()).toMatchObject({ told: [], chains: [{ signed: undefined, last: 2 }, { signed: 1 }] });
    ledger.put(uses, openChain(uses, "verifier/late/1").link(out(4)));
    nowMs += dayMs + 1;
    ledger.put(uses, old.link(out(5)));
    expect(ledger.result().told).toEqual([
      ["verifier/late/1", "MISSING_SIGNATURE", `${uses}/0@3`],
      ["verifier/old/1", "MISSING_SIGNATURE", `${uses}/0@4`],
    ]);
  });

  it("are known to be their service's where the clock was set back by days after it had got its certificate", () => {
    nowMs -= 6 * dayMs;
    const ledger = openLedgerOf();
    ledger.put(uses, ...epochOf(verifier, uses).chain.linkSend([out(1)]));
    expect(ledger.result().told).toEqual([]);
  });

  it("outlive the certificates that certified them: those are renewed, and a chain that begins later has the new one", async () => {
    const { chain } = epochOf(verifier, uses);
    const ledger = openLedgerOf();
    ledger.put(uses, ...chain.linkSend([out(1, 0)]));
    nowMs += 20 * dayMs;
    ledger.put(uses, ...chain.linkSend([out(2, 0)]));
    await us.renew();
    ledger.put(uses, ...chain.linkSend([out(3, 1)]));
    expect(ledger.result().told).toEqual([]);
    // One that had ended long before certifies nothing.
    nowMs += 20 * dayMs;
    ledger.put(uses, ...chain.linkSend([out(4, 2)]));
    expect(ledger.result().told).toEqual([[verifier, "UNKNOWN_PRODUCER", `${uses}/2@0`]]);
    nowMs = startMs;
    await us.renew();
  });

  it("show that a row in the store of producers was changed", () => {
    const made = () => {
      const epoch = epochOf(verifier, uses);
      const ledger = openLedgerOf();
      ledger.put(uses, ...epoch.chain.linkSend([out(1), out(2)]));
      return { ...epoch, ledger };
    };
    const truth = { acknowledged: { 0: 2 } };
    const one = made();
    const signature = one.key.signState(truth);
    one.ledger.close(verifier, uses, { acknowledged: { 0: 9 } }, { certification: one.certification, signature });
    expect(one.ledger.result().told).toEqual([[verifier, "BAD_SIGNATURE", `${evidence}/0@0`]]);
    const two = made();
    two.ledger.close(verifier, uses, { acknowledged: { 0: 1 } });
    expect(two.ledger.result().told).toEqual([[verifier, "MISSING_SIGNATURE", `${uses}/0@2`]]);
    const three = made();
    const other = epochOf(verifier, uses);
    const forged = { certification: other.certification, signature: other.key.signState(truth) };
    three.ledger.close(verifier, uses, truth, forged);
    expect(three.ledger.result().told).toEqual([[verifier, "MISSING_SIGNATURE", `${uses}/0@2`]]);
    for (const { ledger } of [one, two, three])
      expect(ledger.result().chains).toContainEqual(
        expect.objectContaining({ producer: verifier, partition: 0, closed: undefined }),
      );
  });

  it("show what stands there unsigned for longer than any send is", () => {
    const { chain } = epochOf(verifier, uses);
    const ledger = openLedgerOf();
    ledger.put(uses, ...chain.linkSend([out(1)]));
    for (let n = 2; n <= 1_024; n += 1) ledger.put(uses, chain.link(out(n)));
    expect(ledger.result().told).toEqual([]);
    ledger.put(uses, chain.link(out(1_025)));
    expect(ledger.result().told).toEqual([[verifier, "MISSING_SIGNATURE", `${uses}/0@1024`]]);
  });

  it("take any headers without an error", () => {
    const names = ["curfew-producer", "curfew-seq", "curfew-prev", keyHeader, signatureHeader];
    const texts = [
      "",
      ".",
      "..",
      "a.b.c",
      "verifier/v/1",
      "1",
      "0".repeat(64),
      "A".repeat(86),
      "🔑",
      "é".repeat(9_000),
    ];
    const check = openChainCheck(us.trust);
    let seed = 1;
    const pick = <T>(of: readonly T[]): T => {
      seed = (seed * 48_271) % 2_147_483_647;
      return of[seed % of.length] as T;
    };
    for (let offset = 0; offset < 5_000; offset += 1) {
      const headers = names.map((name) => [name, pick(texts)] as const).filter(() => pick([true, true, false]));
      const at = { topic: uses, partition: 0, offset, timestampMs: nowMs, sealedAtMs: nowMs, oversize: false };
      check.add({ ...at, key: "k", value: Buffer.from("v"), headers });
    }
    expect(check.finish().findings.length).toBeGreaterThan(0);
  });
});
