import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { EndedTokenSchema } from "@curfew/contracts/gen/curfew/revocation/v1/revocation_pb.ts";
import { CacheableTokenSchema } from "@curfew/contracts/gen/curfew/verifier/v1/verifier_pb.ts";
import { describe, expect, test } from "vitest";
import { rememberEndsMs, TokenCache } from "./token-cache.ts";

const startMs = 1_800_000_000_000;
const at = (ms: number, wallAheadMs = 0) => ({ monotonicMs: ms, wallMs: startMs + ms + wallAheadMs });
const positions = (revocations: number, tokens = 0) => [
  { topic: "curfew.revocations.v1", partition: 0, offset: BigInt(revocations) },
  { topic: "curfew.tokens.v1", partition: 0, offset: BigInt(tokens) },
];
const token = (id: string, more: object = {}) =>
  create(CacheableTokenSchema, {
    tokenId: id,
    generation: 1,
    grant: {},
    expiresAt: timestampFromMs(startMs + 3_600_000),
    asOf: positions(10),
    ...more,
  });
const ends = (...tokens: MessageInitShape<typeof EndedTokenSchema>[]) =>
  tokens.map((one) => create(EndedTokenSchema, one));
const opened = (maxEntries = 100) => {
  const cache = new TokenCache(maxEntries);
  cache.marked(positions(10), true, at(0));
  return cache;
};

describe("what is trusted", () => {
  test("nothing before the stream's first mark", () => {
    const cache = new TokenCache(10);
    cache.keep("k", token("a"), at(0));
    expect(cache.find("k", at(1))).toBeUndefined();
  });

  test("only what was read as far as the stream's first mark, on every topic", () => {
    const cache = opened();
    cache.marked(positions(50, 50), false, at(1));
    for (const [key, asOf] of Object.entries({ less: positions(9), enough: positions(10), more: positions(11, 3) }))
      cache.keep(key, token(key, { asOf }), at(2));
    expect(["less", "enough", "more"].filter((key) => cache.find(key, at(3)))).toEqual(["enough", "more"]);
  });

  test("a topic of which nothing was ever read is at its beginning", () => {
    const cache = opened();
    cache.keep("k", token("a", { asOf: positions(10).slice(0, 1) }), at(1));
    expect(cache.find("k", at(2))?.tokenId).toBe("a");
  });

  test("a new stream after a short gap changes nothing: it began with what had ended lately", () => {
    const cache = opened();
    cache.keep("k", token("a"), at(1));
    cache.marked(positions(40), true, at(29_999));
    expect(cache.find("k", at(30_000))).toBeDefined();
  });

  test.for([
    ["by the monotonic clock", at(30_000, -3_600_000)],
    ["by the wall clock", at(1_000, 29_000)],
  ] as const)("after a longer one, %s, only what was read as far as its first mark", ([_, now]) => {
    const cache = opened();
    cache.keep("old", token("a"), at(1));
    cache.keep("young", token("b", { asOf: positions(40) }), at(1));
    cache.marked(positions(40), true, now);
    expect(["old", "young"].filter((key) => cache.find(key, now))).toEqual(["young"]);
  });

  test("nor does a long gap matter when nothing was published in it", () => {
    const cache = opened();
    cache.keep("k", token("a"), at(1));
    cache.marked(positions(10), true, at(600_000));
    expect(cache.find("k", at(600_001))).toBeDefined();
  });
});

describe("how long", () => {
  test("from not_before to expires_at, whichever clock says so", () => {
    const cache = opened();
    cache.keep("k", token("a", { notBefore: timestampFromMs(startMs + 100) }), at(0));
    expect(cache.find("k", at(99))).toBeUndefined();
    expect(cache.find("k", at(100))).toBeDefined();
    expect(cache.find("k", at(3_599_999, -60_000))).toBeDefined();
    expect(cache.find("k", at(3_600_000, -60_000))).toBeUndefined();
    expect(cache.size).toBe(0);
  });

  test("the wall clock set forward ends it too", () => {
    const cache = opened();
    cache.keep("k", token("a"), at(0));
    expect(cache.find("k", at(1, 3_600_000))).toBeUndefined();
  });

  test("what has run out is swept, and what is expired is not kept", () => {
    const cache = opened();
    cache.keep("k", token("a"), at(0));
    cache.keep("late", token("b"), at(3_600_000));
    expect(cache.size).toBe(1);
    cache.sweep(at(3_600_000));
    expect(cache.size).toBe(0);
  });

  test("the oldest makes room, and the same key again takes no more", () => {
    const cache = opened(2);
    for (const key of ["a", "b", "b", "c"]) cache.keep(key, token(key), at(1));
    expect(["a", "b", "c"].filter((key) => cache.find(key, at(2)))).toEqual(["b", "c"]);
  });
});

