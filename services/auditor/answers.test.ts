import { create } from "@bufbuild/protobuf";
import { VerdictState, type WatchEventsResponse } from "@curfew/contracts/gen/curfew/auditor/v1/auditor_pb.ts";
import { GrantSchema } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import { TokenIssuedSchema } from "@curfew/contracts/gen/curfew/events/v1/tokens_pb.ts";
import { UseCompletedSchema, UseDecidedSchema } from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { openCheckpoint } from "@curfew/ledger/checkpoint.ts";
import { leafHash } from "@curfew/ledger/hash.ts";
import { parseVerifierKey } from "@curfew/ledger/note-key.ts";
import { verifyConsistency, verifyInclusion } from "@curfew/ledger/proof.ts";
import { Frontier } from "@curfew/ledger/tree.ts";
import { type Clock, systemClock } from "@curfew/runtime/clock.ts";
import { openLog } from "@curfew/runtime/log.ts";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import type { EntryRow } from "./projections.ts";
import { bound, eventRecord, tokenEvent, tokenId, use } from "./testing/rig.ts";
import { type Client, openSuite, type Suite, undo } from "./testing/suite.ts";

afterEach(async () => {
  for (const step of undo.splice(0).reverse()) await step();
});
const numbers = (n: number, from = 0) => Array.from({ length: n }, (_, i) => from + i);

describe("proofs between any trees", () => {
  let suite: Suite;
  let rpc: Client;
  const size = 21;
  /** Root of the first so many leaves, made from the leaves alone. */
  const roots: Uint8Array[] = [];
  const leaves: Uint8Array[] = [];
  beforeEach(async () => {
    suite = await openSuite();
    rpc = await suite.client(await suite.start());
    for (const n of numbers(3)) {
      const atLeast = await suite.send(
        topicNames.uses,
        "verifier/a",
        numbers(7, 7 * n).map((i) => use(i)),
      );
      await rpc.listEvents({ atLeast });
    }
    const rows = await (await suite.store.collection<EntryRow>("entries")).find({ limit: 100 });
    const frontier = new Frontier();
    roots.splice(0, roots.length, frontier.root());
    leaves.splice(0, leaves.length, ...rows.map(({ leaf }) => leaf));
    for (const leaf of leaves) {
      frontier.append(leafHash(leaf));
      roots.push(frontier.root());
    }
    expect(leaves.length).toBe(size);
  });

  it("show each leaf in each tree that has it, and each tree as the beginning of each larger one", async () => {
    const { verifierKey } = await rpc.getCheckpoint({});
    let signed = 0;
    for (const n of numbers(size, 1)) {
      for (const index of [0, Math.floor(n / 2), n - 1]) {
        const answer = await rpc.proveInclusion({ index: BigInt(index), size: BigInt(n) });
        expect(answer.leafHash).toEqual(leafHash(leaves[index] as Uint8Array));
        expect(answer.root).toEqual(roots[n]);
        expect(verifyInclusion(index, n, answer.leafHash, answer.proof, answer.root)).toBe(true);
        if (answer.checkpoint === "") continue;
        expect(openCheckpoint(answer.checkpoint, parseVerifierKey(verifierKey))).toMatchObject({
          size: n,
          root: roots[n],
        });
        signed += 1;
      }
      for (const from of numbers(n, 1)) {
        const { proof, fromRoot, toRoot, to } = await rpc.proveConsistency({ from: BigInt(from), to: BigInt(n) });
        expect([fromRoot, toRoot, to]).toEqual([roots[from], roots[n], BigInt(n)]);
        expect(verifyConsistency(from, n, proof, fromRoot, toRoot)).toBe(true);
      }
    }
    expect(signed).toBeGreaterThanOrEqual(3);
    const [inclusion, consistency] = [
      await rpc.proveInclusion({ index: 0n }),
      await rpc.proveConsistency({ from: 3n }),
    ];
    expect([inclusion.size, consistency.toRoot]).toEqual([BigInt(size), roots[size]]);
    expect([inclusion.lag?.unsealedRecords, consistency.lag?.unsealedRecords]).toEqual([0n, 0n]);
  });

  it.each([
    ["a tree past the ledger", () => rpc.proveInclusion({ index: 0n, size: 22n }), "OUT_OF_RANGE"],
    ["a leaf past the ledger", () => rpc.proveInclusion({ index: 21n }), "OUT_OF_RANGE"],
    ["a leaf outside the tree", () => rpc.proveInclusion({ index: 7n, size: 7n }), "INVALID_ARGUMENT"],
    ["a negative index", () => rpc.proveInclusion({ index: -1n }), "INVALID_ARGUMENT"],
    ["a past that is the future", () => rpc.proveConsistency({ from: 9n, to: 8n }), "INVALID_ARGUMENT"],
    ["a past past the ledger", () => rpc.proveConsistency({ from: 22n }), "OUT_OF_RANGE"],
    ["a future past the ledger", () => rpc.proveConsistency({ from: 1n, to: 2n ** 62n }), "OUT_OF_RANGE"],
    ["the empty tree", () => rpc.proveConsistency({ from: 0n }), "INVALID_ARGUMENT"],
  ])("are refused of %s", async (_, ask, status) => {
    await expect(ask()).rejects.toMatchObject({ failure: { status } });
  });

  it("are none when the read model was changed: then the auditor fails", async () => {
    const entries = await suite.store.collection<EntryRow>("entries");
    const [row] = await entries.find({ limit: 1 });
    const nodes = Uint8Array.from(row?.nodes ?? []);
    nodes[0] = (nodes[0] ?? 0) ^ 1;
    await entries.set(row?._id ?? "", { nodes });
    await expect(rpc.proveInclusion({ index: 1n, size: 9n })).rejects.toMatchObject({
      failure: { status: "INTERNAL" },
    });
  });
});

