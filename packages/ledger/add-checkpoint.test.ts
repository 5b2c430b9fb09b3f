import { generateKeyPairSync } from "node:crypto";
import fc from "fast-check";
import { expect, test } from "vitest";
import { formatAddCheckpoint, MAX_ADD_CHECKPOINT_BYTES, parseAddCheckpoint } from "./add-checkpoint.ts";
import { signNote } from "./note.ts";
import { NoteError } from "./note-error.ts";
import { noteSigner } from "./note-key.ts";
import { verifyConsistency } from "./proof.ts";
import { vectors } from "./vectors.test-data.ts";

const checkpoint = vectors.checkpoint_size8;
const vector = vectors.consistency.find(({ old, new: size }) => old === 6 && size === 8);
const proof = (vector?.proof ?? []).map((hash) => Buffer.from(hash, "hex"));
const body = formatAddCheckpoint({ old: 6, proof, checkpoint });
const hash = Buffer.alloc(32, 7).toString("base64");

test("a request is the old size, the proof, a blank line and the checkpoint as it is", () => {
  expect(body).toBe(`old 6\n${proof.map((p) => `${p.toString("base64")}\n`).join("")}\n${checkpoint}`);
  const read = parseAddCheckpoint(Buffer.from(body));
  expect(read).toMatchObject({ old: 6, proof, checkpoint, claimed: { origin: "ledger.example/evidence", size: 8 } });
  const root6 = Buffer.from(vectors.roots_by_size[6] ?? "", "hex");
  expect(verifyConsistency(read.old, read.claimed.size, read.proof, root6, read.claimed.root)).toBe(true);
  expect(parseAddCheckpoint(`old 0\n\n${checkpoint}`)).toMatchObject({ old: 0, proof: [] });
  expect(parseAddCheckpoint(`old 8\n\n${checkpoint}`)).toMatchObject({ old: 8, proof: [] });
  // To be refused by whoever decides, each by a status of its own.
  expect(parseAddCheckpoint(`old 0\n${hash}\n\n${checkpoint}`).proof).toHaveLength(1);
  expect(parseAddCheckpoint(`old 9\n\n${checkpoint}`)).toMatchObject({ old: 9 });
  expect(parseAddCheckpoint(`old 5\n${`${hash}\n`.repeat(63)}\n${checkpoint}`).proof).toHaveLength(63);
});

test("what witnesses elsewhere let pass is refused too, each with its line and its rule", () => {
  const bad: [string, string][] = [
    [`old 06\n\n${checkpoint}`, "line 1:"],
    [`old +6\n\n${checkpoint}`, "line 1:"],
    [`old -1\n\n${checkpoint}`, "line 1:"],
    [`old 6 \n\n${checkpoint}`, "line 1:"],
    [`old  6\n\n${checkpoint}`, "line 1:"],
    [`old\t6\n\n${checkpoint}`, "line 1:"],
    [`Old 6\n\n${checkpoint}`, "line 1:"],
    [`old 6e0\n\n${checkpoint}`, "line 1:"],
    [`old 9007199254740992\n\n${checkpoint}`, 'line 1: "old" and'],
    [`old 9223372036854775808\n\n${checkpoint}`, 'line 1: "old" and'],
    [`\n\n${checkpoint}`, "line 1:"],
    [`${hash}\n\n${checkpoint}`, "line 1:"],
    [`old 6\n${hash.slice(0, -4)}\n\n${checkpoint}`, "line 2: a hash is 32 bytes"],
    [`old 6\n${hash}\n${hash.replace(/.=$/, "d=")}\n\n${checkpoint}`, "line 3: a hash is 32 bytes"],
    [`old 6\n${hash.slice(0, -1)}\n\n${checkpoint}`, "line 2:"],
    [`old 6\n ${hash}\n\n${checkpoint}`, "line 2:"],
    [`old 6\n${`${hash}\n`.repeat(64)}\n${checkpoint}`, "line 65: a proof has at most 63 hashes"],
    [`old 6\r\n\n${checkpoint}`, "line 1: lines end in a line feed alone"],
    [`old 6\n\n${checkpoint.replaceAll("\n", "\r\n")}`, "line 3: lines end in a line feed alone"],
    [`old 6\n${checkpoint}`, "checkpoint from line 6:"],
    [`old 6\n\n\n${checkpoint}`, "checkpoint from line 3:"],
    [`old 6\n\n${checkpoint.replace("\n8\n", "\n08\n")}`, "checkpoint from line 3: a checkpoint's size"],
    [`old 6\n\n${checkpoint}extra`, "checkpoint from line 3:"],
    [`old 6\n\n${checkpoint}\n`, "checkpoint from line 3:"],
    ["old 6\n\n", "checkpoint from line 3:"],
    ["old 6\n", "no blank line"],
    ["", "no blank line"],
    [`${body}\ud800`, "UTF-8"],
    [body + "x".repeat(MAX_ADD_CHECKPOINT_BYTES), `over ${MAX_ADD_CHECKPOINT_BYTES} bytes`],
    [body + "ä".repeat(MAX_ADD_CHECKPOINT_BYTES / 2), `over ${MAX_ADD_CHECKPOINT_BYTES} bytes`],
  ];
  for (const [input, rule] of bad) {
    expect(() => parseAddCheckpoint(input), JSON.stringify(input.slice(0, 90))).toThrow(NoteError);
    expect(() => parseAddCheckpoint(input), JSON.stringify(input.slice(0, 90))).toThrow(rule);
  }
  expect(() => parseAddCheckpoint(Buffer.concat([Buffer.from(body), Buffer.of(0xff)]))).toThrow("UTF-8");
});

