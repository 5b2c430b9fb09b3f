import { generateKeyPairSync, hash } from "node:crypto";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { create, fromBinary, type Message } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { sourceOf } from "@curfew/bundle/byte-source.ts";
import { indexedFile } from "@curfew/bundle/layout.ts";
import { readZip } from "@curfew/bundle/read-zip.ts";
import { openBundle } from "@curfew/bundle/verify-bundle.ts";
import { ExportBundleRequestSchema } from "@curfew/contracts/gen/curfew/auditor/v1/auditor_pb.ts";
import {
  CaseOpenedSchema,
  NotificationDraftedSchema,
  SignalJoinedSchema,
} from "@curfew/contracts/gen/curfew/events/v1/breaches_pb.ts";
import { EvidenceExportedSchema, EvidenceGapFoundSchema } from "@curfew/contracts/gen/curfew/events/v1/evidence_pb.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { decodeLeaf } from "@curfew/ledger/leaf.ts";
import { signNote } from "@curfew/ledger/note.ts";
import { cosignerKeyText, noteCosigner } from "@curfew/ledger/note-key.ts";
import { parsePolicy } from "@curfew/ledger/policy.ts";
import { NONCE_BYTES, readAuthorities, timestampQuery } from "@curfew/ledger/timestamp.ts";
import { treeRoot } from "@curfew/ledger/tree.ts";
import type { CallContext } from "@curfew/rpc/service-definition.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { memoryStore } from "@curfew/simulation/memory-store.ts";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { openTsa } from "../../../test/tools/tsa.ts";
import { LedgerBroken } from "../domain.ts";
import { openFollower } from "../follower.ts";
import { entryId, readNodes } from "../projections.ts";
import { cosignedId, openCosigned } from "../public-log/cosigned.ts";
import type { OutsideClocks } from "../public-log/outside-times.ts";
import { openTimestampRows, type TimestampRow } from "../public-log/timestamps.ts";
import {
  clock,
  eventRecord,
  identities,
  type MemoryWorld,
  openWorld,
  quiet,
  seal,
  sendOn,
  shard,
  startAuditor,
  tokenEvent,
  tokenId,
  untilSealed,
  use,
  verifierKey,
} from "../testing/rig.ts";
import { openExports } from "./export.ts";
import type { Cosigning } from "./shown-tree.ts";

const policy = parsePolicy(`log ${verifierKey}\nquorum none\n`);
const draft = '{"a":"draft"}';
const caseOf = (n: number, about = tokenId(1)) => `case/${about}/${n}`;

let world: MemoryWorld;
let auditor: Awaited<ReturnType<typeof startAuditor>>;
beforeEach(async () => {
  world = await openWorld();
  auditor = await startAuditor(world);
});
afterEach(() => auditor.close());

const caseEvent = (message: Message, caseId: string, sequence: number, id: string) =>
  eventRecord(message, { subject: caseId, source: "/breach-notifier", sequence, id });

/** Uses and ends of three tokens; two cases about the first, one about a producer, whose signal names no token. */
const fill = async () => {
  await sendOn(
    world.bus,
    topicNames.tokens,
    "issuer/a",
    [1, 2, 3].map((n) => tokenEvent(n, 1, `end-${n}`)),
  );
  const uses = Array.from({ length: 60 }, (_, n) => use(1 + (n % 3), n % 2, `use-${n}`));
  await sendOn(world.bus, topicNames.uses, "verifier/a", uses);
  const gap = create(EvidenceGapFoundSchema, { producer: "verifier/b/1" });
  await sendOn(world.bus, topicNames.evidence, "auditor/x", [
    eventRecord(gap, { subject: "gaps/x", source: "/auditor", sequence: 1, id: "gap" }),
  ]);
  const opened = (caseId: string, eventId: string) =>
    create(CaseOpenedSchema, { caseId, tokenId: caseId.includes("tok_") ? tokenId(1) : "", signal: { eventId } });
  const ofProducer = caseOf(1, "0123456789abcdef");
  const drafted = create(NotificationDraftedSchema, {
    caseId: caseOf(1),
    draftSha256: hash("sha256", draft, "buffer"),
  });
  const joined = create(SignalJoinedSchema, { caseId: caseOf(1), signal: { eventId: "gap" } });
  await sendOn(world.bus, topicNames.breaches, "breach-notifier/a", [
    caseEvent(opened(caseOf(1), "end-1"), caseOf(1), 1, "opened-1"),
    caseEvent(opened(ofProducer, "gap"), ofProducer, 1, "opened-producer"),
    caseEvent(opened(caseOf(2), "end-1"), caseOf(2), 1, "opened-2"),
    caseEvent(joined, caseOf(1), 2, "joined-1"),
    caseEvent(drafted, caseOf(1), 3, "drafted-1"),
  ]);
  await untilSealed(world);
  return ofProducer;
};

