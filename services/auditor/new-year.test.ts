import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { sourceOf } from "@curfew/bundle/byte-source.ts";
import { openBundle } from "@curfew/bundle/verify-bundle.ts";
import type { ExportBundleRequestSchema } from "@curfew/contracts/gen/curfew/auditor/v1/auditor_pb.ts";
import { CaseOpenedSchema } from "@curfew/contracts/gen/curfew/events/v1/breaches_pb.ts";
import { siemTopic, topicNames } from "@curfew/event-log/event-types.ts";
import { readTopic } from "@curfew/event-log/read-topic.ts";
import { openCheckpoint } from "@curfew/ledger/checkpoint.ts";
import { leafHash } from "@curfew/ledger/hash.ts";
import { decodeLeaf } from "@curfew/ledger/leaf.ts";
import { formatSignature } from "@curfew/ledger/note.ts";
import { parseVerifierKey } from "@curfew/ledger/note-key.ts";
import { parsePolicy } from "@curfew/ledger/policy.ts";
import { verifyConsistency, verifyInclusion } from "@curfew/ledger/proof.ts";
import { policyInEachYear, yearOf } from "@curfew/ledger/shard.ts";
import type { RunningService } from "@curfew/rpc/replica.ts";
import { afterEach, beforeEach, expect, it, vi } from "vitest";
import { curfew } from "../../test/tools/curfew.ts";
import type { CheckpointRow } from "./projections.ts";
import { ledgerIndexOf } from "./siem/cloud-event.ts";
import { bound, clock, eventRecord, tokenEvent, tokenId, use } from "./testing/rig.ts";
import { type Client, openSuite, type Suite, undo } from "./testing/suite.ts";

/** An auditor that runs over a turn of the year: its ledger goes on in the next shard, and whoever asks of either gets an answer. */

/** The old one: the new one is today's, in which certificates are good. */
const year = yearOf(clock.now()) - 1;
let suite: Suite;
let service: RunningService;
let rpc: Client;
let ledgerDir = "";
let aheadMs = 0;
const oldYear = () => Date.UTC(year + 1, 0, 1) - 60_000 - clock.now();
const moving = { ...clock, now: () => clock.now() + aheadMs };

const start = async () => {
  service = await suite.start({ ledgerDir, clock: moving });
  rpc = await suite.client(service);
};
const sealed = (size: bigint) =>
  vi.waitFor(
    async () => expect((await rpc.listEvents({ pageSize: 1 })).ledgerSize).toBeGreaterThanOrEqual(size),
    bound,
  );

beforeEach(async () => {
  aheadMs = oldYear();
  ledgerDir = mkdtempSync(join(tmpdir(), "curfew-new-year-"));
  undo.push(() => rmSync(ledgerDir, { recursive: true, force: true }));
  suite = await openSuite();
  await start();
  await suite.send(topicNames.uses, "verifier/a", [use(1, 0, "old-0"), use(2, 0, "old-1"), use(1, 0, "old-2")]);
  await sealed(3n);
  aheadMs = 0;
  await suite.send(topicNames.uses, "verifier/b", [use(1, 0, "new-0"), use(3, 0, "new-1")]);
  await sealed(5n);
});
afterEach(async () => {
  for (const step of undo.splice(0).reverse()) await step();
});

const hashOf = (leaf: Uint8Array) => Buffer.from(leafHash(leaf)).toString("hex");
const opened = async (shard = 0) => {
  const { checkpoint, verifierKey, size, shard: of } = await rpc.getCheckpoint({ shard });
  return {
    ...openCheckpoint(checkpoint, parseVerifierKey(verifierKey)),
    answered: size,
    first: of?.first,
    verifierKey,
  };
};