describe("events by what they are about", () => {
  let suite: Suite;
  let rpc: Client;
  beforeEach(async () => {
    suite = await openSuite();
    rpc = await suite.client(await suite.start());
  });
  const holder = "spiffe://test.example/workload/billing";
  const grant = create(GrantSchema, { dataCategories: ["contact", "health"] });

  it("lists those of a subject, a holder, a person, a service or a kind of data, and of several at once", async () => {
    const record = (n: number, o: { service: string; categories: string[]; people?: string[] }) =>
      eventRecord(
        create(UseDecidedSchema, {
          useId: `use-${n}`,
          tokenId: tokenId(n),
          subject: holder,
          resourceService: o.service,
          details: { dataCategories: o.categories },
          ...(o.people && { ended: { people: o.people } }),
        }),
        { subject: tokenId(n), source: "/verifier", id: `use-${n}` },
      );
    const completed = eventRecord(
      create(UseCompletedSchema, { tokenId: tokenId(1), people: ["p-2"], resourceService: "crm" }),
      {
        subject: tokenId(1),
        source: "/verifier",
        id: "completed",
      },
    );
    const issued = eventRecord(create(TokenIssuedSchema, { tokenId: tokenId(1), grant }), {
      subject: `tokens/${tokenId(1)}`,
      sequence: 1,
      id: "issued",
    });
    const atLeast = [
      ...(await suite.send(topicNames.uses, "verifier/a", [
        record(1, { service: "crm", categories: ["contact"], people: ["p-1"] }),
        record(2, { service: "crm", categories: ["payment"] }),
        record(3, { service: "invoices", categories: ["contact", "payment"], people: ["p-1", "p-2"] }),
        completed,
      ])),
      ...(await suite.send(topicNames.tokens, "issuer/a", [issued])),
    ];
    const ids = async (filters: Partial<Record<"subject" | "service" | "dataCategory" | "tokenId", string>>) =>
      (await rpc.listEvents({ ...filters, atLeast })).events.map(({ eventId }) => eventId).sort();
    expect(await ids({ service: "crm" })).toEqual(["completed", "use-1", "use-2"]);
    expect(await ids({ dataCategory: "contact" })).toEqual(["issued", "use-1", "use-3"]);
    expect(await ids({ dataCategory: "payment", service: "crm" })).toEqual(["use-2"]);
    expect(await ids({ subject: holder })).toEqual(["use-1", "use-2", "use-3"]);
    expect(await ids({ subject: "p-2" })).toEqual(["completed", "use-3"]);
    expect(await ids({ subject: `tokens/${tokenId(1)}` })).toEqual(["issued"]);
    expect(await ids({ subject: "p-1", tokenId: tokenId(3) })).toEqual(["use-3"]);
    expect(await ids({ subject: "nobody" })).toEqual([]);
    await rpc.listEvents({ service: "crm", pageSize: 1, atLeast }).then(({ nextPageToken }) =>
      expect(rpc.listEvents({ service: "invoices", pageToken: nextPageToken })).rejects.toMatchObject({
        failure: { reason: "PAGE_TOKEN_INVALID" },
      }),
    );
  });

  /** Takes from a watch until it has `count` events. */
  const take = async (watch: AsyncIterable<WatchEventsResponse>, count: number) => {
    const events: string[] = [];
    let next = -1n;
    for await (const { event, nextIndex } of watch) {
      expect(nextIndex).toBeGreaterThanOrEqual(next);
      next = nextIndex;
      if (event) events.push(event.eventId);
      if (events.length >= count) break;
    }
    return { events, next };
  };

  it("are watched from an index on, what is there and what comes, each once, and again from where it was interrupted", async () => {
    const all = numbers(600).map((n) => `event-${n}`);
    const send = (from: number, count: number) =>
      suite.send(
        topicNames.uses,
        "verifier/a",
        numbers(count, from).map((n) => use(n, 0, `event-${n}`)),
      );
    await rpc.listEvents({ atLeast: (await send(0, 450)).slice(-1) });
    const first = await take(rpc.watchEvents({ fromIndex: 0n }), 450);
    expect(first.events).toEqual(all.slice(0, 450));
    const rest = take(rpc.watchEvents({ fromIndex: first.next }), 150);
    await send(450, 150);
    expect((await rest).events).toEqual(all.slice(450));
  });

  it("are watched from now on, filtered, and those that pass no filter move the index on", async () => {
    await rpc.listEvents({ atLeast: await suite.send(topicNames.uses, "verifier/a", [use(1, 0, "before")]) });
    const iterator = rpc.watchEvents({ tokenId: tokenId(2) })[Symbol.asyncIterator]();
    expect((await iterator.next()).value).toMatchObject({ nextIndex: 1n });
    await suite.send(topicNames.uses, "verifier/a", [use(1, 0, "other"), use(2, 0, "mine"), use(1, 0, "last")]);
    const seen: (string | undefined)[] = [];
    for (let next = 1n; next < 4n; ) {
      const { value } = await iterator.next();
      next = value.nextIndex;
      seen.push(value.event?.eventId);
    }
    await iterator.return?.();
    expect(seen.filter((id) => id !== undefined)).toEqual(["mine"]);
    expect(seen.at(-1)).toBeUndefined();
  });

  it("cannot be watched from beyond the ledger", async () => {
    await expect(take(rpc.watchEvents({ fromIndex: 1n }), 1)).rejects.toMatchObject({
      failure: { status: "OUT_OF_RANGE", reason: "LEDGER_SMALLER" },
    });
    await expect(take(rpc.watchEvents({ fromIndex: -1n }), 1)).rejects.toMatchObject({
      failure: { status: "INVALID_ARGUMENT" },
    });
  });
});

