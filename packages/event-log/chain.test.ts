import { createHash } from "node:crypto";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { InRecord, OutRecord } from "./bus.ts";
import { type ChainHead, type ChainVerdict, chainStart, checkLink, openChain, recordHash } from "./chain.ts";

const topic = "curfew.tokens.v1";
const producer = "issuer/8f3a/1";
const out = (n: number, partition = 0): OutRecord => ({
  partition,
  key: `token/${n}`,
  headers: { ce_id: `id-${n}`, ce_type: "curfew.token.issued.v1" },
  value: Buffer.from(`value ${n}`),
});
/** As a broker gives them back. */
const chained = (n: number, partition = 0): InRecord[] => {
  const chain = openChain(topic, producer);
  return Array.from({ length: n }, (_, i) => {
    const { headers, ...rest } = chain.link(out(i + 1, partition));
    return { ...rest, topic, offset: i, timestampMs: 1, headers: Object.entries(headers) };
  });
};
const check = (records: readonly InRecord[]): ChainVerdict["kind"][] => {
  let head: ChainHead | undefined;
  return records.map((record) => {
    const checked = checkLink(head, record);
    head = checked.head;
    return checked.verdict.kind;
  });
};
const changed = (records: readonly InRecord[], at: number, change: (record: InRecord) => InRecord) =>
  records.map((record, i) => (i === at ? change(record) : record));

