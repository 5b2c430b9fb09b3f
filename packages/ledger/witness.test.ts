import { generateKeyPairSync } from "node:crypto";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { openCheckpoint } from "./checkpoint.ts";
import { emptyRoot } from "./hash.ts";
import { writeLog } from "./log.test-data.ts";
import { signNote } from "./note.ts";
import { cosignerKeyText, noteCosigner, noteSigner, parseVerifierKey, verifierKeyText } from "./note-key.ts";
import { tileNodes } from "./tile-nodes.ts";
import { proveConsistency } from "./tree.ts";
import { cosign, decideCosigning, isRefusal, readSubmission, type Witnessed, type WitnessedLogs } from "./witness.ts";

const origin = "log.example/2026";
const pair = generateKeyPairSync("ed25519");
const stranger = generateKeyPairSync("ed25519");
const verifier = parseVerifierKey(verifierKeyText(origin, pair.publicKey));
const logs: WitnessedLogs = new Map([[origin, [verifier]]]);
const sizes = [1, 2, 3, 5, 8, 255, 256, 257, 300];
const log = writeLog(sizes);
const fork = writeLog(sizes, (i) => Buffer.from(`other ${i}`));
const base64 = (bytes: Uint8Array) => Buffer.from(bytes).toString("base64");

const textOf = (size: number | string, root: Uint8Array, more = "") => `${origin}\n${size}\n${base64(root)}\n${more}`;
const signed = (text: string, key = pair.privateKey, name = origin) => signNote(text, [noteSigner(name, key)]);
const rootOf = (size: number, of = log) => (size === 0 ? emptyRoot() : of.rootAt(size));
const at = (size: number, of = log) => signed(textOf(size, rootOf(size, of)));
const proofOf = async (old: number, size: number, of = log) =>
  old === 0 || old === size ? [] : proveConsistency(old, size, tileNodes(size, of.read));
const body = (old: number | string, proof: readonly Uint8Array[], checkpoint: string) =>
  `old ${old}\n${proof.map((hash) => `${base64(hash)}\n`).join("")}\n${checkpoint}`;

const now = 1_795_000_000;
/** The new state, or the refusal. */
const submit = (request: string | Uint8Array, before?: Witnessed, seconds = now) => {
  const submission = readSubmission(Buffer.from(request), logs);
  return isRefusal(submission) ? submission : decideCosigning(submission, before, seconds);
};
const stateAt = (size: number): Witnessed => ({ size, root: rootOf(size), seconds: now });
const statusOf = (...of: Parameters<typeof submit>) => {
  const outcome = submit(...of);
  return isRefusal(outcome) ? outcome.status : 200;
};

