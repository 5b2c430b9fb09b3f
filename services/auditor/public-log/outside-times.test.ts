import { generateKeyPairSync } from "node:crypto";
import { formatSignature, parseNote } from "@curfew/ledger/note.ts";
import { cosignerKeyText, noteCosigner, verifierKeyText } from "@curfew/ledger/note-key.ts";
import { parsePolicy } from "@curfew/ledger/policy.ts";
import { memoryStore } from "@curfew/simulation/memory-store.ts";
import { expect, it } from "vitest";
import { origin, seal, shard, verifierKey } from "../testing/rig.ts";
import { cosignedId, openCosigned } from "./cosigned.ts";
import { outsideTimes } from "./outside-times.ts";
import { openTimestampRows } from "./timestamps.ts";

const keys = ["w1", "w2"].map((name) => ({ name, key: generateKeyPairSync("ed25519").privateKey }));
const policyOf = (quorum: string, log = verifierKey) =>
  parsePolicy(
    `log ${log}\n${keys.map(({ name, key }) => `witness ${name} ${cosignerKeyText(name, key)}\n`).join("")}group both all w1 w2\nquorum ${quorum}\n`,
  );
const cosigned = (size: number, ...seconds: number[]) => {
  const staged = seal.sign(shard, size, Buffer.alloc(32, size));
  const lines = seconds.map((at, i) => {
    const { name, key } = keys[i] as (typeof keys)[0];
    const { keyId, sign } = noteCosigner(name, key, at);
    return formatSignature({ name, keyId, signature: sign(parseNote(staged).text) });
  });
  return { _id: cosignedId(size), shard, size, checkpoint: `${staged}${lines.join("")}` };
};
const openClocks = async (quorum = "both") => {
  const rows = await openCosigned(memoryStore());
  const stamped = await openTimestampRows(memoryStore());
  for (const row of [cosigned(10, 100, 103), cosigned(20, 205, 200)]) await rows.insert(row);
  const stamp = { _id: cosignedId(20), shard, size: 20, checkpoint: "", query: Buffer.of(), response: Buffer.of() };
  await stamped.insert({ ...stamp, timeMs: 300_000, askedMs: 299_000 });
  return { cosigning: { policy: policyOf(quorum), rows }, stamped };
};

it("an entry lies between the cosignatures around it, and before the timestamp over it", async () => {
  const clocks = await openClocks();
  expect(await outsideTimes(clocks, 9)).toEqual({ notAfterMs: 103_000, stampedMs: 300_000 });
  const between = { notBeforeMs: 100_000, notAfterMs: 205_000, stampedMs: 300_000 };
  expect(await outsideTimes(clocks, 10)).toEqual(between);
  expect(await outsideTimes(clocks, 19)).toEqual(between);
  expect(await outsideTimes(clocks, 20)).toEqual({ notBeforeMs: 200_000 });
  expect(await outsideTimes({ cosigning: undefined, stamped: clocks.stamped }, 5)).toEqual({ stampedMs: 300_000 });
  expect(await outsideTimes({ cosigning: undefined, stamped: undefined }, 5)).toEqual({});
});

it("fewer cosignatures than the policy of today demands say nothing, nor do spoilt ones, nor those under a key that it does not know", async () => {
  const { cosigning } = await openClocks();
  await cosigning.rows.insert(cosigned(30, 310));
  expect(await outsideTimes({ cosigning, stamped: undefined }, 25)).toEqual({ notBeforeMs: 200_000 });
  const spoilt = cosigned(40, 400, 400);
  await cosigning.rows.insert({ ...spoilt, checkpoint: spoilt.checkpoint.replace("\n40\n", "\n41\n") });
  expect(await outsideTimes({ cosigning, stamped: undefined }, 35)).toEqual({});
  const other = verifierKeyText(origin, generateKeyPairSync("ed25519").privateKey);
  const rotated = { ...cosigning, policy: policyOf("both", other) };
  expect(await outsideTimes({ cosigning: rotated, stamped: undefined }, 10)).toEqual({});
});
