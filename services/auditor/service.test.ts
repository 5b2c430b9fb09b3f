import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { ListEventsRequestSchema } from "@curfew/contracts/gen/curfew/auditor/v1/auditor_pb.ts";
import { TokenExpiredSchema } from "@curfew/contracts/gen/curfew/events/v1/tokens_pb.ts";
import { siemTopic, topicNames } from "@curfew/event-log/event-types.ts";
import { openCheckpoint } from "@curfew/ledger/checkpoint.ts";
import { leafHash } from "@curfew/ledger/hash.ts";
import { decodeLeaf } from "@curfew/ledger/leaf.ts";
import { parseVerifierKey } from "@curfew/ledger/note-key.ts";
import { verifyInclusion } from "@curfew/ledger/proof.ts";
import type { RunningService } from "@curfew/rpc/replica.ts";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { type EntryRow, openReadModels } from "./projections.ts";
import { bound, eventRecord, origin, shard, sorted, tokenEvent, tokenId, use } from "./testing/rig.ts";
import { type Client, openSuite, type Suite, undo } from "./testing/suite.ts";

afterEach(async () => {
  for (const step of undo.splice(0).reverse()) await step();
});

describe("auditor service", () => {
  let suite: Suite;
  let service: RunningService;
  let rpc: Client;
  beforeEach(async () => {
    suite = await openSuite();
    service = await suite.start();
    rpc = await suite.client(service);
  });

  /** Opens the checkpoint and checks the proof as a stranger would: with the published key and nothing else of the service's. */
  const assertProven = async (answer: Awaited<ReturnType<Client["getEvent"]>>) => {
    const { verifierKey } = await rpc.getCheckpoint({ shard: answer.shard?.year ?? 0 });
    const opened = openCheckpoint(answer.checkpoint, parseVerifierKey(verifierKey));
    const { size, root } = opened;
    expect([opened.origin, answer.shard?.verifierKey]).toEqual([origin, verifierKey]);
    const index = Number(answer.event?.index) - Number(answer.shard?.first);
    expect(verifyInclusion(index, size, leafHash(answer.leaf), answer.inclusionProof, root)).toBe(true);
    expect(verifyInclusion(index + 1, size, leafHash(answer.leaf), answer.inclusionProof, root)).toBe(false);
  };

  it("has a signed checkpoint of the empty tree before anything is sealed", async () => {
    const { checkpoint, size, verifierKey, sealed } = await rpc.getCheckpoint({});
    expect(openCheckpoint(checkpoint, parseVerifierKey(verifierKey)).size).toBe(0);
    expect([size, sealed]).toEqual([0n, []]);
    expect((await rpc.listEvents({})).events).toEqual([]);
    await expect(rpc.getEvent({ which: { case: "index", value: 0n } })).rejects.toMatchObject({
      failure: { status: "NOT_FOUND" },
    });
  });

  it("lists events of a token once each, in order, decoded, as soon as they are sealed", async () => {
    await suite.send(topicNames.uses, "verifier/a", [use(1, 0, "use-a"), use(2, 1), use(1, 2)]);
    // A producer that gave up sends the same events again, in a new epoch.
    await suite.send(topicNames.uses, "verifier/a", [use(1, 0, "use-a")]);
    const atLeast = await suite.send(topicNames.tokens, "issuer/a", [tokenEvent(1, 1), tokenEvent(2, 1)]);
    const { events } = await rpc.listEvents({ tokenId: tokenId(1), atLeast });
    await vi.waitFor(async () => expect((await rpc.getCheckpoint({})).size).toBe(6n), bound);
    const all = await rpc.listEvents({ tokenId: tokenId(1) });
    expect(events.length).toBeGreaterThan(0);
    expect(all.ledgerSize).toBe(6n);
    expect(sorted(all.events.map(({ type }) => type))).toEqual([
      "curfew.token.expired.v1",
      "curfew.use.decided.v1",
      "curfew.use.decided.v1",
    ]);
    const expired = all.events.find(({ type }) => type === "curfew.token.expired.v1");
    expect(expired).toMatchObject({
      source: "/issuer",
      subject: `tokens/${tokenId(1)}`,
      tokenId: tokenId(1),
      position: { topic: topicNames.tokens, partition: 0, offset: 0n },
    });
    expect(JSON.parse(expired?.json ?? "")).toEqual({ tokenId: tokenId(1) });
  });

  it("gives an event by its id, leaf and record, with a proof that holds", async () => {
    const positions = await suite.send(
      topicNames.uses,
      "verifier/a",
      Array.from({ length: 300 }, (_, n) => use(n, n % 3, `event-${n}`)),
    );
    await rpc.listEvents({ atLeast: positions.slice(-3), pageSize: 1 });
    for (const n of [0, 1, 137, 255, 256, 299]) {
      const answer = await rpc.getEvent({ which: { case: "eventId", value: `event-${n}` } });
      expect(answer.event).toMatchObject({ eventId: `event-${n}`, tokenId: tokenId(n) });
      await assertProven(answer);
      const position = answer.event?.position;
      expect(decodeLeaf(answer.leaf)).toMatchObject({ offset: Number(position?.offset), partition: n % 3 });
      const index = answer.event?.index as bigint;
      expect((await rpc.getEvent({ which: { case: "index", value: index } })).leaf).toEqual(answer.leaf);
      if (!position) throw new Error("no position");
      expect((await rpc.getEvent({ which: { case: "position", value: position } })).leaf).toEqual(answer.leaf);
    }
    for (const which of [
      { case: "eventId", value: "no-such-event" },
      { case: "index", value: 300n },
      { case: "position", value: { topic: topicNames.uses, partition: 0, offset: 100n } },
      { case: "position", value: { topic: "elsewhere", partition: 0, offset: 0n } },
    ] as const)
      await expect(rpc.getEvent({ which })).rejects.toMatchObject({ failure: { status: "NOT_FOUND" } });
  });

  it("pages through everything exactly once, whatever comes meanwhile", async () => {
    const records = Array.from({ length: 500 }, (_, n) => use(n, n % 3, `event-${n}`));
    await suite.send(topicNames.uses, "verifier/a", records.slice(0, 400));
    await vi.waitFor(async () => expect((await rpc.getCheckpoint({})).size).toBe(400n), bound);
    const seen: string[] = [];
    let pageToken = "";
    do {
      const page = await rpc.listEvents({
        pageSize: 70,
        pageToken,
        type: "curfew.use.decided.v1",
        source: "/verifier",
      });
      if (seen.length === 0) await suite.send(topicNames.uses, "verifier/b", records.slice(400));
      expect(page.events.length).toBeLessThanOrEqual(70);
      seen.push(...page.events.map((event) => event.eventId));
      pageToken = page.nextPageToken;
    } while (pageToken !== "");
    expect(new Set(seen).size).toBe(seen.length);
    expect(sorted(seen.slice(0, 400))).toEqual(sorted(records.slice(0, 400).map((r) => String(r.headers.ce_id))));
  });

  it("filters by time, type and source, and refuses a page token of other filters", async () => {
    const at = (seconds: number, source: string) =>
      eventRecord(create(TokenExpiredSchema, { tokenId: tokenId(seconds) }), {
        subject: tokenId(seconds),
        source,
        nowMs: seconds * 1_000,
        sequence: 1,
      });
    const atLeast = await suite.send(topicNames.tokens, "issuer/a", [
      ...[100, 200, 300].map((s) => at(s, "/issuer")),
      at(200, "/other"),
    ]);
    const times = async (filters: MessageInitShape<typeof ListEventsRequestSchema>) =>
      (await rpc.listEvents(create(ListEventsRequestSchema, { ...filters, atLeast } as typeof filters))).events.map(
        ({ time }) => Number(time?.seconds),
      );
    const second = (seconds: number) => ({ seconds: BigInt(seconds), nanos: 0 });
    expect(await times({ from: second(200) })).toEqual([200, 300, 200]);
    expect(await times({ to: second(200) })).toEqual([100]);
    expect(await times({ from: second(150), to: second(300), source: "/issuer" })).toEqual([200]);
    expect(await times({ type: "curfew.token.issued.v1" })).toEqual([]);
    const { nextPageToken } = await rpc.listEvents({ pageSize: 1 });
    expect(nextPageToken).not.toBe("");
    for (const request of [
      { pageToken: nextPageToken, source: "/issuer" },
      { pageToken: "nonsense" },
      { atLeast: [{ topic: "elsewhere", partition: 0, offset: 0n }] },
    ])
      await expect(rpc.listEvents(request)).rejects.toMatchObject({ failure: { status: "INVALID_ARGUMENT" } });
  });

  it("waits for a position that is not sealed yet, but not for ever", async () => {
    const waiting = rpc.listEvents({ atLeast: [{ topic: topicNames.tokens, partition: 0, offset: 0n }] });
    await suite.send(topicNames.tokens, "issuer/a", [tokenEvent(1, 1)]);
    expect((await waiting).events.length).toBe(1);
    const never = { topic: topicNames.tokens, partition: 0, offset: 9n };
    await expect(rpc.listEvents({ atLeast: [never] }, { deadlineMs: 4_400 })).rejects.toMatchObject({
      failure: { status: "UNAVAILABLE", reason: "NOT_CAUGHT_UP" },
    });
  });

  it("answers from a second replica what the first has sealed, and lets that one seal when the first stops", async () => {
    const other = await suite.start();
    const otherRpc = await suite.client(other);
    const first = await suite.send(topicNames.tokens, "issuer/a", [tokenEvent(1, 1)]);
    expect((await otherRpc.listEvents({ atLeast: first })).events.length).toBe(1);
    await service.close();
    const second = await suite.send(topicNames.tokens, "issuer/b", [tokenEvent(2, 1)]);
    await vi.waitFor(async () => expect((await otherRpc.listEvents({ atLeast: second })).events.length).toBe(2), bound);
  });

  it("tells what is sealed on the topic for compliance tooling, from one replica, and goes on from another", async () => {
    const other = await suite.start();
    const told = () => suite.bus.ends(siemTopic);
    await suite.send(topicNames.tokens, "issuer/a", [tokenEvent(1, 1), tokenEvent(2, 1)]);
    await expect.poll(told, bound).toEqual([2]);
    await service.close();
    const atLeast = await suite.send(topicNames.tokens, "issuer/b", [tokenEvent(3, 1)]);
    await (await suite.client(other)).listEvents({ atLeast });
    await expect.poll(told, bound).toEqual([3]);
  });

  it("serves the ledger while it runs, and fails when its files are not as they were written", async () => {
    await service.close();
    const ledgerDir = mkdtempSync(join(tmpdir(), "curfew-ledger-"));
    undo.push(() => rmSync(ledgerDir, { recursive: true, force: true }));
    const ledgerListen = { host: "localhost", port: 0 };
    const first = await suite.start({ ledgerDir, ledgerListen });
    const published = () => fetch(new URL(`${shard.year}/checkpoint`, first.ledgerUrl)).then((answer) => answer.text());
    await expect.poll(published, bound).toContain(`${origin}\n0\n`);
    await first.close();
    await expect(published()).rejects.toThrow("fetch failed");
    writeFileSync(join(ledgerDir, String(shard.year), "checkpoint"), "no checkpoint\n");
    const second = await suite.start({ ledgerDir, ledgerListen });
    await expect(second.failed).rejects.toMatchObject({
      name: "LedgerBroken",
      message: expect.stringContaining(`files of ${shard.year} are not as they were written (they`),
    });
    rmSync(join(ledgerDir, String(shard.year)), { recursive: true });
    await second.close();
    const third = await suite.start({ ledgerDir });
    const again = () => readFileSync(join(ledgerDir, String(shard.year), "checkpoint"), "utf8");
    await vi.waitFor(() => expect(again()).toContain(`${origin}\n0\n`), bound);
    await third.close();
  });

  it("signs nothing on a store that was put back behind what is published", async () => {
    await service.close();
    const ledgerDir = mkdtempSync(join(tmpdir(), "curfew-ledger-"));
    undo.push(() => rmSync(ledgerDir, { recursive: true, force: true }));
    const first = await suite.start({ ledgerDir });
    await suite.send(topicNames.uses, "verifier/a", [use(1), use(2)]);
    const published = () => readFileSync(join(ledgerDir, String(shard.year), "checkpoint"), "utf8");
    await vi.waitFor(() => expect(published()).toContain(`${origin}\n2\n`), bound);
    await first.close();
    const { batches, models } = {
      batches: await suite.store.collection("batches"),
      models: await openReadModels(suite.store),
    };
    for (const rows of [models.checkpoints, models.keys, models.entries, batches] as const) {
      const docs = await (rows as typeof batches).find({ limit: 100 });
      await rows.delete(...docs.map(({ _id }) => _id));
    }
    const second = await suite.start({ ledgerDir });
    await suite.send(topicNames.uses, "verifier/c", [use(3)]);
    await expect(second.failed).rejects.toMatchObject({ name: "LedgerBroken", message: /was put back/ });
    expect(await batches.find({ limit: 1 })).toEqual([]);
  });

  it("lets nobody in but auditors", async () => {
    const stranger = await suite.client(service, "sam");
    await expect(stranger.getCheckpoint({})).rejects.toMatchObject({ failure: { status: "PERMISSION_DENIED" } });
  });

  it("fails, and answers nothing, when a leaf in the store is not the one that was sealed", async () => {
    const positions = await suite.send(topicNames.uses, "verifier/a", [use(1, 0, "event-1"), use(2, 0, "event-2")]);
    await rpc.listEvents({ atLeast: positions });
    const entries = await suite.store.collection<EntryRow>("entries");
    const [row] = await entries.find({ limit: 1 });
    const leaf = Uint8Array.from(row?.leaf ?? []);
    leaf[leaf.length - 1] = (leaf[leaf.length - 1] ?? 0) ^ 1;
    await entries.set(row?._id ?? "", { leaf });
    await expect(rpc.getEvent({ which: { case: "index", value: 0n } })).rejects.toMatchObject({
      failure: { status: "INTERNAL" },
    });
    await expect(service.failed).rejects.toMatchObject({ name: "LedgerBroken" });
  });
});
