import fc from "fast-check";
import { expect, test } from "vitest";
import { decodeBundle, encodeBundle } from "./entry-bundle.ts";
import { MAX_ENTRY_BYTES } from "./hash.ts";
import { NoteError } from "./note-error.ts";

const hexes = (entries: readonly Uint8Array[]) => entries.map((entry) => Buffer.from(entry).toString("hex"));

test("an entry is its length in 16 bits and its bytes", () => {
  expect(encodeBundle([Buffer.from("one"), Buffer.of(), Buffer.from("three")]).toString("latin1")).toBe(
    "\0\x03one\0\0\0\x05three",
  );
  const longest = new Uint8Array(MAX_ENTRY_BYTES).fill(7);
  const bundle = encodeBundle([longest]);
  expect(bundle.subarray(0, 3)).toEqual(Buffer.of(0xff, 0xff, 7));
  expect(decodeBundle(bundle, 1)[0]?.length).toBe(MAX_ENTRY_BYTES);
  expect(() => encodeBundle([new Uint8Array(MAX_ENTRY_BYTES + 1)])).toThrow(RangeError);
  expect(() => encodeBundle([])).toThrow(RangeError);
  expect(() => encodeBundle(Array(257).fill(longest.subarray(0, 1)))).toThrow(RangeError);
});

test("bundles are read back; cut or lengthened by a byte or an entry, each is refused", () => {
  const bundles = fc.array(fc.uint8Array({ maxLength: 400 }), { minLength: 1, maxLength: 256 });
  fc.assert(
    fc.property(bundles, fc.nat(), (entries, cut) => {
      const bytes = encodeBundle(entries);
      const width = entries.length;
      expect(hexes(decodeBundle(bytes, width))).toEqual(hexes(entries));
      expect(() => decodeBundle(bytes.subarray(0, cut % bytes.length), width)).toThrow(NoteError);
      expect(() => decodeBundle(Buffer.concat([bytes, Buffer.of(0)]), width)).toThrow("surplus");
      expect(() => decodeBundle(bytes, width + 1)).toThrow("is missing");
      expect(() => decodeBundle(bytes, width - 1)).toThrow("surplus");
    }),
    { numRuns: 50 },
  );
});

test("each violation has its name and its place", () => {
  const bytes = encodeBundle([Buffer.from("one"), Buffer.from("two")]);
  const refusals: [Uint8Array, number, string][] = [
    [bytes, 3, "entry 3 of 3 is missing"],
    [bytes.subarray(0, 6), 2, "entry 2 of 2 ends within its length"],
    [bytes.subarray(0, 9), 2, "entry 2 of 2 ends within its bytes"],
    [bytes, 1, "5 surplus bytes after entry 1 of 1"],
    [Buffer.of(), 1, "entry 1 of 1 is missing"],
  ];
  for (const [bundle, width, message] of refusals) expect(() => decodeBundle(bundle, width)).toThrow(message);
});

test("no bytes make it fail with anything but a NoteError; what it reads, it writes", () => {
  const bytes = fc.array(fc.oneof(fc.constantFrom(0, 1, 2), fc.nat(255)), { maxLength: 60 }).map(Buffer.from);
  fc.assert(
    fc.property(bytes, fc.integer({ min: 1, max: 6 }), (bundle, width) => {
      try {
        expect(encodeBundle(decodeBundle(bundle, width)).equals(bundle)).toBe(true);
      } catch (error) {
        expect(error).toBeInstanceOf(NoteError);
      }
    }),
    { numRuns: 5000 },
  );
});
