import { type DescField, type DescMessage, fromBinary, ScalarType, toBinary } from "@bufbuild/protobuf";
import { reflect } from "@bufbuild/protobuf/reflect";

/** A request that nobody of good will sends. */
export interface Hostile {
  readonly name: string;
  readonly bytes: Uint8Array;
  /** Past the server's limit: refused by the transport, without details. */
  readonly oversize?: boolean;
}

type Bytes = Uint8Array;
const text = (value: string): Bytes => Buffer.from(value, "utf8");
const hex = (value: string): Bytes => Buffer.from(value, "hex");
const join = (...parts: readonly Bytes[]): Bytes => Buffer.concat(parts);
const times = (count: number, make: (i: number) => Bytes): Bytes =>
  Buffer.concat(Array.from({ length: count }, (_, i) => make(i)));
const varint = (value: bigint): Bytes => {
  const bytes: number[] = [];
  let rest = BigInt.asUintN(64, value);
  do {
    bytes.push(Number(rest & 0x7fn) | (rest > 0x7fn ? 0x80 : 0));
    rest >>= 7n;
  } while (rest > 0n);
  return Uint8Array.from(bytes);
};
const tag = (number: number, wireType: number): Bytes => varint((BigInt(number) << 3n) | BigInt(wireType));
const varintField = (number: number, value: bigint) => join(tag(number, 0), varint(value));
const bytesField = (number: number, value: Bytes) => join(tag(number, 2), varint(BigInt(value.length)), value);

const maxInt64 = 2n ** 63n - 1n;
const minInt64 = -(2n ** 63n);

const badUtf8: readonly (readonly [string, Bytes])[] = [
  ["a byte that begins nothing", hex("ff")],
  ["an overlong slash", hex("c0af")],
  ["a lone surrogate in UTF-8", hex("eda080")],
  ["a cut-off character", hex("61e282")],
];

const badTexts: readonly (readonly [string, Bytes])[] = [
  ["empty", text("")],
  ["NUL", text("a\u0000b")],
  ["control characters", text("a\r\n\u001b[31m\u0007")],
  ["direction override", text("\u202e\u2066abc")],
  ["byte-order mark", text("\ufeff")],
  ["an operator of MongoDB", text("$ne")],
  ["an operator of MongoDB in JSON", text('{"$gt":""}')],
  ["SQL", text("tok_x'; DROP TABLE c_commits; --")],
  ["a path", text("../../etc/passwd")],
  ["a commit's id", text("tokens/tok_00000000-0000-8000-8000-000000000000@0000000001")],
  ["a fragment", text("tokens/a#b")],
  ["__proto__", text("__proto__")],
  ["constructor", text("constructor")],
  ["percent-encoding", text("%00%2e%2e%2f")],
  ["a template", text("{{7*7}}")],
  ["a thousand segments", text("a/".repeat(1_000))],
  ["100 kB of segments", text(`${"a/".repeat(50_000)}a`)],
  ["900 kB of one letter", text("a".repeat(900_000))],
  [
    "YAML that grows",
    text(`a: &a [x,x,x,x,x,x,x,x,x]\n${[..."bcdefghij"].map((c) => `${c}: &${c} [*a,*a,*a,*a,*a,*a]`).join("\n")}`),
  ],
  ["YAML, deep", text("[".repeat(30_000))],
];

const badBytes: readonly (readonly [string, Bytes])[] = [
  ["empty", hex("")],
  ["one byte", hex("00")],
  ["31 bytes", new Uint8Array(31)],
  ["32 zeroes", new Uint8Array(32)],
  ["900 kB", new Uint8Array(900_000)],
];

const numbers: readonly bigint[] = [
  0n,
  -1n,
  1n,
  2n ** 31n - 1n,
  -(2n ** 31n),
  2n ** 32n,
  2n ** 53n,
  maxInt64,
  minInt64,
];

/** Seconds and nanos of times and durations that no clock shows. */
const moments: readonly (readonly [string, bigint, bigint])[] = [
  ["1970", 0n, 0n],
  ["the year 0", -62_167_219_200n, 0n],
  ["the year 1", -62_135_596_800n, 0n],
  ["the year 9999", 253_402_300_799n, 999_999_999n],
  ["the year 10000", 253_402_300_800n, 0n],
  ["the end of time", maxInt64, 0n],
  ["the beginning of time", minInt64, 0n],
  ["a second past what a Date holds", 8_640_000_000_001n, 0n],
  ["nanos -1", 1_000_000_000n, -1n],
  ["nanos of a second", 1_000_000_000n, 1_000_000_000n],
  ["nanos without end", 1_000_000_000n, 2n ** 31n - 1n],
  ["signs that differ", 5n, -5n],
  ["minus one second", -1n, 0n],
  ["ten thousand years", 315_576_000_001n, 0n],
];

/** Every other way to write a field: each is unknown to the reader, or an error, never another value. */
const wrongTypes = (field: DescField): (readonly [string, Bytes])[] =>
  [0, 1, 2, 3, 4, 5, 6, 7].map((wireType) => {
    const content =
      wireType === 1 ? new Uint8Array(8) : wireType === 5 ? new Uint8Array(4) : wireType === 0 ? hex("7f") : hex("");
    return [`wire type ${wireType}`, join(tag(field.number, wireType), wireType === 2 ? hex("03ffffff") : content)];
  });

