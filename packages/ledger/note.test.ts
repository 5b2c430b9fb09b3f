import { generateKeyPairSync } from "node:crypto";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { formatCheckpoint, openCheckpoint, parseCheckpoint, signCheckpoint } from "./checkpoint.ts";
import { emptyRoot, leafHash } from "./hash.ts";
import { MAX_NOTE_BYTES, openNote, parseNote, signNote } from "./note.ts";
import { NoteError } from "./note-error.ts";
import {
  cosignatureSeconds,
  cosignerKeyText,
  isKeyName,
  noteCosigner,
  noteSigner,
  parseSignerKey,
  parseVerifierKey,
  signerKeyText,
  verifierKeyText,
} from "./note-key.ts";
import { verifyInclusion } from "./proof.ts";
import { hex, keyOf, vectors } from "./vectors.test-data.ts";

const logKey = keyOf(vectors.log_seed_hex);
const witnessKey = keyOf(vectors.witness_seed_hex);
const log = parseVerifierKey(vectors.log_vkey);
const witness = parseVerifierKey(vectors.witness_vkey);
const ORIGIN = "ledger.example/evidence";
const signed = vectors.checkpoint_size8;
const cosignedNote = signed + vectors.cosignature_line;
const root8 = Buffer.from(vectors.roots_by_size[8] ?? "", "hex");

describe("reference vectors", () => {
  test("our checkpoint is byte for byte that of the Go library", () => {
    expect(signCheckpoint({ origin: ORIGIN, size: 8, root: root8 }, [noteSigner(ORIGIN, logKey)])).toBe(signed);
    const opened = openCheckpoint(signed, log);
    expect(opened).toMatchObject({ origin: ORIGIN, size: 8 });
    expect(hex(opened.root)).toBe(vectors.roots_by_size[8]);
  });

  test("key texts are those of the Go library, and survive a round trip", () => {
    expect(verifierKeyText(ORIGIN, logKey)).toBe(vectors.log_vkey);
    expect(cosignerKeyText("witness.example/w1", witnessKey)).toBe(vectors.witness_vkey);
    expect(parseSignerKey(signerKeyText(ORIGIN, logKey)).sign("text\n")).toEqual(
      noteSigner(ORIGIN, logKey).sign("text\n"),
    );
  });

  test("a witness's line is made and verified, and says when", () => {
    const { signatures } = openCheckpoint(cosignedNote, log, [witness]);
    expect(signatures.map(({ name }) => name)).toEqual([ORIGIN, "witness.example/w1"]);
    const seconds = cosignatureSeconds(signatures[1]?.signature ?? new Uint8Array()) ?? 0;
    expect(seconds).toBe(1_800_000_000);
    const text = formatCheckpoint({ origin: ORIGIN, size: 8, root: root8 });
    const own = signNote(text, [noteSigner(ORIGIN, logKey), noteCosigner("witness.example/w1", witnessKey, seconds)]);
    expect(own).toBe(cosignedNote);
  });

  test("the proof file's hashes lead from its leaf to its checkpoint", () => {
    const [head = "", ...rest] = vectors.tlog_proof_index5_size8.split("\n\n");
    const { size, root } = openCheckpoint(rest.join("\n\n"), log);
    const proof = head
      .split("\n")
      .slice(2)
      .map((line) => Buffer.from(line, "base64"));
    const leaf = leafHash(Buffer.from(vectors.leaves_hex[5] ?? "", "hex"));
    expect(verifyInclusion(5, size, leaf, proof, root)).toBe(true);
  });
});