describe("a witness", () => {
  it("cosigns the first checkpoint, every growth with its proof, and the same checkpoint again", async () => {
    for (const old of [0, ...sizes])
      for (const size of [0, ...sizes].filter((each) => each >= old)) {
        const before = old === 0 ? undefined : stateAt(old);
        const after = submit(body(old, await proofOf(old, size), at(size)), before);
        expect(after, `${old} to ${size}`).toEqual({ size, root: Buffer.from(rootOf(size)), seconds: now });
      }
    expect(statusOf(body(0, [], at(8)), { size: 0, root: emptyRoot(), seconds: now })).toBe(200);
  });

  it("answers with a line that the log can put under its checkpoint", () => {
    const witness = generateKeyPairSync("ed25519");
    const submission = readSubmission(Buffer.from(body(0, [], at(8))), logs);
    if (isRefusal(submission)) throw new Error(submission.said);
    const { line, checkpoint } = cosign(submission, noteCosigner("w.example", witness.privateKey, now));
    const key = parseVerifierKey(cosignerKeyText("w.example", witness.publicKey));
    expect(checkpoint).toBe(`${at(8)}${line}`);
    expect(openCheckpoint(checkpoint, verifier, [key]).signatures).toHaveLength(2);
  });

  it("states the size that it knows when it is asked from another (409)", async () => {
    const conflict = (size: number) => ({ status: 409, said: "another size was cosigned", size });
    expect(submit(body(5, await proofOf(5, 8), at(8)))).toEqual(conflict(0));
    expect(submit(body(0, [], at(8)), stateAt(5))).toEqual(conflict(5));
    expect(submit(body(3, await proofOf(3, 8), at(8)), stateAt(5))).toEqual(conflict(5));
    expect(submit(body(5, await proofOf(5, 8), at(8)), stateAt(8))).toEqual(conflict(8));
    // Rolled back: nothing a log can say brings a witness back.
    for (const old of [0, 1, 2, 3, 5]) expect(submit(body(old, [], at(5)), stateAt(8))).toEqual(conflict(8));
  });

  it("refuses what is not proven (422), and says when a log has signed two roots of one size", async () => {
    const proof = await proofOf(5, 8);
    const [first = Buffer.alloc(32)] = proof;
    const flipped = [Buffer.from(first.map((byte, i) => (i === 7 ? byte ^ 1 : byte))), ...proof.slice(1)];
    for (const wrong of [flipped, proof.slice(1), [...proof, first], []])
      expect(submit(body(5, wrong, at(8)), stateAt(5))).toMatchObject({ status: 422 });
    expect(statusOf(body(5, await proofOf(5, 8, fork), at(8, fork)), stateAt(5))).toBe(422);
    expect(submit(body(8, [], at(8, fork)), stateAt(8))).toMatchObject({ status: 422, isFork: true });
    expect(submit(body(0, [], at(8, fork)), stateAt(8))).toMatchObject({ status: 409, isFork: true });
    expect(submit(body(8, proof, at(8)), stateAt(8))).toMatchObject({ status: 422 });
    expect(submit(body(0, [first], at(8)))).toMatchObject({ status: 422 });
    expect(statusOf(body(0, [], signed(textOf(0, first))))).toBe(422);
  });

  it("knows only its logs (404) and only their keys (403)", () => {
    const other = `other.example\n8\n${base64(rootOf(8))}\n`;
    expect(statusOf(body(0, [], signed(other, pair.privateKey, "other.example")))).toBe(404);
    const text = textOf(8, rootOf(8));
    expect(statusOf(body(0, [], signed(text, stranger.privateKey)))).toBe(403);
    expect(statusOf(body(0, [], signed(text, stranger.privateKey, "stranger")))).toBe(403);
    const lineOf = (note: string) => note.slice(note.indexOf("— "));
    const broken = at(8).replace(lineOf(at(8)), lineOf(at(5)));
    expect(statusOf(body(0, [], broken))).toBe(403);
    // A good signature beside a bad one of the same key, and beside a stranger's.
    expect(statusOf(body(0, [], `${at(8)}${lineOf(broken)}`))).toBe(403);
    expect(statusOf(body(0, [], `${at(8)}${lineOf(signed(text, stranger.privateKey))}`))).toBe(200);
  });

  it("refuses an old size past the checkpoint's (400)", () => {
    expect(submit(body(9, [], at(8)), stateAt(9))).toMatchObject({ status: 400 });
    expect(submit(body(9, [], at(8)))).toMatchObject({ status: 400 });
  });

  it("cosigns extension lines with the rest", () => {
    const extended = signed(textOf(8, rootOf(8), "extension\nanother one\n"));
    expect(statusOf(body(0, [], extended))).toBe(200);
  });

  const root = base64(rootOf(8));
  const hash = `${base64(Buffer.alloc(32, 7))}\n`;
  it.each<[string, string | Buffer]>([
    ["nothing", ""],
    ["no old line", `\n${at(8)}`],
    ["old -1", body(-1, [], at(8))],
    ["old with a leading zero", body("08", [], at(8))],
    ["old with a plus sign", body("+8", [], at(8))],
    ["old of 2^53", body("9007199254740992", [], at(8))],
    ["old of 2^64", body("18446744073709551616", [], at(8))],
    ["no blank line", `old 0\n${at(8)}`],
    ["a hash that is no base64", `old 0\n?\n\n${at(8)}`],
    ["a hash of 31 bytes", `old 0\n${base64(Buffer.alloc(31))}\n\n${at(8)}`],
    ["a hash with stray bits", `old 0\n${hash.replace(/.=\n$/, "d=\n")}\n${at(8)}`],
    ["64 hashes", `old 5\n${hash.repeat(64)}\n${at(8)}`],
    ["CRLF", body(0, [], at(8)).replaceAll("\n", "\r\n")],
    ["data after the checkpoint", `${body(0, [], at(8))}more`],
    ["an empty line after the checkpoint", `${body(0, [], at(8))}\n`],
    ["no signature", `old 0\n\n${textOf(8, rootOf(8))}\n`],
    ["a signed size with a leading zero", body(0, [], signed(textOf("08", rootOf(8))))],
    ["a signed size of 2^63", body(0, [], signed(textOf("9223372036854775808", rootOf(8))))],
    ["a signed root that is no base64", body(0, [], signed(`${origin}\n8\n${root.slice(1)}\n`))],
    ["a signed root of 31 bytes", body(0, [], signed(textOf(8, Buffer.alloc(31))))],
    ["a signed empty extension line", body(0, [], signed(textOf(8, rootOf(8), "\n")))],
    ["a signed checkpoint of two lines", body(0, [], signed(`${origin}\n8\n`))],
    ["bytes that are not UTF-8", Buffer.concat([Buffer.from(body(0, [], at(8))), Buffer.of(0xff)])],
    ["too many bytes", `${body(0, [], at(8))}${"x".repeat(65_536)}`],
  ])("calls %s malformed (400)", (_what, request) => {
    expect(submit(request)).toMatchObject({ status: 400 });
    expect(submit(request, stateAt(8))).toMatchObject({ status: 400 });
  });

  it("never states a time before its last one: a clock a little behind waits, one far behind cosigns nothing", () => {
    const again = body(8, [], at(8));
    expect(submit(again, stateAt(8), now + 5)).toMatchObject({ seconds: now + 5 });
    expect(submit(again, stateAt(8), now - 60)).toMatchObject({ seconds: now });
    expect(submit(again, stateAt(8), now - 61)).toMatchObject({ status: 503 });
    expect(submit(body(0, [], at(8)), undefined, 0)).toMatchObject({ seconds: 1 });
    expect(submit(body(0, [], at(8)), undefined, Number.NaN)).toMatchObject({ status: 503 });
  });
});