describe("the health of the evidence", () => {
  /** A clock on which rests between passes are short. */
  const fast: Clock = {
    now: systemClock.now,
    monotonicMs: () => 20 * systemClock.monotonicMs(),
    sleep: (ms, signal) => systemClock.sleep(ms / 20, signal),
  };
  const { HOLDS, BROKEN, UNKNOWN } = VerdictState;

  it("has two verdicts that turn each by itself, say what is open, and are alerts when they turn", async () => {
    const suite = await openSuite();
    const lines: string[] = [];
    const log = openLog({ service: "auditor", level: "info", write: (line) => void lines.push(line) });
    const rpc = await suite.client(await suite.start({ clock: fast, log }));
    const alerts = () =>
      lines
        .map((line) => JSON.parse(line))
        .filter(({ msg }) => /the evidence has turned/.test(msg))
        .map(({ level, verdict, cause }) => [level, verdict, cause]);
    const states = async () => {
      const { integrity, completeness, drift } = await rpc.getHealth({});
      return [integrity, completeness, drift].map((verdict) => verdict?.state);
    };
    expect((await rpc.getHealth({})).completeness?.state).toBe(UNKNOWN);
    for (const n of numbers(4)) await suite.send(topicNames.uses, "verifier/a", [use(n)]);
    await vi.waitFor(async () => expect(await states()).toEqual([HOLDS, HOLDS, HOLDS]), bound);
    await vi.waitFor(async () => {
      const { integrity, lag, reverifications, ledgerSize } = await rpc.getHealth({});
      expect([integrity?.checkedSize, ledgerSize, lag?.unsealedRecords]).toEqual([4n, 4n, 0n]);
      expect(lag).toMatchObject({ objective: { seconds: 2n }, mergeDelay: expect.anything() });
      expect(reverifications.map(({ what }) => what)).toEqual(["topics", "ledger", "settings"]);
      expect(reverifications.every(({ passes }) => passes > 0n)).toBe(true);
    }, bound);
    expect(alerts()).toEqual([]);

    // A number of a stream that is missing: completeness alone.
    await suite.send(topicNames.tokens, "issuer/a", [tokenEvent(1, 3)]);
    await vi.waitFor(async () => expect(await states()).toEqual([HOLDS, BROKEN, HOLDS]), bound);
    const { completeness } = await rpc.getHealth({});
    expect(completeness?.findings).toMatchObject([
      { cause: "GAP_CAUSE_STREAM_GAP", topic: topicNames.tokens, expected: "2", seen: "3" },
    ]);

    // A sealed record written over: integrity too, and no longer once it is as it was.
    const at = `topic = '${topicNames.uses}' AND partition = 0 AND base = 2`;
    await suite.tamper(`UPDATE segments SET timestamp_ms = timestamp_ms + 1 WHERE ${at}`);
    await vi.waitFor(async () => expect(await states()).toEqual([BROKEN, BROKEN, HOLDS]), bound);
    const { integrity } = await rpc.getHealth({});
    expect(integrity?.findings).toMatchObject([
      { cause: "DRIFT_CAUSE_RECORD_CHANGED", topic: topicNames.uses, position: { offset: 2n }, ledgerIndex: 2n },
    ]);
    await suite.tamper(`UPDATE segments SET timestamp_ms = timestamp_ms - 1 WHERE ${at}`);
    await vi.waitFor(async () => expect(await states()).toEqual([HOLDS, BROKEN, HOLDS]), bound);
    await vi.waitFor(
      () =>
        expect(alerts()).toEqual([
          ["error", "completeness", "GAP_CAUSE_STREAM_GAP"],
          ["error", "integrity", "DRIFT_CAUSE_RECORD_CHANGED"],
          ["info", "integrity", undefined],
        ]),
      bound,
    );

    // And all of it stands on the topic, sealed itself.
    const { events } = await rpc.listEvents({ source: "/auditor" });
    const found = events.map(({ type }) => type).filter((type) => type.startsWith("curfew.evidence-"));
    expect(found).toEqual([
      "curfew.evidence-gap.found.v1",
      "curfew.evidence-drift.found.v1",
      "curfew.evidence-drift.ended.v1",
    ]);
  });
});