describe("opening a note", () => {
  const alice = generateKeyPairSync("ed25519").privateKey;
  const alices = parseVerifierKey(verifierKeyText("alice", alice));
  const bob = generateKeyPairSync("ed25519").privateKey;
  const bobs = parseVerifierKey(verifierKeyText("bob", bob));

  test("what was signed is read back, and a text may hold blank lines", () => {
    const text = fc.string({ unit: "binary" }).map((s) => `${s.replace(/\p{Cc}/gu, "\n")}\n`);
    fc.assert(
      fc.property(text, (body) => {
        const opened = openNote(Buffer.from(signNote(body, [noteSigner("alice", alice)])), [alices]);
        expect(opened.text).toBe(body);
      }),
    );
  });

  test("unknown keys are ignored, unless nobody known is left", () => {
    const note = signNote("hello\n", [noteSigner("bob", bob), noteSigner("alice", alice)]);
    expect(openNote(note, [alices]).signatures.map(({ name }) => name)).toEqual(["alice"]);
    expect(openNote(note, [bobs, alices]).signatures).toHaveLength(2);
    expect(() => openNote(note, [log])).toThrow("no known key");
    expect(() => openNote(note, [])).toThrow("no known key");
    const many = Array.from({ length: 9 }, (_, n) => `— n${n} AAAAAQAA\n`).join("");
    expect(() => openNote(`x\n\n${many}`, [log])).toThrow(
      /^no known key has signed the note; it names n0\+00000001, n1\+00000001, n2\+00000001, n3\+00000001$/,
    );
    expect(() => openNote(note, [alices, alices])).toThrow("two verifiers");
  });

  test("one failing signature of a known key refuses the note, whoever else has signed", () => {
    const note = signNote("hello\n", [noteSigner("bob", bob), noteSigner("alice", alice)]);
    const other = signNote("hullo\n", [noteSigner("bob", bob)]);
    const bobsLine = (text: string) => text.split("\n")[2] ?? "";
    const mixed = note.replace(bobsLine(note), bobsLine(other));
    expect(mixed).not.toBe(note);
    expect(() => openNote(mixed, [alices, bobs])).toThrow("does not hold");
    expect(openNote(mixed, [alices]).text).toBe("hello\n");
  });

  test("a changed text does not verify", () => {
    for (let at = 0; at < signed.indexOf("\n\n"); at++) {
      const changed = signed.slice(0, at) + (signed[at] === "a" ? "b" : "a") + signed.slice(at + 1);
      expect(() => openNote(changed, [log])).toThrow(NoteError);
    }
  });

  test("malformed notes are refused, each for what is wrong with it", () => {
    const line = signed.split("\n")[4] ?? "";
    const blob = line.split(" ")[2] ?? "";
    const bad = [
      "",
      "\n",
      "\n\n",
      "text\n",
      "text\n\n",
      `text\n${line}\n`,
      signed.slice(0, -1),
      `${signed}\n`,
      signed.replace("— ", "- "),
      signed.replace("— ", "—  "),
      signed.replace("— ", "—\u00a0"),
      signed.replace("\n— ", "\n — "),
      signed.replace(`${ORIGIN} `, `${ORIGIN}+ `),
      signed.replace(line, `${line} more`),
      signed.replace(blob, ""),
      signed.replace(blob, blob.slice(0, -1)),
      signed.replace(blob, "AAAAAA=="),
      signed.replace(blob, `${blob.slice(0, -2)}N=`),
      signed.replace(blob, blob.replace("/", "_")),
      signed.replace("\n8\n", "\n8\r\n"),
      signed.replace("\n8\n", "\n8\u0000\n"),
      `\ud800${signed}`,
      signed + `${line}\n`.repeat(100),
      "x".repeat(MAX_NOTE_BYTES) + signed,
      "ä".repeat(MAX_NOTE_BYTES / 2) + signed,
    ];
    for (const note of bad) expect(() => parseNote(note), JSON.stringify(note.slice(0, 200))).toThrow(NoteError);
    expect(() => parseNote(Buffer.concat([Buffer.of(0xff), Buffer.from(signed)]))).toThrow("UTF-8");
    expect(parseNote(signed + `${line}\n`.repeat(99)).signatures).toHaveLength(100);
  });

  test("no input makes a parser fail with anything but a NoteError", () => {
    const pieces = fc.constantFrom(
      "\n",
      "\n\n",
      "— ",
      " ",
      "+",
      "AAAAAAAA",
      "=",
      "0",
      "8",
      ORIGIN,
      "c864b1db",
      "PRIVATE+KEY+",
    );
    const text = fc.array(fc.oneof(pieces, fc.string({ unit: "binary" }))).map((parts) => parts.join(""));
    const parsers = [
      parseNote,
      parseCheckpoint,
      parseVerifierKey,
      parseSignerKey,
      (s: string) => openCheckpoint(s, log),
    ];
    fc.assert(
      fc.property(text, (input) => {
        for (const parse of parsers)
          try {
            parse(input);
          } catch (error) {
            expect(error).toBeInstanceOf(NoteError);
          }
      }),
      { numRuns: 2000 },
    );
  });

  test("only what reads back is signed", () => {
    const signer = noteSigner("alice", alice);
    for (const text of ["", "no end", "a\rb\n", "\ud800\n"]) expect(() => signNote(text, [signer])).toThrow(NoteError);
    expect(() => signNote("text\n", [])).toThrow(NoteError);
    expect(() => signNote("text\n", Array(101).fill(signer))).toThrow(NoteError);
    expect(() => signNote(`${"x".repeat(MAX_NOTE_BYTES)}\n`, [signer])).toThrow(NoteError);
  });
});

