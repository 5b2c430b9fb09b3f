import { createPrivateKey, createPublicKey } from "node:crypto";
import { createProducerKey } from "@curfew/event-log/producer-key.ts";
import { openIdentities } from "@curfew/event-log/testing/producer-identity.ts";
import { formatAddCheckpoint, parseAddCheckpoint } from "@curfew/ledger/add-checkpoint.ts";
import { signCheckpoint } from "@curfew/ledger/checkpoint.ts";
import type { LogRecord } from "@curfew/ledger/leaf.ts";
import { cosignerKeyText, noteCosigner } from "@curfew/ledger/note-key.ts";
import { parsePolicy } from "@curfew/ledger/policy.ts";
import { formatProofFile, parseProofFile } from "@curfew/ledger/proof-file.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import { beforeAll, describe, expect, it } from "vitest";
import { sourceOf } from "./byte-source.ts";
import { draftName, entryName, file, proofName } from "./layout.ts";
import type { Selection } from "./manifest.ts";
import { archiveOf, type Files, filesOf, signedAgain } from "./testing/archive.ts";
import {
  allOf,
  bytesOf,
  caseId,
  everything,
  origin,
  partsOf,
  policy,
  policyText,
  sampleLog,
  sampleRecords,
  signer,
  signerOf,
  startMs,
  tokenId,
  verifierKey,
} from "./testing/sample.ts";
import { openBundle } from "./verify-bundle.ts";

const log = sampleLog(sampleRecords(6));
const last = log.size - 1;
let files: Files;
beforeAll(async () => {
  files = await filesOf(await bytesOf(partsOf(log, allOf(log))));
});
const text = (name: string) => Buffer.from(files.find(([each]) => each === name)?.[1] ?? "").toString();
const open = (bytes: Uint8Array, by = policy) => openBundle(sourceOf(bytes), by);
const refused = (bytes: Uint8Array, by = policy) =>
  open(bytes, by).then(
    () => "accepted",
    (error: Error) => error.message,
  );