describe("ends", () => {
  test("a revocation ends every generation and every descendant, and nothing else", () => {
    const cache = opened();
    cache.keep("a1", token("a"), at(1));
    cache.keep("a2", token("a", { generation: 2 }), at(1));
    cache.keep("child", token("c", { ancestors: ["b", "a"] }), at(1));
    cache.keep("other", token("o"), at(1));
    cache.end(ends({ tokenId: "a" }), at(2));
    expect(["a1", "a2", "child", "other"].map((key) => cache.findRevoked(key)?.revoked)).toEqual([
      true,
      true,
      true,
      undefined,
    ]);
    expect(["a1", "a2", "child", "other"].filter((key) => cache.find(key, at(3)))).toEqual(["other"]);
  });

  test("an answer that comes after the push is not kept, nor is that of a descendant", () => {
    const cache = opened();
    cache.end(ends({ tokenId: "a" }), at(1));
    cache.keep("a", token("a"), at(2));
    cache.keep("c", token("c", { ancestors: ["a"] }), at(2));
    expect(cache.size).toBe(0);
    expect(cache.endOf("a", 1, [], at(2))).toBe("REVOKED");
    expect(cache.endOf("c", 1, ["a"], at(2))).toBe("REVOKED");
    expect(cache.endOf("b", 1, [], at(2))).toBeUndefined();
  });

  test("a rotation ends the generations up to it when its time comes, before or after they are kept", () => {
    const cache = opened();
    const rotation = { tokenId: "a", upToGeneration: 2, endsAt: timestampFromMs(startMs + 1_000) };
    cache.keep("a1", token("a"), at(1));
    cache.end(ends(rotation), at(2));
    cache.keep("a2", token("a", { generation: 2 }), at(3));
    cache.keep("a3", token("a", { generation: 3 }), at(3));
    const found = (ms: number) => ["a1", "a2", "a3"].filter((key) => cache.find(key, at(ms)));
    expect(found(999)).toEqual(["a1", "a2", "a3"]);
    expect(found(1_000)).toEqual(["a3"]);
    expect([1, 2, 3].map((n) => cache.endOf("a", n, [], at(1_000)))).toEqual(["SUPERSEDED", "SUPERSEDED", undefined]);
  });

  test("a rotation after a revocation does not undo it", () => {
    const cache = opened();
    cache.end(ends({ tokenId: "a" }, { tokenId: "a", upToGeneration: 1, endsAt: timestampFromMs(startMs) }), at(1));
    expect(cache.endOf("a", 9, [], at(2))).toBe("REVOKED");
  });

  test("they are remembered as long as an answer may still not know them, then forgotten", () => {
    const cache = opened();
    cache.end(ends({ tokenId: "a" }), at(0));
    cache.marked(positions(11), false, at(rememberEndsMs - 1));
    expect(cache.endOf("a", 1, [], at(rememberEndsMs - 1))).toBe("REVOKED");
    cache.marked(positions(11), false, at(rememberEndsMs));
    expect(cache.endOf("a", 1, [], at(rememberEndsMs))).toBeUndefined();
  });

  test("more than can be remembered: nothing is believed until it does not matter any more", () => {
    const cache = opened();
    cache.keep("k", token("k"), at(0));
    const many = Array.from({ length: 100_001 }, (_, i) => ({ tokenId: `t${i}` }));
    cache.end(ends(...many), at(1));
    expect(cache.endOf("t0", 1, [], at(2))).toBe("UNKNOWN");
    cache.keep("t0", token("t0"), at(2));
    expect(cache.find("t0", at(2))).toBeUndefined();
    expect(cache.find("k", at(2))).toBeDefined();
    expect(cache.endOf("t0", 1, [], at(1 + rememberEndsMs))).toBeUndefined();
  });
});
