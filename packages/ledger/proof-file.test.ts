import fc from "fast-check";
import { expect, test } from "vitest";
import { openCheckpoint, signCheckpoint } from "./checkpoint.ts";
import { leafHash } from "./hash.ts";
import { entryOf, writeLog } from "./log.test-data.ts";
import { NoteError } from "./note-error.ts";
import { noteCosigner, noteSigner, parseVerifierKey } from "./note-key.ts";
import { parsePolicy } from "./policy.ts";
import { formatProofFile, MAX_PROOF_FILE_BYTES, parseProofFile, verifyProofFile } from "./proof-file.ts";
import { verifiedNodes } from "./tile-nodes.ts";
import { proveInclusion } from "./tree.ts";
import { keyOf, vectors } from "./vectors.test-data.ts";

const ORIGIN = "ledger.example/evidence";
const file = vectors.tlog_proof_index5_size8;
const leaf = leafHash(Buffer.from(vectors.leaves_hex[5] ?? "", "hex"));
const alone = parsePolicy(`log ${vectors.log_vkey}\nquorum none\n`);
const witnessed = parsePolicy(`log ${vectors.log_vkey}\nwitness w1 ${vectors.witness_vkey}\nquorum w1\n`);
const [head = "", ...notes] = file.split("\n\n");
const checkpoint = notes.join("\n\n");

test("the reference file is read, verified, and written again to the byte", () => {
  const parsed = parseProofFile(Buffer.from(file));
  expect(parsed).toMatchObject({ index: 5, checkpoint });
  expect(parsed.proof).toHaveLength(3);
  expect(parsed).not.toHaveProperty("extra");
  expect(formatProofFile(parsed)).toBe(file);
  expect(verifyProofFile(file, leaf, alone)).toMatchObject({ index: 5, witnesses: [], quorum: true });
  const verdict = verifyProofFile(file, leaf, witnessed);
  expect(verdict.witnesses).toEqual([{ name: "w1", seconds: 1_800_000_000 }]);
  expect(verdict.opened).toMatchObject({ origin: ORIGIN, size: 8 });
});

test("extra data goes along and proves nothing", () => {
  for (const extra of [Buffer.of(), Buffer.from([0, 255, 10])]) {
    const withExtra = formatProofFile({ ...parseProofFile(file), extra });
    expect(withExtra.split("\n")[1]).toBe(`extra ${extra.toString("base64")}`);
    expect(verifyProofFile(withExtra, leaf, witnessed).extra).toEqual(extra);
  }
});

test("what does not hold is refused, and said", () => {
  expect(() => verifyProofFile(file, leafHash(Buffer.from("other")), alone)).toThrow("does not lead from the leaf");
  expect(() => verifyProofFile(file.replace("index 5", "index 4"), leaf, alone)).toThrow("does not lead from the leaf");
  const unwitnessed = `${head}\n\n${vectors.checkpoint_size8}`;
  expect(verifyProofFile(unwitnessed, leaf, alone).quorum).toBe(true);
  expect(() => verifyProofFile(unwitnessed, leaf, witnessed)).toThrow("quorum");
  expect(() => verifyProofFile(file.replace("9FUh", "9FUi"), leaf, witnessed)).toThrow("does not hold");
  expect(() => verifyProofFile(file, leaf, parsePolicy("quorum none\n"))).toThrow("no log of the policy");
});