it("has a checkpoint of each year; indexes run on, and proofs count as their shard does", async () => {
  const [old, now] = [await opened(year), await opened()];
  expect([old.origin, old.size, old.answered, old.first]).toEqual([`test.example/ledger/${year}`, 3, 3n, 0n]);
  expect([now.origin, now.first]).toEqual([`test.example/ledger/${year + 1}`, 3n]);
  expect(await opened(year + 1)).toEqual(now);
  await expect(rpc.getCheckpoint({ shard: year + 2 })).rejects.toMatchObject({ failure: { status: "NOT_FOUND" } });
  const { events } = await rpc.listEvents({ type: "curfew.use.decided.v1" });
  expect(events.map(({ eventId, index }) => [eventId, index])).toEqual([
    ["old-0", 0n],
    ["old-1", 1n],
    ["old-2", 2n],
    ["new-0", 3n],
    ["new-1", 4n],
  ]);
  for (const { index, eventId } of events)
    for (const which of [
      { case: "index", value: index },
      { case: "eventId", value: eventId },
    ] as const) {
      const answer = await rpc.getEvent({ which });
      const { root, size, origin } = openCheckpoint(
        answer.checkpoint,
        parseVerifierKey(answer.shard?.verifierKey ?? ""),
      );
      expect(origin).toBe(`test.example/ledger/${index < 3n ? year : year + 1}`);
      const leaf = Number(index - (answer.shard?.first ?? 0n));
      expect(verifyInclusion(leaf, size, leafHash(answer.leaf), answer.inclusionProof, root)).toBe(true);
    }
  const leaf = await rpc.proveInclusion({ index: 1n, shard: year, size: 2n });
  expect(verifyInclusion(1, 2, leaf.leafHash, leaf.proof, leaf.root)).toBe(true);
  const grown = await rpc.proveConsistency({ from: 1n, shard: year });
  expect(verifyConsistency(1, 3, grown.proof, grown.fromRoot, grown.toRoot)).toBe(true);
  expect([grown.toRoot, grown.checkpoint].map(String)).toEqual(
    [old.root, (await rpc.getCheckpoint({ shard: year })).checkpoint].map(String),
  );
  await expect(rpc.proveInclusion({ index: 3n, shard: year })).rejects.toMatchObject({
    failure: { status: "OUT_OF_RANGE" },
  });
});

it("begins with a leaf that names the end of the old year, whatever the clock says afterwards", async () => {
  const old = await rpc.getCheckpoint({ shard: year });
  const { leaf } = await rpc.getEvent({ which: { case: "index", value: 3n } });
  expect(decodeLeaf(leaf).opening).toEqual({ previousCheckpoint: old.checkpoint, first: 3 });
  await service.close();
  aheadMs = oldYear(); // another replica's, that is late
  await start();
  await suite.send(topicNames.tokens, "issuer/a", [tokenEvent(9, 1)]);
  await vi.waitFor(async () => expect((await rpc.listEvents({ tokenId: tokenId(9) })).events).toHaveLength(1), bound);
  expect((await opened()).origin).toBe(`test.example/ledger/${year + 1}`);
  expect(await rpc.getCheckpoint({ shard: year })).toMatchObject({ checkpoint: old.checkpoint, size: 3n });
});

it("gives evidence of one year at a time, and says where there are several", async () => {
  const { verifierKey } = await opened(year);
  const policy = policyInEachYear(parsePolicy(`log ${verifierKey}\nquorum none\n`), clock.now());
  const exported = async (request: MessageInitShape<typeof ExportBundleRequestSchema>) => {
    const pieces: Uint8Array[] = [];
    for await (const { piece } of rpc.exportBundle(request)) pieces.push(piece);
    return await openBundle(sourceOf(Buffer.concat(pieces)), policy);
  };
  await expect(exported({ tokenId: tokenId(1) })).rejects.toMatchObject({
    failure: {
      status: "FAILED_PRECONDITION",
      reason: "SEVERAL_SHARDS",
      message: expect.stringContaining(`${year + 1}, ${year}; name one`),
    },
  });
  const old = await exported({ tokenId: tokenId(1), shard: year });
  expect(old.manifest).toMatchObject({ origin: `test.example/ledger/${year}`, entries: 2, size: 3 });
  const now = await exported({ tokenId: tokenId(1), shard: year + 1 });
  expect(now.manifest).toMatchObject({ origin: `test.example/ledger/${year + 1}`, entries: 1, before: 3 });
  // What is in one year alone needs no word of which.
  expect((await exported({ tokenId: tokenId(2) })).manifest).toMatchObject({ origin: `test.example/ledger/${year}` });
  expect((await exported({ tokenId: tokenId(3) })).manifest).toMatchObject({ entries: 1, before: 3 });
  const whole = await exported({ shard: year + 1 });
  expect(whole.manifest.range.first).toBe(0);
  expect(whole.report.missing).toEqual([]);
  await expect(exported({ shard: year + 2 })).rejects.toMatchObject({ failure: { status: "NOT_FOUND" } });
  await expect(exported({ tokenId: tokenId(8) })).rejects.toMatchObject({ failure: { reason: "NOTHING_SEALED" } });
});

it("has a case's signals of the old year in a bundle of that year", async () => {
  const caseId = "case/0123456789abcdef/1";
  const opened = create(CaseOpenedSchema, { caseId, signal: { eventId: "old-1" } });
  const record = eventRecord(opened, { subject: caseId, source: "/breach-notifier", sequence: 1, id: "opened" });
  const atLeast = await suite.send(topicNames.breaches, "breach-notifier/a", [record]);
  const exported = async (shard: number) => {
    const pieces: Uint8Array[] = [];
    for await (const { piece } of rpc.exportBundle({ caseId, shard, atLeast })) pieces.push(piece);
    const policy = parsePolicy(`log ${(await rpc.getCheckpoint({ shard })).verifierKey}\nquorum none\n`);
    return (await openBundle(sourceOf(Buffer.concat(pieces)), policy)).manifest;
  };
  await expect(exported(0)).rejects.toMatchObject({ failure: { reason: "SEVERAL_SHARDS" } });
  expect(await exported(year)).toMatchObject({ entries: 1, selection: { case: caseId } });
  expect(await exported(year + 1)).toMatchObject({ entries: 1, before: 3 });
});

