import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openChain } from "@curfew/event-log/chain.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { createProducerKey } from "@curfew/event-log/producer-key.ts";
import { openIdentities } from "@curfew/event-log/testing/producer-identity.ts";
import { encodeLeaf } from "@curfew/ledger/leaf.ts";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openCompleteness, readProducerTrust } from "./log-completeness.ts";

const [nowMs, producer] = [Date.UTC(2026, 10, 27), "verifier/a/1"];
const clock = { now: () => nowMs, monotonicMs: () => 0, sleep: async () => undefined };
const dir = mkdtempSync(join(tmpdir(), "curfew-completeness-"));
afterAll(() => rmSync(dir, { recursive: true, force: true }));
const fileOf = (name: string, text: string) => {
  writeFileSync(join(dir, name), text);
  return join(dir, name);
};

/** Leaves of one producer, its last record signed. */
let leaves: Uint8Array[];
let us: Awaited<ReturnType<typeof openIdentities>>;
let others: Awaited<ReturnType<typeof openIdentities>>;
beforeAll(async () => {
  us = await openIdentities(clock);
  others = await openIdentities(clock);
  const key = createProducerKey(producer, topicNames.uses, () => us.identity("verifier"));
  const chain = openChain(topicNames.uses, producer, key);
  const records = Array.from({ length: 5 }, (_, i) => ({
    partition: 0,
    key: `k${i}`,
    headers: {},
    value: Buffer.of(i),
  }));
  leaves = chain.linkSend(records).map(({ partition, key, headers, value }, offset) => {
    const place = { topic: topicNames.uses, partition, offset, timestampMs: nowMs, key, value };
    return encodeLeaf({ ...place, headers: Object.entries(headers) }, nowMs).leaf;
  });
});

const verdictOn = (of: readonly Uint8Array[], { trust }: { trust?: typeof us.trust } = us) => {
  const completeness = openCompleteness(trust);
  for (const [at, leaf] of of.entries()) completeness.add(leaf, at);
  return completeness.verdict();
};
const foreign = Buffer.from("entry 1 of another log");

describe("a ledger's completeness", () => {
  it("holds where each record follows the one before it, and says what it does not prove", () => {
    expect(verdictOn(leaves)).toEqual({
      verdict: "holds",
      why: "no record is missing within 1 producer chains",
      notProved: ["that nothing came after the last record of 1 chains, which their producers have not ended"],
      gaps: [],
    });
    expect(verdictOn([])).toMatchObject({ verdict: "holds" });
  });

  it("is broken where one is missing, or of nobody", () => {
    expect(verdictOn(leaves.toSpliced(2, 1))).toMatchObject({
      verdict: "broken",
      why: "1 gaps in what its producers wrote",
      gaps: [
        `${topicNames.uses}/0@3 of ${producer}: record 4 came where 3 was due: records between are missing`,
        `${topicNames.uses}/0@3: offset 3 came where 2 was due, which alone proves nothing`,
      ],
    });
    const nobody = { topic: topicNames.uses, partition: 0, offset: 5, timestampMs: 0, key: "", headers: [] };
    const { leaf } = encodeLeaf({ ...nobody, value: Buffer.of(1) }, nowMs);
    expect(verdictOn([...leaves, leaf])).toMatchObject({
      verdict: "broken",
      gaps: [`${topicNames.uses}/0@5: no known producer`],
    });
  });

  it("is not applicable to a log of others, and broken by one entry of others in ours", () => {
    expect(verdictOn([foreign, foreign])).toMatchObject({ verdict: "not applicable" });
    for (const at of [0, 3, leaves.length])
      expect(verdictOn(leaves.toSpliced(at, 0, foreign))).toMatchObject({
        verdict: "broken",
        why: `1 of its entries, the first at ${at}, are no records of Curfew`,
      });
  });

  it("knows forged records by the authority; without it, says so", () => {
    const bad = `${topicNames.uses}/0@0 of ${producer}: no known producer`;
    expect(verdictOn(leaves, others)).toMatchObject({ verdict: "broken", gaps: expect.arrayContaining([bad]) });
    const { verdict, notProved } = verdictOn(leaves, {});
    expect(verdict).toBe("holds");
    expect(notProved).toContainEqual(expect.stringContaining("whose the signatures are: --ca FILE"));
  });

  it("takes the authority from its certificate", async () => {
    expect(verdictOn(leaves, { trust: await readProducerTrust(fileOf("ca.pem", us.caPem)) })).toMatchObject({
      verdict: "holds",
    });
    const leafPem = us.identity("verifier").certPem;
    for (const text of ["", "nonsense", leafPem.slice(0, 200)])
      await expect(readProducerTrust(fileOf("none.pem", text))).rejects.toMatchObject({ code: 2 });
  });
});