const openExporter = async (models = auditor.models, cosigning?: Cosigning, stamped?: OutsideClocks["stamped"]) => {
  const follower = await openFollower({ models, seal, clock, log: quiet });
  const { outbox } = auditor;
  const clocks = { cosigning, stamped };
  const exportBundle = openExports({
    models,
    follower,
    seal,
    clocks,
    authority: identities,
    outbox,
    clock,
    random: systemRandom,
    awaitSealed: async () => undefined,
  });
  const ctx = { caller: { uri: "spiffe://test.example/person/paula" }, signal: new AbortController().signal };
  return {
    close: () => follower.close(),
    async bytes(request: MessageInitShape<typeof ExportBundleRequestSchema>) {
      const pieces: Uint8Array[] = [];
      for await (const { piece } of exportBundle(create(ExportBundleRequestSchema, request), ctx as CallContext)) {
        expect(piece.length).toBeLessThanOrEqual(256 * 1024);
        pieces.push(piece);
      }
      return Buffer.concat(pieces);
    },
  };
};

const exported = async (request: MessageInitShape<typeof ExportBundleRequestSchema>) => {
  const exporter = await openExporter();
  try {
    const bytes = await exporter.bytes(request);
    const bundle = await openBundle(sourceOf(bytes), policy);
    const entries = (await readZip(sourceOf(bytes))).filter(({ name }) => indexedFile(name)?.kind === 0);
    const ids = entries.map(({ at, size }) => {
      const { headers } = decodeLeaf(bytes.subarray(at, at + size));
      return headers.find(([name]) => name === "ce_id")?.[1] ?? "";
    });
    return { bytes, ids, ...bundle };
  } finally {
    await exporter.close();
  }
};