describe("the producer chain", () => {
  it("hashes as written down once and for all", () => {
    const record = { partition: 3, key: "k", headers: [["a", "1"] as const], value: Uint8Array.of(0, 255) };
    expect(recordHash("t", record)).toBe("a409ce78e166b004ec21845cd7e9f1ab08f8155db0c8dd6000281c0d8b6278eb");
  });

  it("hashes a record to the same, whatever was hashed before it", () => {
    const short = fc.constantFrom("a", "b", "x".repeat(40));
    const long = fc.constantFrom("", "x".repeat(255), "x".repeat(256), "y".repeat(30_000), "é");
    const text = fc.oneof({ weight: 9, arbitrary: short }, { weight: 1, arbitrary: long });
    const record = fc.record({
      partition: fc.constantFrom(0, 1, 10),
      key: text,
      headers: fc.array(fc.tuple(text, text), { maxLength: 3 }),
      value: fc.constantFrom(0, 3, 600, 70_000).map((length) => Buffer.alloc(length, 0x61)),
      // Its headers end in an error, half way.
      fails: fc.boolean(),
    });
    const plainHash = ({
      partition,
      key,
      headers,
      value,
    }: Omit<OutRecord, "headers"> & { headers: [string, string][] }) => {
      const all = createHash("sha256");
      for (const part of ["t", String(partition), key, ...headers.flat(), value]) {
        const bytes = Buffer.from(part as string);
        const length = Buffer.alloc(4);
        length.writeUInt32BE(bytes.length);
        all.update(length).update(bytes);
      }
      return all.digest("hex");
    };
    function* failing(headers: readonly [string, string][]) {
      yield* headers;
      throw new Error("half way");
    }
    fc.assert(
      fc.property(fc.array(record, { minLength: 2, maxLength: 12 }), (records) => {
        for (const { fails, ...each } of records)
          if (fails) expect(() => recordHash("t", { ...each, headers: failing(each.headers) })).toThrow("half way");
          else expect(recordHash("t", each)).toBe(plainHash(each));
      }),
      { numRuns: 500 },
    );
  });

  it("accepts what was linked, and starts anew in each partition and epoch", () => {
    expect(check(chained(5))).toEqual(Array(5).fill("ok"));
    const chain = openChain(topic, producer);
    const [a, b, c] = [chain.link(out(1, 0)), chain.link(out(2, 1)), chain.link(out(3, 0))];
    expect([a, b, c].map((r) => r.headers["curfew-seq"])).toEqual(["1", "1", "2"]);
    expect([a, b].map((r) => r.headers["curfew-prev"])).toEqual([chainStart, chainStart]);
    expect([...chain.sequences()]).toEqual([
      [0, 2],
      [1, 1],
    ]);
  });

  it("sees a record taken out, at each place but the last", () => {
    for (let at = 0; at < 4; at += 1) {
      const records = chained(5).filter((_, i) => i !== at);
      expect(check(records)[at]).toBe("hole");
    }
  });

  it("goes on after a hole from what it saw", () => {
    expect(check(chained(5).filter((_, i) => i !== 1))).toEqual(["ok", "hole", "ok", "ok"]);
  });

  it("tells the broker's own repetition of a record from a replay of an older one", () => {
    const records = chained(3);
    const [first, second] = records as [InRecord, InRecord];
    expect(check([first, second, second, ...records.slice(2)])).toEqual(["ok", "ok", "repeat", "ok"]);
    expect(check([...records, first])).toEqual(["ok", "ok", "ok", "fork"]);
  });

  it("sees two records that follow the same one", () => {
    const [one, two] = [openChain(topic, producer), openChain(topic, producer)];
    const as = (record: OutRecord, offset: number): InRecord => ({
      ...record,
      topic,
      offset,
      timestampMs: 1,
      headers: Object.entries(record.headers),
    });
    const shared = one.link(out(1));
    two.link(out(1));
    expect(check([as(shared, 0), as(one.link(out(2)), 1), as(two.link(out(3)), 2)])).toEqual(["ok", "ok", "fork"]);
  });

  const edits: [string, (record: InRecord) => InRecord][] = [
    ["key", (r) => ({ ...r, key: `${r.key}x` })],
    ["value", (r) => ({ ...r, value: Buffer.concat([r.value, Buffer.from("x")]) })],
    ["partition", (r) => ({ ...r, partition: r.partition + 1 })],
    ["topic", (r) => ({ ...r, topic: "curfew.uses.v1" })],
    ["order of headers", (r) => ({ ...r, headers: [...r.headers].reverse() })],
    ["a header more", (r) => ({ ...r, headers: [...r.headers, ["x", "y"]] })],
    ["a header less", (r) => ({ ...r, headers: r.headers.slice(1) })],
    ...["ce_id", "ce_type", "curfew-producer", "curfew-seq", "curfew-prev"].map(
      (name): [string, (record: InRecord) => InRecord] => [
        name,
        (r) => ({ ...r, headers: r.headers.map(([n, v]) => [n, n === name ? `${v}1` : v]) }),
      ],
    ),
  ];
  it.each(edits)("sees an edit: %s", (_, edit) => {
    for (let at = 0; at < 4; at += 1) {
      const verdicts = check(changed(chained(5), at, edit));
      expect(verdicts.slice(at, at + 2)).not.toEqual(["ok", "ok"]);
    }
  });

  it("cannot be fooled by moving bytes between neighbouring fields", () => {
    const text = fc.string({ maxLength: 4 });
    const record = fc.record({
      partition: fc.nat(12),
      key: text,
      headers: fc.array(fc.tuple(text, text), { maxLength: 3 }),
      value: fc.uint8Array({ maxLength: 4 }),
    });
    fc.assert(
      fc.property(record, record, (a, b) => {
        const text = (r: typeof a) => JSON.stringify({ ...r, value: [...r.value] });
        const same = text(a) === text(b);
        const signed = [...a.headers, ...b.headers].some(([name]) => name === "curfew-sig");
        return signed || (recordHash("t", a) === recordHash("t", b)) === same;
      }),
    );
  });

  it("leaves the signature out of the hash, and nothing else", () => {
    const [record] = chained(1) as [InRecord];
    const signed = { ...record, headers: [...record.headers, ["curfew-sig", "s"] as const] };
    expect(recordHash(topic, signed)).toBe(recordHash(topic, record));
  });

  it.each([
    ["no producer", (h: [string, string]) => h[0] !== "curfew-producer"],
    ["no number", (h: [string, string]) => h[0] !== "curfew-seq"],
    ["no hash before", (h: [string, string]) => h[0] !== "curfew-prev"],
  ])("takes a record with %s for one of an unknown producer and keeps the head", (_, keep) => {
    const [first, second] = chained(2) as [InRecord, InRecord];
    const { head } = checkLink(undefined, first);
    const stripped = { ...second, headers: second.headers.filter((h) => keep(h as [string, string])) };
    const checked = checkLink(head, stripped);
    expect([checked.verdict.kind, checked.head]).toEqual(["unknown-producer", head]);
  });

  it.each(["0", "-1", "1.5", "01", " 1", "1e3", "0x1", "", "9".repeat(400)])(
    "takes no number written as %j",
    (number) => {
      const [first] = chained(1) as [InRecord];
      const headers = first.headers.map(([n, v]) => [n, n === "curfew-seq" ? number : v] as const);
      expect(checkLink(undefined, { ...first, headers }).verdict.kind).toBe("unknown-producer");
    },
  );
});