describe("keys", () => {
  test("a name has no space, no plus sign, and an end", () => {
    for (const name of ["a", ORIGIN, "ä/2026", "x".repeat(255)]) expect(isKeyName(name)).toBe(true);
    for (const name of [
      "",
      "a b",
      "a+b",
      "a\u2003b",
      "a\u00a0b",
      "a\nb",
      "a\u0085b",
      "a\u0000b",
      "\ud800",
      "x".repeat(256),
    ])
      expect(isKeyName(name)).toBe(false);
  });

  test("a key text with anything changed is refused", () => {
    const bad = [
      "",
      `${vectors.log_vkey} `,
      `${vectors.log_vkey}\n`,
      ` ${vectors.log_vkey}`,
      vectors.log_vkey.slice(0, -4),
      vectors.log_vkey.replace("c864b1db", "C864B1DB"),
      vectors.log_vkey.replace("c864b1db", "c864b1dc"),
      vectors.log_vkey.replace("evidence", "evidenze"),
      vectors.log_vkey.replace("+AQ", "+Ag"),
      vectors.log_vkey.replace("+AQ", "+BA"),
      `${"x".repeat(2000)}${vectors.log_vkey}`,
      signerKeyText(ORIGIN, logKey),
    ];
    for (const text of bad) expect(() => parseVerifierKey(text), text).toThrow(NoteError);
    expect(() => parseSignerKey(vectors.log_vkey)).toThrow(NoteError);
  });

  test("a refused signer key is not repeated in the error", () => {
    const text = signerKeyText(ORIGIN, logKey);
    const seed = text.split("+").slice(4).join("+");
    try {
      parseSignerKey(text.replace("c864b1db", "c864b1dc"));
      expect.fail("accepted");
    } catch (error) {
      expect(error).toBeInstanceOf(NoteError);
      expect(String(error)).not.toContain(seed);
    }
  });

  test("keys of another kind do not sign", () => {
    const p256 = generateKeyPairSync("ec", { namedCurve: "P-256" });
    expect(() => noteSigner("a", p256.privateKey)).toThrow(NoteError);
    expect(() => noteSigner("a", generateKeyPairSync("ed25519").publicKey)).toThrow(NoteError);
    expect(() => noteSigner("a b", logKey)).toThrow(NoteError);
    expect(() => noteCosigner("a", logKey, 1.5)).toThrow(NoteError);
  });

  test("a cosignature is not a signature, nor valid at another time", () => {
    const asLog = parseVerifierKey(verifierKeyText("w", witnessKey));
    const asWitness = parseVerifierKey(cosignerKeyText("w", witnessKey));
    const cosignature = noteCosigner("w", witnessKey, 1_800_000_001).sign("t\n");
    expect(asWitness.verify("t\n", cosignature)).toBe(true);
    expect(asLog.verify("t\n", cosignature)).toBe(false);
    expect(asLog.verify("t\n", cosignature.subarray(8))).toBe(false);
    expect(asWitness.verify("t\n", Buffer.from(cosignature).fill(0, 7, 8))).toBe(false);
    expect(asWitness.verify("t\n", Buffer.from(cosignature).fill(0xff, 0, 8))).toBe(false);
    expect(asWitness.verify("t\n", noteSigner("w", witnessKey).sign("t\n"))).toBe(false);
  });
});

describe("checkpoints", () => {
  const text = formatCheckpoint({ origin: ORIGIN, size: 8, root: root8 });

  test("every checkpoint is read back", () => {
    const roots = fc.uint8Array({ minLength: 32, maxLength: 32 });
    fc.assert(
      fc.property(fc.integer({ min: 1, max: Number.MAX_SAFE_INTEGER }), roots, (size, root) => {
        const read = parseCheckpoint(formatCheckpoint({ origin: ORIGIN, size, root }));
        expect({ ...read, root: hex(read.root) }).toEqual({ origin: ORIGIN, size, root: hex(root) });
      }),
    );
    expect(parseCheckpoint(formatCheckpoint({ origin: ORIGIN, size: 0, root: emptyRoot() })).size).toBe(0);
  });

  test("only the canonical text is read", () => {
    const sizes = [
      "",
      "08",
      "+8",
      "-8",
      "8.0",
      "8 ",
      "0x8",
      "1e3",
      "9007199254740992",
      "9223372036854775808",
      "8n",
      "٨",
      "0",
    ];
    const roots = [
      "",
      "Xcnaeac=",
      `${root8.toString("base64").slice(0, -2)}h=`,
      root8.toString("base64url"),
      hex(root8),
    ];
    const b64 = root8.toString("base64");
    const bad = [
      "",
      text.slice(0, -1),
      `${text}extension\n`,
      `${text}\n`,
      `\n${text}`,
      text.replace(ORIGIN, ""),
      text.replace(ORIGIN, "a b"),
      ...sizes.map((size) => text.replace("\n8\n", `\n${size}\n`)),
      ...roots.map((root) => text.replace(b64, root)),
    ];
    for (const input of bad) expect(() => parseCheckpoint(input), JSON.stringify(input)).toThrow(NoteError);
    for (const size of [-1, 0, 1.5, 2 ** 53])
      expect(() => formatCheckpoint({ origin: ORIGIN, size, root: root8 })).toThrow(NoteError);
    expect(() => formatCheckpoint({ origin: ORIGIN, size: 8, root: root8.subarray(1) })).toThrow(NoteError);
  });

  test("a log speaks for itself only", () => {
    const other = noteSigner("other", logKey);
    expect(() => signCheckpoint({ origin: ORIGIN, size: 8, root: root8 }, [other])).toThrow("origin");
    const forged = signNote(text, [other]);
    expect(() => openCheckpoint(forged, parseVerifierKey(verifierKeyText("other", logKey)))).toThrow("another log");
    const onlyWitness = signNote(text, [noteCosigner("witness.example/w1", witnessKey, 1)]);
    expect(() => openCheckpoint(onlyWitness, log, [witness])).toThrow("log has not signed");
    expect(() =>
      openCheckpoint(`${signed}${vectors.cosignature_line.replace("9FUh", "9FUi")}`, log, [witness]),
    ).toThrow("does not hold");
  });
});
