import { create } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { Reason, UseDecidedSchema } from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import type { CollectionOptions, Doc, DocumentStore } from "@curfew/document-store/port.ts";
import { openSqliteStore } from "@curfew/document-store/sqlite.ts";
import { encodeEvent, type ReadEvent, readEvent } from "@curfew/event-log/envelope.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { Progress } from "@curfew/projection/progress.ts";
import { interruptibleStore } from "@curfew/rpc/testing/outages.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { describe, expect, it } from "vitest";
import { openUseRows } from "./use-rows.ts";

const event = (tokenId: string, useId: string, partition: number, offset: number): ReadEvent => {
  const message = create(UseDecidedSchema, { useId, tokenId, reason: Reason.OK, decidedAt: timestampFromMs(1_000) });
  const encoded = encodeEvent(message, {
    source: "/test",
    subject: tokenId,
    nowMs: 1_000,
    random: systemRandom,
    traceparent: `00-${"1".repeat(32)}-${"2".repeat(16)}-00`,
  });
  return readEvent({
    topic: topicNames.uses,
    partition,
    offset,
    timestampMs: 1_000,
    key: tokenId,
    headers: Object.entries(encoded.headers),
    value: encoded.value,
  });
};
const at = (partition: number, offset: number) => Progress.position(topicNames.uses, partition, offset);
const stored = () => openSqliteStore({ file: ":memory:" });

describe("uses as rows", () => {
  it("are found by token below a position, and not above it", async () => {
    const store = await stored();
    const rows = await openUseRows(store);
    for (let offset = 0; offset < 10; offset += 1)
      rows.add(event(offset % 2 ? "tok_a" : "tok_b", `u${offset}`, 3, offset));
    rows.add(event("tok_a", "elsewhere", 4, 0));
    await rows.commit([at(3, 10), at(4, 1)]);
    const read = async (...folded: ReturnType<typeof at>[]) =>
      (await rows.read("tok_a", folded)).uses.map(({ useId }) => useId);
    expect(await read(at(3, 4))).toEqual(["u1", "u3"]);
    expect(await read(at(3, 10), at(4, 1))).toEqual(["u1", "u3", "u5", "u7", "u9", "elsewhere"]);
    expect((await rows.read("tok_c", [at(3, 10)])).uses).toEqual([]);
    // Another replica reads the same from the same rows.
    const other = await openUseRows(store);
    expect((await other.read("tok_a", [at(3, 4)])).uses).toHaveLength(2);
    await store.close();
  });

  it("are read once for all who wait, so that a slow database has no queue", async () => {
    const store = await stored();
    let finds = 0;
    // A collection is an instance of a class: what is not counted goes to it as it is.
    const counting: DocumentStore = Object.assign(Object.create(store), {
      collection: async <D extends Doc>(name: string, options?: CollectionOptions) => {
        const inner = await store.collection<D>(name, options);
        const find: typeof inner.find = (query) => {
          finds += 1;
          return inner.find(query);
        };
        return new Proxy(inner, {
          get: (target, key) => (key === "find" ? find : Reflect.get(target, key)?.bind(target)),
        });
      },
    });
    const rows = await openUseRows(counting);
    for (let offset = 0; offset < 40; offset += 1) rows.add(event("tok_a", `u${offset}`, 0, offset));
    await rows.commit([at(0, 40)]);
    const reads = await Promise.all(
      Array.from({ length: 50 }, (_, i) => rows.read("tok_a", [at(0, i === 0 ? 10 : 40)])),
    );
    expect(reads.map(({ uses }) => uses.length)).toEqual([10, ...Array.from({ length: 49 }, () => 40)]);
    expect(finds).toBe(2);
    await store.close();
  });

  it("are read by several at once as by one after the other", async () => {
    const store = await stored();
    const rows = await openUseRows(store);
    for (let offset = 0; offset < 40; offset += 1) rows.add(event("tok_a", `u${offset}`, 0, offset));
    await rows.commit([at(0, 40)]);
    const reads = await Promise.all([10, 40, 20, 30].map((offset) => rows.read("tok_a", [at(0, offset)])));
    for (const { uses, folded } of reads) expect(uses).toHaveLength(Number(folded[0]?.offset));
    expect(reads.map(({ uses }) => uses.length)).toEqual([10, 40, 40, 40]);
    await store.close();
  });

  it("stand before the position that vouches for them: a failed commit is made good by the next", async () => {
    const inner = await stored();
    const outage = interruptibleStore(inner);
    const rows = await openUseRows(outage.store);
    rows.add(event("tok_a", "u0", 0, 0));
    outage.setDown("before");
    await expect(rows.commit([at(0, 1)])).rejects.toThrow();
    outage.setDown(false);
    expect(await rows.positions()).toEqual([]);
    // Written, and the answer lost.
    outage.setDown("after");
    await expect(rows.commit([at(0, 1)])).rejects.toThrow();
    outage.setDown(false);
    rows.add(event("tok_a", "u1", 0, 1));
    await rows.commit([at(0, 2)]);
    expect(await rows.positions()).toEqual([at(0, 2)]);
    expect((await rows.read("tok_a", [at(0, 2)])).uses).toHaveLength(2);
    await inner.close();
  });

  it("keep the highest position of each partition, however many replicas wrote, and few rows for it", async () => {
    const store = await stored();
    const [one, two] = [await openUseRows(store), await openUseRows(store)];
    for (let offset = 1; offset <= 300; offset += 1) {
      await one.commit([at(0, offset), at(1, 7)]);
      if (offset <= 200) await two.commit([at(0, offset)]);
    }
    expect(await one.positions()).toEqual([at(0, 300), at(1, 7)]);
    const kept = await (await store.collection("use-positions")).find({ limit: 1_000 });
    expect(kept.length).toBeLessThan(150);
    await store.close();
  });

  it("are counted up to a limit, which is said", async () => {
    const store = await stored();
    const rows = await openUseRows(store, { maxFacts: 5 });
    for (let offset = 0; offset < 8; offset += 1) rows.add(event("tok_a", `u${offset}`, 0, offset));
    await rows.commit([at(0, 8)]);
    expect(await rows.read("tok_a", [at(0, 5)])).toMatchObject({ truncated: false });
    expect(await rows.read("tok_a", [at(0, 8)])).toMatchObject({ truncated: true, uses: { length: 5 } });
    await store.close();
  });
});