test("only what reads back is written", () => {
  for (const bad of [
    { old: 6.5, proof, checkpoint },
    { old: -1, proof, checkpoint },
    { old: 2 ** 53, proof, checkpoint },
    { old: 0, proof, checkpoint },
    { old: 9, proof, checkpoint },
    { old: 6, proof: [Buffer.alloc(31)], checkpoint },
    { old: 6, proof: Array(64).fill(Buffer.alloc(32)), checkpoint },
    { old: 6, proof, checkpoint: "" },
  ])
    expect(() => formatAddCheckpoint(bad)).toThrow(NoteError);
});

test("extension lines and an origin with spaces are a log's right", () => {
  const other = signNote(`log of others\n0\n${hash}\nextension\n`, [
    noteSigner("k", generateKeyPairSync("ed25519").privateKey),
  ]);
  expect(parseAddCheckpoint(`old 0\n\n${other}`).claimed).toMatchObject({
    origin: "log of others",
    size: 0,
    extensions: ["extension"],
  });
  const empty = other.replace("extension\n", "\nextension\n");
  expect(() => parseAddCheckpoint(`old 0\n\n${empty}`)).toThrow("none of them empty");
});

test("no input makes the parser fail with anything but a NoteError; what it reads, it writes", () => {
  const piece = fc.constantFrom(
    "old ",
    "0",
    "6",
    "\n",
    "\n\n",
    hash,
    `${hash}\n`,
    checkpoint,
    "old 6\n",
    "— ",
    "=",
    "\r",
  );
  const made = fc
    .array(fc.oneof({ weight: 5, arbitrary: piece }, fc.string({ unit: "binary" })))
    .map((s) => s.join(""));
  const edited = fc
    .tuple(fc.nat(body.length), fc.nat(3), fc.string({ maxLength: 3 }))
    .map(([at, cut, text]) => body.slice(0, at) + text + body.slice(at + cut));
  fc.assert(
    fc.property(fc.oneof(made, edited), (input) => {
      try {
        const { old, proof, checkpoint, claimed } = parseAddCheckpoint(input);
        if (old > claimed.size || (old === 0 && proof.length > 0)) return;
        expect(formatAddCheckpoint({ old, proof, checkpoint })).toBe(input);
      } catch (error) {
        expect(error).toBeInstanceOf(NoteError);
      }
    }),
    { numRuns: 5000, seed: 20_261_127 },
  );
});