describe("integrity", () => {
  it("is not broken by what this suite does to a bundle when it does nothing", async () => {
    expect(await refused(signedAgain(files, {}))).toBe("accepted");
  });

  it("does not hold under another key, whatever key the bundle names", async () => {
    const stranger = signerOf(2);
    const forged = signedAgain(files, { [file.key]: stranger.verifierKey }, {}, stranger.signer);
    const idOf = (key: string) => key.split("+", 2).join("+");
    expect(await refused(forged)).toBe(
      `manifest.note: no known key has signed the note; it names ${idOf(stranger.verifierKey)}`,
    );
    const strangers = parsePolicy(`log ${stranger.verifierKey}\nquorum none\n`);
    expect(await refused(forged, strangers)).toBe(
      `checkpoint: no log of the policy has signed the checkpoint; it names ${idOf(verifierKey)}`,
    );
    expect(await refused(archiveOf(files), strangers)).toBe(
      `manifest.note: no known key has signed the note; it names ${idOf(verifierKey)}`,
    );
    const renamed = signerOf(1, "other.example/ledger");
    expect(await refused(archiveOf(files), parsePolicy(`log ${renamed.verifierKey}\nquorum none\n`))).toMatch(
      /^manifest.note/,
    );
  });

  it("does not hold for a checkpoint taken for a manifest, nor for a manifest of other files", async () => {
    const checkpoint = archiveOf(
      files.map(([name, bytes]) => [name, name === file.note ? Buffer.from(text(file.checkpoint)) : bytes]),
    );
    expect(await refused(checkpoint)).toBe("manifest.note: what is signed is not the hash of this manifest.json");
    const other = await filesOf(await bytesOf(partsOf(log, [0, 1])));
    const manifestOfOther = other.filter(([name]) => name === file.manifest || name === file.note);
    expect(await refused(archiveOf([...files.slice(0, -2), ...manifestOfOther]))).toMatch(
      /^entries\/0+2.bin: manifest.json has /,
    );
  });

  it("does not hold where the key's holder put in what the log never had", async () => {
    const proof = parseProofFile(text(proofName(2)));
    const flipped = proof.proof.map((each, i) => (i === 1 ? Buffer.from(each).fill(7) : each));
    const leaf = Buffer.from(files.find(([name]) => name === entryName(3))?.[1] ?? "");
    const resigned = signCheckpoint({ origin, size: log.size, root: Buffer.alloc(32, 9) }, [signer]);
    const smaller = log.checkpoints[log.size - 1] as string;
    const forks = signCheckpoint({ origin, size: 1, root: Buffer.alloc(32, 5) }, [signer]);
    const shortened = formatAddCheckpoint({ old: 1, proof: [], checkpoint: log.checkpoints[log.size] as string });
    const { proof: begun } = parseAddCheckpoint(text(file.consistency));
    const cases: readonly (readonly [Record<string, string | Buffer | undefined>, RegExp])[] = [
      [{ [entryName(2)]: leaf }, /^entries\/0+2.tlog-proof: it does not lead from entries\/0+2.bin to the root/],
      [{ [entryName(2)]: "no leaf" }, /^entries\/0+2.tlog-proof: it does not lead/],
      [{ [proofName(2)]: formatProofFile({ ...proof, proof: flipped }) }, /^entries\/0+2.tlog-proof: it does not lead/],
      [
        { [proofName(2)]: formatProofFile({ ...proof, proof: proof.proof.slice(1) }) },
        /^entries\/0+2.tlog-proof: it does not lead/,
      ],
      [{ [proofName(2)]: text(proofName(3)) }, /^entries\/0+2.tlog-proof: it is not about this leaf/],
      [
        { [proofName(2)]: formatProofFile({ ...proof, extra: Buffer.from("x") }) },
        /^entries\/0+2.tlog-proof: it is not about this leaf/,
      ],
      [
        { [proofName(2)]: formatProofFile({ ...proof, checkpoint: resigned }) },
        /^entries\/0+2.tlog-proof: its checkpoint is not/,
      ],
      [{ [proofName(2)]: "nonsense" }, /^entries\/0+2.tlog-proof: there is no blank line/],
      [{ [proofName(2)]: undefined }, /^entries\/0+2.tlog-proof: it is missing/],
      [{ [entryName(2)]: undefined }, /^entries\/0+2.tlog-proof: there is no entries\/0+2.bin/],
      [{ [file.checkpoint]: smaller }, /^checkpoint: it is not of the tree that manifest.json names/],
      [{ [file.checkpoint]: resigned }, /^checkpoints\/consistency: its checkpoint is not that of checkpoint/],
      [
        {
          [file.checkpoint]: resigned,
          [file.consistency]: formatAddCheckpoint({ old: 1, proof: begun, checkpoint: resigned }),
        },
        /^checkpoints\/consistency: the tree of checkpoint does not begin with/,
      ],
      [{ [file.firstCheckpoint]: forks }, /^checkpoints\/consistency: the tree of checkpoint does not begin with/],
      [{ [file.firstCheckpoint]: log.checkpoints[2] }, /^checkpoints\/consistency/],
      [{ [file.consistency]: shortened }, /^checkpoints\/consistency/],
      [{ [draftName(last)]: "{}" }, /^drafts\/0+7.json: not the draft whose hash was sealed as leaf 7/],
      [{ [draftName(3)]: "{}" }, /^drafts\/0+3.json: entries\/0+3.bin is not about a draft/],
      [{ [file.readMe]: undefined }, /^not an evidence bundle/],
      [{ [file.timeline]: undefined }, /^timeline.html: it is missing/],
    ];
    for (const [changes, reason] of cases) expect(await refused(signedAgain(files, changes))).toMatch(reason);
    const facts: readonly (readonly [object, RegExp])[] = [
      [{ entries: 7 }, /^manifest.json: it says 7 entries, and there are 8/],
      [{ range: { first: 1, end: 8 } }, /^entries\/0+.bin: it lies outside of the range/],
      [{ range: { first: 8, end: 1 } }, /^manifest.json: it is no manifest/],
      [{ origin: "other.example/ledger" }, /^manifest.json: it is of another log/],
      [{ size: 9 }, /^checkpoint: it is not of the tree/],
    ];
    for (const [changed, reason] of facts) expect(await refused(signedAgain(files, {}, changed))).toMatch(reason);
  });

  it("wants the cosignatures that a policy demands, and tells who cosigned", async () => {
    const key = createPrivateKey({
      key: Buffer.concat([Buffer.from("302e020100300506032b657004220420", "hex"), Buffer.alloc(32, 3)]),
      format: "der",
      type: "pkcs8",
    });
    const witness = cosignerKeyText("w.example/w", createPublicKey(key));
    const wanted = parsePolicy(`${policyText.split("\n")[0]}\nwitness w ${witness}\nquorum w\n`);
    expect(await refused(archiveOf(files), wanted)).toBe("checkpoint: the quorum of the policy has not cosigned it");
    const parts = partsOf(log, allOf(log));
    const [signed = ""] = parts.checkpoint.split("\n\n");
    const { name, keyId, sign } = noteCosigner("w.example/w", key, startMs / 1_000);
    const id = Buffer.alloc(4);
    id.writeUInt32BE(keyId);
    const line = `— ${name} ${Buffer.concat([id, sign(`${signed}\n`)]).toString("base64")}\n`;
    const cosigned = await open(await bytesOf({ ...parts, checkpoint: `${parts.checkpoint}${line}` }), wanted);
    expect(cosigned.checkpoint.witnesses).toEqual([{ name: "w", seconds: startMs / 1_000 }]);
  });
});