const requests = fc.record({
  old: fc.constantFrom(0, ...sizes),
  size: fc.constantFrom(0, ...sizes),
  of: fc.constantFrom(log, fork),
  known: fc.boolean(),
  seconds: fc.integer({ min: now - 30, max: now + 30 }),
});

it("whatever is asked, what was cosigned is one growing tree, and its times never go back", async () => {
  let cosigned = 0;
  const property = fc.asyncProperty(fc.array(requests, { maxLength: 40 }), async (asked) => {
    let state: Witnessed | undefined;
    let tree: typeof log | undefined;
    for (const { old, size, of, known, seconds } of asked) {
      const from = known ? (state?.size ?? 0) : old;
      const proof = from <= size ? await proofOf(from, size, of) : [];
      const after = submit(body(from, proof, at(size, of)), state, seconds);
      if (isRefusal(after)) continue;
      if (after.size > 0) tree ??= of;
      expect(after.size).toBeGreaterThanOrEqual(state?.size ?? 0);
      expect(after.seconds).toBeGreaterThanOrEqual(state?.seconds ?? 0);
      expect(after.root).toEqual(Buffer.from(rootOf(after.size, tree)));
      state = after;
      cosigned += 1;
    }
  });
  await fc.assert(property, { numRuns: 300, seed: 1_127 });
  expect(cosigned).toBeGreaterThan(300);
});

it("bytes of any kind are answered with a status, never with an exception", () => {
  const whole = Buffer.from(body(0, [], at(8)));
  const edited = fc
    .tuple(fc.nat(whole.length), fc.nat(4), fc.uint8Array({ maxLength: 4 }))
    .map(([start, cut, bytes]) => Buffer.concat([whole.subarray(0, start), bytes, whole.subarray(start + cut)]));
  const statuses = new Set<number>();
  const property = fc.property(fc.oneof(edited, fc.uint8Array({ maxLength: 300 })), (request) => {
    const status = statusOf(request);
    statuses.add(status);
    if (status === 200) expect(whole.equals(request)).toBe(true);
  });
  fc.assert(property, { numRuns: 20_000, seed: 20_261_127 });
  expect([...statuses].sort()).toEqual([200, 400, 403, 404]);
});