test("each rule of the format is kept, and named with its line", () => {
  const [, , first = ""] = head.split("\n");
  const bad: [string, string][] = [
    [file.replace("@v1", "@v2"), "line 1: the header"],
    [`\n${file}`, "line 1: the header"],
    [` ${file}`, "line 1: the header"],
    [file.replace("index 5\n", ""), "line 2:"],
    [file.replace("index 5", "index 05"), "line 2:"],
    [file.replace("index 5", "index +5"), "line 2:"],
    [file.replace("index 5", "index -5"), "line 2:"],
    [file.replace("index 5", "index 5 "), "line 2:"],
    [file.replace("index 5", "index 9007199254740992"), 'line 2: "index" and'],
    [file.replace("index 5", "index 9223372036854775808"), 'line 2: "index" and'],
    [file.replace("index 5", "index 8"), "line 2: the index is not below"],
    [file.replace("index", "extra AA\nindex"), "line 2: extra data"],
    [file.replace("index", "extra AB==\nindex"), "line 2: extra data"],
    [file.replace("index", "extra  AAAA\nindex"), "line 2: extra data"],
    [file.replace("index", "extra AAAA\nextra AAAA\nindex"), "line 3:"],
    [file.replace("index 5", "index 5\nextra AAAA"), "line 3: a hash"],
    [file.replace(first, first.slice(4)), "line 3: a hash"],
    [file.replace(first, first.replace("s=", "t=")), "line 3: a hash"],
    [file.replace(first, first.replace("/", "_")).replace(first, `${first} `), "line 3: a hash"],
    [file.replace(first, `${first}\n`.repeat(63).trimEnd()), "line 66: a proof has at most 63"],
    [file.replace(first, ` ${first}`), "line 3: a hash"],
    [file.replaceAll("\n", "\r\n"), "line 1: lines end"],
    [file.replace("\n\n", "\n\n\n"), "checkpoint from line 7:"],
    [head, "no blank line"],
    [file.slice(0, -1), "checkpoint from line 7:"],
    [`${file}\n`, "checkpoint from line 7:"],
    [`${file}x`, "checkpoint from line 7:"],
    [file.replace("\n8\n", "\n08\n"), "checkpoint from line 7:"],
    [file + "x".repeat(MAX_PROOF_FILE_BYTES), `over ${MAX_PROOF_FILE_BYTES} bytes`],
  ];
  for (const [input, rule] of bad) {
    expect(() => parseProofFile(input), JSON.stringify(input.slice(0, 200))).toThrow(NoteError);
    expect(() => parseProofFile(input), JSON.stringify(input.slice(0, 200))).toThrow(rule);
  }
  expect(() => parseProofFile(Buffer.concat([Buffer.from(file), Buffer.of(0xff)]))).toThrow("UTF-8");
  const parsed = parseProofFile(file);
  for (const wrong of [{ index: -1 }, { index: 8 }, { proof: [Buffer.alloc(31)] }, { checkpoint: "" }])
    expect(() => formatProofFile({ ...parsed, ...wrong })).toThrow(NoteError);
});

test("any character changed is refused, or changed something that nothing vouches for", () => {
  const lines = file.split("\n").length;
  for (let at = 0; at < file.length; at += 1) {
    const changed = file.slice(0, at) + (file[at] === "A" ? "B" : "A") + file.slice(at + 1);
    expect(() => verifyProofFile(changed, leaf, witnessed), `character ${at} of ${lines} lines`).toThrow(NoteError);
  }
});

test("no input makes parser or verifier fail with anything but a NoteError; what is read is written", () => {
  const piece = fc.constantFrom(
    "c2sp.org/tlog-proof@v1\n",
    "extra ",
    "index ",
    "5",
    "\n",
    "\n\n",
    checkpoint,
    "AAAA",
    "=",
  );
  const made = fc
    .array(fc.oneof({ weight: 5, arbitrary: piece }, fc.string({ unit: "binary" })))
    .map((s) => s.join(""));
  const edited = fc
    .tuple(fc.nat(file.length), fc.nat(3), fc.string({ maxLength: 3 }))
    .map(([at, cut, text]) => file.slice(0, at) + text + file.slice(at + cut));
  fc.assert(
    fc.property(fc.oneof(made, edited), (input) => {
      try {
        expect(formatProofFile(parseProofFile(input))).toBe(input);
        verifyProofFile(input, leaf, witnessed);
      } catch (error) {
        expect(error).toBeInstanceOf(NoteError);
      }
    }),
    { numRuns: 5000 },
  );
});

test("an entry of a big log is proved out of its tiles", async () => {
  const size = 70_001;
  const log = writeLog([size]);
  const signers = [
    noteSigner(ORIGIN, keyOf(vectors.log_seed_hex)),
    noteCosigner("witness.example/w1", keyOf(vectors.witness_seed_hex), 7),
  ];
  const signed = signCheckpoint({ origin: ORIGIN, size, root: log.rootAt(size) }, signers);
  const { root } = openCheckpoint(signed, parseVerifierKey(vectors.log_vkey));
  const nodes = verifiedNodes(size, root, log.read);
  for (const index of [0, 12_345, 70_000]) {
    const text = formatProofFile({ index, proof: await proveInclusion(index, size, nodes), checkpoint: signed });
    expect(verifyProofFile(text, leafHash(entryOf(index)), witnessed).witnesses).toEqual([{ name: "w1", seconds: 7 }]);
    expect(() => verifyProofFile(text, leafHash(entryOf(index + 1)), witnessed)).toThrow("does not lead");
  }
});