describe("an exported bundle", () => {
  it("of a token has all about it, its cases too, and nothing else", async () => {
    await fill();
    const { ids, manifest, report } = await exported({ tokenId: tokenId(1) });
    expect(ids.filter((id) => id.startsWith("use-"))).toHaveLength(20);
    expect(ids.filter((id) => !id.startsWith("use-")).sort()).toEqual([
      "drafted-1",
      "end-1",
      "joined-1",
      "opened-1",
      "opened-2",
    ]);
    expect(manifest.range).toEqual({ first: 0, end: manifest.size });
    expect(report.missing).toEqual([]);
    expect(report.streams.map(({ stream }) => stream).sort()).toEqual([caseOf(1), caseOf(2), `tokens/${tokenId(1)}`]);
  });

  it("of a case has its events, its signals wherever they are, all about its token, and the draft; not another case", async () => {
    await fill();
    const { ids, drafts, manifest } = await exported({ caseId: caseOf(1), drafts: [draft] });
    expect(ids.filter((id) => !id.startsWith("use-")).sort()).toEqual([
      "drafted-1",
      "end-1",
      "gap",
      "joined-1",
      "opened-1",
    ]);
    expect(ids.filter((id) => id.startsWith("use-"))).toHaveLength(20);
    expect(drafts).toBe(1);
    expect(manifest.selection).toEqual({ case: caseOf(1), token: tokenId(1), from: "", to: "" });
  });

  it("of a case about a producer has its events and signals", async () => {
    const caseId = await fill();
    expect((await exported({ caseId })).ids).toEqual(expect.arrayContaining(["gap", "opened-producer"]));
    expect((await exported({ caseId })).ids).toHaveLength(2);
  });

  it("of a time has every leaf that was sealed in it, whatever it is about", async () => {
    await fill();
    await clock.sleep(2);
    const fromMs = clock.now();
    await sendOn(world.bus, topicNames.uses, "verifier/c", [use(7, 0, "late-1"), use(8, 1, "late-2")]);
    await untilSealed(world);
    await clock.sleep(2);
    const toMs = clock.now();
    await sendOn(world.bus, topicNames.uses, "verifier/c", [use(9, 0, "later")]);
    await untilSealed(world);
    const between = { from: timestampFromMs(fromMs), to: timestampFromMs(toMs) };
    const { ids, manifest, report, first } = await exported(between);
    expect(ids.sort()).toEqual(["late-1", "late-2"]);
    expect(first.size).toBe(manifest.range.end);
    expect(report.missing).toEqual([]);
    const all = await exported({});
    expect(all.ids).toHaveLength(all.manifest.size);
    expect(all.report.missing).toEqual([]);
    expect(manifest.size).toBeGreaterThan(manifest.range.end);
  });

  it("of a time has what was sealed in it also where the clock was set back meanwhile, again and again", async () => {
    await auditor.close();
    let nowMs = 0;
    auditor = await startAuditor(world, world.store, world.bus, seal, { ...clock, now: () => nowMs });
    const startMs = Date.UTC(shard.year, 5, 1);
    const seconds = [100, 200, 300, 150, 160, 310, 305, 400, 120];
    for (const [n, second] of seconds.entries()) {
      nowMs = startMs + 1_000 * second;
      await sendOn(world.bus, topicNames.uses, "verifier/a", [use(n, 0, `use-${n}`)]);
      await untilSealed(world);
    }
    const sealedIn = async (from: number, to: number) => {
      const at = (second: number) => timestampFromMs(startMs + 1_000 * second);
      return (await exported({ from: at(from), to: at(to) })).ids.filter((id) => id.startsWith("use-"));
    };
    const uses = (first: number, last: number) => seconds.map((_, n) => `use-${n}`).slice(first, last + 1);
    expect(await sealedIn(140, 170)).toEqual(uses(3, 4));
    expect(await sealedIn(290, 306)).toEqual(uses(2, 6));
    expect(await sealedIn(110, 130)).toEqual(uses(8, 8));
    expect(await sealedIn(100, 101)).toEqual(uses(0, 0));
    expect(await sealedIn(0, 1_000)).toEqual(uses(0, 8));
    await expect(sealedIn(170, 200)).rejects.toMatchObject({ failure: { status: "NOT_FOUND" } });
  });

  it("is recorded with the hash of its manifest before its last bytes are there", async () => {
    await fill();
    const { bytes, manifest } = await exported({ tokenId: tokenId(2) });
    const files = await readZip(sourceOf(bytes));
    const sha256 = files.find(({ name }) => name === "manifest.json")?.sha256;
    const [commit] =
      (await auditor.outbox.streams.commits.find({ from: "exports/", below: "exports0", limit: 10 })) ?? [];
    const event = fromBinary(EvidenceExportedSchema, commit?.events[0]?.value ?? new Uint8Array());
    expect(event).toMatchObject({
      exportedBy: { spiffeId: "spiffe://test.example/person/paula" },
      tokenId: tokenId(2),
      entries: BigInt(manifest.entries),
      ledgerSize: BigInt(manifest.size),
    });
    expect(Buffer.from(event.manifestSha256).toString("hex")).toBe(sha256);
  });

  it("is refused where it would be empty, where the question is none, and with a draft that was never recorded", async () => {
    const exporter = await openExporter();
    await expect(exporter.bytes({})).rejects.toMatchObject({ failure: { status: "NOT_FOUND" } });
    await exporter.close();
    await fill();
    const later = await openExporter();
    const refusals = [
      [{ tokenId: "tok_none" }, "NOTHING_SEALED"],
      [{ caseId: "case/none/1" }, "NOTHING_SEALED"],
      [{ from: timestampFromMs(clock.now() + 60_000) }, "NOTHING_SEALED"],
      [{ tokenId: tokenId(1), caseId: caseOf(1) }, "SELECTION_INVALID"],
      [{ tokenId: tokenId(1), drafts: [draft] }, "SELECTION_INVALID"],
      [{ caseId: caseOf(1), drafts: ["{}"] }, "DRAFT_UNKNOWN"],
      [{ caseId: caseOf(2), drafts: [draft] }, "DRAFT_UNKNOWN"],
    ] as const;
    for (const [request, reason] of refusals)
      await expect(
        later.bytes({ ...request, drafts: [...("drafts" in request ? request.drafts : [])] }),
      ).rejects.toMatchObject({ failure: { reason } });
    await later.close();
    expect(await auditor.outbox.streams.commits.find({ from: "exports/", below: "exports0", limit: 10 })).toEqual([]);
  });

  it("leads to the cosigned checkpoint where witnesses are asked, and to the log's own where they are silent", async () => {
    await fill();
    const { privateKey, publicKey } = generateKeyPairSync("ed25519");
    const wanted = parsePolicy(
      `log ${verifierKey}\nwitness w ${cosignerKeyText("w.example/w", publicKey)}\nquorum w\n`,
    );
    const rows = await openCosigned(world.store);
    const exporter = await openExporter(auditor.models, { policy: wanted, rows });
    const request = { tokenId: tokenId(1) };
    const alone = await openBundle(sourceOf(await exporter.bytes(request)), policy);
    expect(alone.checkpoint.witnesses).toEqual([]);
    const [latest] = await auditor.models.checkpoints.find({ order: -1, limit: 1 });
    const { size = 0, checkpoint = "" } = latest ?? {};
    const cosignedCheckpoint = (line: string) => checkpoint + line.slice(line.indexOf("\n\n") + 2);
    const line = signNote(checkpoint.slice(0, checkpoint.indexOf("\n\n") + 1), [
      noteCosigner("w.example/w", privateKey, 77),
    ]);
    await rows.insert({ _id: cosignedId(size), shard, size, checkpoint: cosignedCheckpoint(line) });
    const bytes = await exporter.bytes(request);
    const cosigned = await openBundle(sourceOf(bytes), wanted);
    expect(cosigned.checkpoint.witnesses).toEqual([{ name: "w", seconds: 77 }]);
    const inside = (await readZip(sourceOf(bytes))).find(({ name }) => name === "policy");
    expect(parsePolicy(bytes.subarray(inside?.at, (inside?.at ?? 0) + (inside?.size ?? 0))).quorum).toBe("w");
    await exporter.close();
  });

  it.skipIf(process.env.ABSENT_PROGRAMS?.includes("openssl"))(
    "takes the first timestamp over all its entries along, else the newest over some (needs openssl)",
    async () => {
      await fill();
      const request = { tokenId: tokenId(2) };
      const { manifest } = await exported(request);
      const indexes = manifest.files.flatMap(({ name }) => indexedFile(name)?.index ?? []);
      const [first, last, { entries }] = [Math.min(...indexes), Math.max(...indexes), manifest];
      const tsa = await openTsa();
      const stamp = async (size: number, checkpoint: string, over = checkpoint) => {
        const query = timestampQuery(Buffer.from(over), systemRandom(NONCE_BYTES));
        const response = await tsa.reply(query);
        return { _id: cosignedId(size), shard, size, checkpoint, query, response, timeMs: 0, askedMs: 0 };
      };
      const signed = async (size: number) =>
        seal.sign(shard, size, await treeRoot(size, readNodes(auditor.models.entries, shard)));
      const forked = (size: number) => seal.sign(shard, size, Buffer.alloc(32, 1));
      const stampIn = async (...stamps: readonly Promise<TimestampRow>[]) => {
        const rows = await openTimestampRows(memoryStore());
        await rows.insertMany(await Promise.all(stamps));
        const exporter = await openExporter(auditor.models, undefined, rows);
        try {
          const source = sourceOf(await exporter.bytes(request));
          const { stamp: found } = await openBundle(source, policy, { timestamps: readAuthorities(tsa.caPem) });
          return found && { size: found.size, entries: found.entries };
        } finally {
          await exporter.close();
        }
      };
      const good = async (size: number) => stamp(size, await signed(size));
      const ahead = 1_000_000;
      try {
        expect(first).toBeGreaterThan(0);
        expect(await stampIn()).toBeUndefined();
        expect(await stampIn(good(first))).toBeUndefined();
        expect(await stampIn(good(first + 1), good(last))).toEqual({ size: last, entries: entries - 1 });
        // Over more than this replica has seen sealed: nothing can be proven of that yet.
        expect(await stampIn(good(last), stamp(ahead, forked(ahead)))).toEqual({ size: last, entries: entries - 1 });
        const [exact, later] = [good(last + 1), good(last + 2)];
        expect(await stampIn(good(last), exact, later)).toEqual({ size: last + 1, entries });
        expect(await stampIn(good(last), later)).toEqual({ size: last + 2, entries });
        const why = `the timestamp over size ${last} does not hold`;
        await expect(stampIn(stamp(last, forked(last)))).rejects.toThrow(
          new LedgerBroken(`${why}: it is of another tree`),
        );
        await expect(stampIn(stamp(last, await signed(last), "something else"))).rejects.toThrow(
          new LedgerBroken(`${why}: the timestamp is of something else`),
        );
      } finally {
        tsa.close();
      }
    },
  );

  it("of a read model that was changed is not made: the ledger is broken", async () => {
    await fill();
    const { entries } = auditor.models;
    const changed = {
      ...auditor.models,
      entries: {
        ...entries,
        get: (id: string) => entries.get(id),
        find: async (query: Parameters<typeof entries.find>[0]) => {
          const rows = await entries.find(query);
          return rows.map((row) => (row._id === entryId(5) ? { ...row, leaf: rows[0]?.leaf ?? row.leaf } : row));
        },
      },
    };
    const exporter = await openExporter(changed);
    await expect(exporter.bytes({})).rejects.toBeInstanceOf(LedgerBroken);
    await exporter.close();
  });
});