describe("completeness", () => {
  const missing = async (
    records: readonly LogRecord[],
    pick = (index: number) => index >= 0,
    selection: Selection = everything,
  ) => {
    const sealed = sampleLog(records);
    const bundle = await open(await bytesOf(partsOf(sealed, allOf(sealed).filter(pick), selection)));
    return bundle.report.missing;
  };
  const records = sampleRecords(6);
  const chain = "verifier/a/1";
  const ofToken = { ...everything, token: tokenId(1) };

  it("holds for all of a log, and for a part of it that begins in the middle of chains", async () => {
    expect(await missing(records)).toEqual([]);
    expect(
      await missing(records, (i) => i >= 2 && i < 5, { ...everything, from: "2026-11-24T22:32:00.000Z", to: "x" }),
    ).toEqual([]);
  });

  it("a leaf of the range that was left out is missing, and so are the records in it", async () => {
    expect(await missing(records, (i) => i !== 3)).toEqual([
      "of the range leaf number 3 is missing",
      `${chain}: record 4 is missing before curfew.uses.v1/0@4`,
    ]);
    expect(await missing(records, (i) => i < 7)).toEqual(["of the range leaf number 7 is missing"]);
  });

  it("a record that was deleted before it was sealed is missing, the first of a log too", async () => {
    expect(await missing(records.toSpliced(3, 1))).toEqual([`${chain}: record 4 is missing before curfew.uses.v1/0@4`]);
    expect(await missing(records.toSpliced(0, 1))).toEqual([`${chain}: record 1 is missing before curfew.uses.v1/0@1`]);
  });

  it("a record that nobody produced, and one that was changed on its topic, are noticed", async () => {
    const [first] = records as [LogRecord];
    const nobody = { ...first, offset: 99, headers: first.headers.filter(([name]) => !name.startsWith("curfew-")) };
    expect(await missing([...records, nobody])).toEqual([
      "a record at curfew.uses.v1/0@99 is of no producer that is known",
    ]);
    expect(await missing([...records, { ...first, offset: 99 }])).toEqual([
      `${chain}: curfew.uses.v1/0@99 does not follow the record before it`,
    ]);
    const changed = records.with(2, { ...(records[2] as LogRecord), value: Buffer.from([0x0a, 1, 0x41]) });
    expect(await missing(changed)).toEqual([`${chain}: curfew.uses.v1/0@3 does not follow the record before it`]);
    const large = { ...first, offset: 99, value: Buffer.alloc(70_000) };
    expect(await missing([...records, large])).toEqual([
      "curfew.uses.v1/0@99 is too large for a leaf: only its hash is sealed",
    ]);
  });

  it("of a ledger from its first leaf rests on signatures, and on what producers said they had sent", async () => {
    const clock: Clock = { now: () => startMs, monotonicMs: () => 0, sleep: async () => undefined };
    const us = await openIdentities(clock, ["issuer", "verifier", "breach-notifier"]);
    const keyOf = (producer: string, topic: string) =>
      createProducerKey(producer, topic, () => us.identity(producer.split("/")[0] as string));
    const signed = sampleRecords(6, "invoices", keyOf);
    const reportOf = async (sealed: readonly LogRecord[], caPem = us.caPem) => {
      const all = sampleLog(sealed);
      const parts = { ...partsOf(all, allOf(all)), caPem };
      return (await open(await bytesOf(parts))).report;
    };
    const { chains, missing: none } = await reportOf(signed);
    expect(none).toEqual([]);
    expect(chains.map((each) => [each.last, each.signed])).toEqual([
      [6, 6],
      [1, 1],
      [1, 1],
    ]);
    const strangers = await openIdentities(clock, ["verifier"]);
    expect((await reportOf(signed, strangers.caPem)).missing).toContain(
      "verifier/a/1 at curfew.uses.v1/0@0 is of no producer that is known",
    );
    // Whoever has the ledger's key makes up the authority too: then one that was had from elsewhere is needed.
    const all = sampleLog(signed);
    const whole = sourceOf(await bytesOf({ ...partsOf(all, allOf(all)), caPem: us.caPem }));
    const byOthers = await openBundle(whole, policy, { producers: strangers.trust });
    expect(byOthers.report.missing).toContain("verifier/a/1 at curfew.uses.v1/0@0 is of no producer that is known");
    expect((await openBundle(whole, policy, { producers: us.trust })).report.missing).toEqual([]);
    const unsigned = signed.with(5, without(signed[5] as LogRecord, "curfew-sig"));
    expect((await reportOf(unsigned)).chains[0]).toMatchObject({ last: 6, signed: 5 });
    const other = headerOf(signed[4] as LogRecord, "curfew-sig");
    const forged = signed.with(5, {
      ...without(signed[5] as LogRecord, "curfew-sig"),
      headers: [...without(signed[5] as LogRecord, "curfew-sig").headers, ["curfew-sig", other]],
    });
    expect((await reportOf(forged)).missing).toEqual([
      "verifier/a/1: the signature at curfew.uses.v1/0@5 does not hold",
    ]);
    await expect(reportOf(signed, "no certificate")).rejects.toThrow("no certificate of an authority");
    expect(await refused(signedAgain(files, { [file.authority]: "none" }))).toBe(
      "authority.pem: it holds no certificate of an authority",
    );
  });

  it("of a selection is what numbered streams show, and no more: a use that was left out is not seen", async () => {
    const about = (i: number) => i % 2 === 0 || i === last;
    expect(await missing(records, about, ofToken)).toEqual([]);
    expect(await missing(records, (i) => about(i) && i !== 2, ofToken)).toEqual([]);
    const second = sampleRecords(6).map((record, i) => (i < 6 ? record : withNumber(record, 2)));
    expect(await missing(second, about, ofToken)).toEqual([
      `tokens/${tokenId(1)}: event 1 is missing before leaf 6`,
      `${caseId}: event 1 is missing before leaf 7`,
    ]);
    expect(await missing(second, about, { ...ofToken, case: "case/another/1" })).toEqual([
      `tokens/${tokenId(1)}: event 1 is missing before leaf 6`,
    ]);
  });
});

const headerOf = ({ headers }: LogRecord, name: string) => headers.find(([each]) => each === name)?.[1] ?? "";
const without = (record: LogRecord, name: string): LogRecord => ({
  ...record,
  headers: record.headers.filter(([each]) => each !== name),
});
const withNumber = (record: LogRecord, number: number): LogRecord => ({
  ...record,
  headers: record.headers.map(([name, value]) => [name, name === "ce_sequence" ? String(number) : value]),
});

it("the key in a bundle is the one that signed it", () => {
  expect(text(file.key)).toBe(`${verifierKey}\n`);
  expect(text(file.policy)).toBe(policyText);
});