const valuesOf = (field: DescField): (readonly [string, Bytes])[] => {
  const { number } = field;
  const named = (all: readonly (readonly [string, Bytes])[]) =>
    all.map(([name, bytes]) => [name, bytesField(number, bytes)] as const);
  const scalar = "scalar" in field ? field.scalar : undefined;
  if (field.message) {
    const { typeName } = field.message;
    if (typeName === "google.protobuf.Timestamp" || typeName === "google.protobuf.Duration")
      return moments.map(([name, seconds, nanos]) => [
        name,
        bytesField(number, join(varintField(1, seconds), varintField(2, nanos))),
      ]);
    return [["empty message", bytesField(number, hex(""))]];
  }
  if (field.enum)
    return [-1n, 0n, 99n, 2n ** 31n - 1n, -(2n ** 31n), maxInt64].map((n) => [`enum ${n}`, varintField(number, n)]);
  if (scalar === ScalarType.STRING) return named([...badUtf8, ...badTexts]);
  if (scalar === ScalarType.BYTES) return named(badBytes);
  return numbers.map((n) => [`${n}`, varintField(number, n)]);
};

/** Things to put after a valid message, where they take the place of what stood there (or join it, where a field is repeated). */
const additionsTo = (desc: DescMessage, valid: Bytes, depth = 0): (readonly [string, Bytes])[] => {
  const message = reflect(desc, fromBinary(desc, valid));
  return desc.fields.flatMap((field) => {
    const own = [...valuesOf(field), ...wrongTypes(field)];
    const nested = field.message?.typeName.startsWith("google.protobuf.") ? undefined : field.message;
    if (nested && depth < 4) {
      // What stands there already makes the rest of it valid.
      const list = field.fieldKind === "list" ? message.get(field) : undefined;
      const there = list ? list.get(0) : message.isSet(field) ? message.get(field as never) : undefined;
      const bytes = there ? toBinary(nested, (there as ReturnType<typeof reflect>).message) : new Uint8Array();
      for (const [name, inner] of additionsTo(nested, bytes, depth + 1))
        own.push([name, bytesField(field.number, join(bytes, inner))]);
    }
    if (field.fieldKind === "list") {
      const item = own[0]?.[1] ?? hex("");
      own.push(["5,000 times", times(5_000, () => item)]);
      if (nested) own.push(["50,000 times, empty", times(50_000, () => bytesField(field.number, hex("")))]);
      else if ("scalar" in field && field.scalar === ScalarType.STRING)
        own.push(["20,000 times, each another", times(20_000, (i) => bytesField(field.number, text(`n${i}`)))]);
    }
    return own.map(([name, bytes]) => [`${field.name}: ${name}`, bytes] as const);
  });
};

const deepGroups = (depth: number): Bytes =>
  join(
    times(depth, () => tag(9_999, 3)),
    times(depth, () => tag(9_999, 4)),
  );

/** mulberry32: small, seeded, enough to choose bytes by. */
export const seeded = (seed: number) => {
  let state = seed >>> 0;
  return (below: number): number => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) % below;
  };
};

/** Hostile requests to a method that takes `desc`, made of a valid one. The same seed makes the same ones. */
export const hostileRequests = (desc: DescMessage, makeValid: () => Bytes, seed: number): Hostile[] => {
  const random = seeded(seed);
  const all: Hostile[] = [];
  const add = (name: string, bytes: Bytes) => all.push({ name, bytes });
  add("empty", new Uint8Array());
  for (const [name, bytes] of additionsTo(desc, makeValid())) add(name, join(makeValid(), bytes));
  for (let n = 0; n < 12; n += 1) {
    const valid = makeValid();
    add(`cut off (${n})`, valid.subarray(0, random(Math.max(1, valid.length))));
    const flipped = Buffer.from(makeValid());
    for (let i = 0; i < 3 && flipped.length > 0; i += 1) flipped[random(flipped.length)] = random(256);
    add(`three bytes changed (${n})`, flipped);
    add(
      `noise (${n})`,
      Uint8Array.from({ length: random(200) }, () => random(256)),
    );
  }
  const odd: [string, Bytes][] = [
    ["field number 0", hex("0000")],
    ["the largest field number", varintField(2 ** 29 - 1, 1n)],
    ["a field number past it", hex("f8ffffffffff0100")],
    ["a varint without end", hex("08ffffffffffffffffffffffff01")],
    ["a length past the end", hex("0affffffff07")],
    ["a negative length", hex("0affffffffffffffffff01")],
    ["an end without a beginning", tag(9_999, 4)],
    ["a group without an end", tag(9_999, 3)],
    ["groups in groups, 90", deepGroups(90)],
    ["groups in groups, 100,000", deepGroups(100_000)],
    ["10,000 unknown fields", times(10_000, (i) => varintField(10_000 + i, 1n))],
    ["900 kB in an unknown field", bytesField(9_999, new Uint8Array(900_000))],
  ];
  for (const [name, bytes] of odd) add(name, join(makeValid(), bytes));
  const { number } = desc.fields.find((f) => "scalar" in f && f.scalar === ScalarType.STRING) ?? { number: 9_999 };
  all.push({
    name: "10 MB in a field",
    bytes: join(makeValid(), bytesField(number, new Uint8Array(10 * 2 ** 20).fill(97))),
    oversize: true,
  });
  return all;
};