it("is shown and proved by the commands under the index that they list, in whichever year", async () => {
  const paula = await suite.asPerson(service, "paula");
  const { events } = await rpc.listEvents({ type: "curfew.use.decided.v1" });
  for (const [index, shard, leaf] of [
    [1, year, 1],
    [4, year + 1, 1],
  ] as const) {
    const shown = await curfew("audit", "show", String(index), ...paula);
    expect(shown.out, shown.err).toMatch(/proof: +holds/);
    const proved = await curfew("audit", "prove", "--index", String(index), ...paula, "-o", "json");
    const { leaf: bytes } = await rpc.getEvent({ which: { case: "eventId", value: events[index]?.eventId ?? "" } });
    expect(JSON.parse(proved.out || proved.err)).toMatchObject({ index, shard, leaf, leafHash: hashOf(bytes) });
  }
  const both = await curfew("audit", "prove", "--index", "1", "--shard", String(year), ...paula);
  expect([both.code, both.err]).toEqual([2, expect.stringContaining("--shard is for --from")]);
});

it("countersigns no checkpoint of an old year that is not as it was signed", async () => {
  const rows = await suite.store.collection<CheckpointRow>("checkpoints");
  const end = (await rows.find({ limit: 100 })).findLast(({ shard }) => shard.year === year);
  const root = Buffer.alloc(32, 7);
  const text = `test.example/ledger/${year}\n3\n${root.toString("base64")}\n`;
  const line = formatSignature({ name: "somebody", keyId: 1, signature: Buffer.alloc(64) });
  await rows.set(end?._id ?? "", { root, checkpoint: `${text}\n${line}` });
  await expect(rpc.getCheckpoint({ shard: year })).rejects.toMatchObject({ failure: { status: "INTERNAL" } });
  await expect(service.failed).rejects.toThrow(/checkpoint 0+\d+ is not signed by this ledger's key/);
});

it("is followed by the siem topic without a gap", async () => {
  const seen: number[] = [];
  await vi.waitFor(async () => {
    seen.length = 0;
    const onRecords = (records: readonly { value: Uint8Array }[]) =>
      void seen.push(...records.map(({ value }) => ledgerIndexOf(value) ?? -1));
    await readTopic({ bus: suite.bus, topic: siemTopic, name: "test" }, onRecords, new AbortController().signal);
    expect(seen.length).toBeGreaterThanOrEqual(5);
  }, bound);
  expect(seen).toEqual(seen.map((_, i) => i));
});

it("verifies as a whole by the key of either year, and a shard alone says what it goes on from", async () => {
  const { verifierKey } = await opened(year);
  await vi.waitFor(
    () => expect(readFileSync(join(ledgerDir, String(year + 1), "checkpoint"), "utf8")).toBeTruthy(),
    bound,
  );
  await service.close();
  const verify = async (dir: string, ...more: string[]) => {
    const { code, out, err } = await curfew("verify", dir, "--key", verifierKey, "-o", "json", ...more);
    return { code, err, verdict: out && JSON.parse(out) };
  };
  const remembered = join(ledgerDir, "remembered");
  expect(await verify(ledgerDir, "--remember", remembered)).toMatchObject({
    code: 0,
    verdict: {
      kind: "ledger",
      logs: [{ origin: `test.example/ledger/${year}`, size: 3 }, { origin: `test.example/ledger/${year + 1}` }],
      integrity: { holds: true, why: expect.stringContaining("each of 2 logs follows the one before it") },
      completeness: { verdict: "holds" },
    },
  });
  expect(readFileSync(remembered, "utf8")).toContain(`ledger/${year + 1}\n`);
  expect(await verify(join(ledgerDir, String(year)))).toMatchObject({
    code: 0,
    verdict: { completeness: { verdict: "holds" } },
  });
  expect(await verify(join(ledgerDir, String(year + 1)))).toMatchObject({
    code: 0,
    verdict: {
      kind: "log",
      completeness: { verdict: "not applicable", why: expect.stringContaining("3 entries of the years before") },
    },
  });
  // The newest year is gone: who remembers it misses it.
  rmSync(join(ledgerDir, String(year + 1)), { recursive: true });
  expect(await verify(ledgerDir, "--remember", remembered)).toMatchObject({
    code: 1,
    verdict: { integrity: { file: `${year + 1}/checkpoint`, why: expect.stringMatching(/^rollback: /) } },
  });
});
