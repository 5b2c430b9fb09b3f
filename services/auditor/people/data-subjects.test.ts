import { hash, randomUUID } from "node:crypto";
import { join } from "node:path";
import { create } from "@bufbuild/protobuf";
import { DataSubjectService } from "@curfew/contracts/gen/curfew/auditor/v1/data_subjects_pb.ts";
import { AccessGround, HoldGround } from "@curfew/contracts/gen/curfew/events/v1/data_subjects_pb.ts";
import {
  UnknownAttemptsDeniedSchema,
  UseCompletedSchema,
  UseDecidedSchema,
} from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import type { InRecord } from "@curfew/event-log/bus.ts";
import { readEvent } from "@curfew/event-log/envelope.ts";
import { eventTypeOf, topicNames } from "@curfew/event-log/event-types.ts";
import { openPersonKeys } from "@curfew/personal-data/person-keys.ts";
import { openPersonalStore } from "@curfew/personal-data/personal-store.ts";
import { openPseudonyms } from "@curfew/personal-data/pseudonyms.ts";
import { sealField } from "@curfew/personal-data/sealed-field.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { memoryStore } from "@curfew/simulation/memory-store.ts";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { bound, clock, eventRecord, tokenId } from "../testing/rig.ts";
import { openSuite, undo } from "../testing/suite.ts";

afterEach(async () => {
  for (const step of undo.splice(0).reverse()) await step();
});

const hers = { controller: "acme", identifierType: "address", value: "2001:db8:1:2:3:4:5:6" };
const his = { ...hers, value: "198.51.100.20" };

const openRig = async () => {
  const suite = await openSuite();
  const personal = await openPersonalStore({
    ...{ store: memoryStore(), keysDir: join(suite.dir, "keys"), random: systemRandom, clock },
  });
  const settings = { epochMs: 86_400_000, backupDays: 3, settleMs: 0 };
  const service = await suite.start({ people: { personal, settings } });
  const common = { epochs: personal.epochs, random: systemRandom, cacheSize: 9, cacheMs: 0, clock };
  const pseudonyms = openPseudonyms({
    ...common,
    collection: personal.identities,
    identifierKey: personal.identifierKey,
  });
  const keys = openPersonKeys({ ...common, rows: personal.persons });
  const [her, him] = (await pseudonyms.pseudonymsOf([hers, his])) as [string, string];
  /** A use from that address, as a verifier writes it. */
  const useFrom = async (pseudonym: string, address: string, more: object = {}) => {
    const key = await keys.keyOf(pseudonym);
    if (!key) throw new Error("they are erased");
    const useId = randomUUID();
    const place = { eventType: "curfew.use.decided.v1", field: "source.address", id: useId };
    const sealed = sealField(key, pseudonym, place, address, systemRandom);
    const source = { addressPseudonym: pseudonym, country: "DE", address: sealed };
    const use = create(UseDecidedSchema, { useId, tokenId: tokenId(1), source, ...more });
    return eventRecord(use, { subject: tokenId(1), source: "/verifier", id: `${useId}/decided` });
  };
  const send = (records: Parameters<typeof suite.send>[2]) => suite.send(topicNames.uses, "verifier/a", records);
  const evidence = async () => {
    const found: InRecord[] = [];
    const [end = 0] = await suite.bus.ends(topicNames.evidence);
    const reading = await suite.bus.subscribe({
      ...{ name: "test", topics: [topicNames.evidence], start: () => 0 },
      onRecords: (records) => void found.push(...records),
    });
    await vi.waitFor(() => expect(found.length).toBeGreaterThanOrEqual(end), bound);
    await reading.close();
    return found;
  };
  const rpc = await suite.clientOf(DataSubjectService, service, "dora");
  const auditor = await suite.client(service);
  await vi.waitFor(() => rpc.getDataSubject({ subject: byPseudonym(her) }), bound);
  return { suite, personal, service, rpc, auditor, her, him, useFrom, send, evidence };
};
const byPseudonym = (value: string) => ({ who: { case: "pseudonym" as const, value } });
const byIdentity = (value: typeof hers) => ({ who: { case: "identity" as const, value } });
const useIdOf = (record: { readonly headers: Readonly<Record<string, string>> }) =>
  (record.headers.ce_id ?? "").replace("/decided", "");

let rig: Awaited<ReturnType<typeof openRig>>;
beforeEach(async () => {
  rig = await openRig();
});

const hold = (subject: ReturnType<typeof byIdentity> | ReturnType<typeof byPseudonym>, requestId = randomUUID()) =>
  rig.rpc.placeLegalHold({ requestId, subject, ground: HoldGround.LEGAL_OBLIGATION, reference: "tax/1" });
const open = (useId: string, requestId = randomUUID()) =>
  rig.rpc.openSealedField({ requestId, useId, ground: AccessGround.INCIDENT, reference: "case/1" });

describe("who is meant", () => {
  it("is the same person by identity, however an address is written, and by pseudonym; nobody else is anybody", async () => {
    const { rpc, her } = rig;
    for (const subject of [
      byPseudonym(her),
      byIdentity(hers),
      byIdentity({ ...hers, value: "2001:0db8:1:2:3:4:5:0006" }),
    ])
      expect((await rpc.getDataSubject({ subject })).subject?.pseudonym).toBe(her);
    const asked = (value: string) => rpc.getDataSubject({ subject: byIdentity({ ...hers, value }) });
    await expect(asked("203.0.113.1")).rejects.toMatchObject({
      failure: { status: "NOT_FOUND", reason: "DATA_SUBJECT_UNKNOWN" },
    });
    await expect(asked("anna@example.test")).rejects.toMatchObject({ failure: { reason: "NOT_AN_ADDRESS" } });
  });

  it("comes into no event, nor does a hash of it: the same request by pseudonym is the same request", async () => {
    const { her, evidence } = rig;
    const requestId = randomUUID();
    await hold(byIdentity(hers), requestId);
    expect((await hold(byPseudonym(her), requestId)).subject?.holds).toHaveLength(1);
    await expect(hold(byPseudonym(rig.him), requestId)).resolves.toMatchObject({ subject: { pseudonym: rig.him } });
    const bytes = Buffer.concat((await evidence()).map(({ value, key }) => Buffer.concat([Buffer.from(key), value])));
    for (const form of [hers.value, hash("sha256", hers.value), hash("sha256", hers.value, "base64")])
      expect(bytes.includes(form)).toBe(false);
  });

  it("is refused with the ground while a hold is in force; a request id is good for one request", async () => {
    const { rpc, her } = rig;
    const requestId = randomUUID();
    const { subject } = await hold(byPseudonym(her), requestId);
    const erase = rpc.eraseDataSubject({ requestId: randomUUID(), subject: byIdentity(hers), reference: "" });
    await expect(erase).rejects.toMatchObject({ failure: { status: "FAILED_PRECONDITION", reason: "HOLD_IN_FORCE" } });
    await expect(erase).rejects.toThrow(/Art\. 17\(3\)\(b\)\), tax\/1/);
    const other = { requestId, subject: byPseudonym(her), ground: HoldGround.LEGAL_CLAIMS, reference: "tax/1" };
    await expect(rpc.placeLegalHold(other)).rejects.toMatchObject({ failure: { reason: "REQUEST_ID_REUSED" } });
    const holdId = subject?.holds[0]?.holdId ?? "";
    await rpc.releaseLegalHold({ requestId: randomUUID(), subject: byPseudonym(her), holdId });
    await expect(
      rpc.releaseLegalHold({ requestId: randomUUID(), subject: byPseudonym(her), holdId }),
    ).rejects.toMatchObject({ failure: { status: "NOT_FOUND", reason: "HOLD_UNKNOWN" } });
  });
});

describe("a sealed address", () => {
  it("is opened for those who may, after that is recorded, and for nobody once its owner is erased", async () => {
    const { rpc, her, useFrom, send, evidence, suite, service } = rig;
    const record = await useFrom(her, hers.value);
    await send([record]);
    await expect(open(randomUUID())).rejects.toMatchObject({ failure: { status: "NOT_FOUND", reason: "USE_UNKNOWN" } });
    await vi.waitFor(async () => expect(await open(useIdOf(record))).toMatchObject({ address: hers.value }), bound);
    const investigator = await suite.clientOf(DataSubjectService, service, "paula");
    const asked = { useId: useIdOf(record), ground: AccessGround.AUTHORITY, reference: "court/7" };
    expect(await investigator.openSealedField({ requestId: randomUUID(), ...asked })).toMatchObject({ country: "DE" });
    const opened = (await evidence())
      .map((each) => readEvent(each).message)
      .filter((m) => m.$typeName.endsWith("Opened"));
    expect(opened.at(-1)).toMatchObject({
      ...{ pseudonym: her, eventId: `${asked.useId}/decided`, ground: AccessGround.AUTHORITY, reference: "court/7" },
      openedBy: { spiffeId: "spiffe://test.example/person/paula" },
    });
    await rpc.eraseDataSubject({ requestId: randomUUID(), subject: byPseudonym(her), reference: "" });
    await vi.waitFor(
      () => expect(open(useIdOf(record))).rejects.toMatchObject({ failure: { reason: "DATA_SUBJECT_ERASED" } }),
      bound,
    );
    // The key goes first, the event that says so after it.
    await vi.waitFor(async () => {
      const { subject } = await rpc.getDataSubject({ subject: byPseudonym(her) });
      expect(subject?.erasure).toMatchObject({ known: true, consumers: [] });
    }, bound);
  });

  it("of somebody never seen is erased too, and the answer says that nobody was known", async () => {
    const { rpc } = rig;
    const subject = byPseudonym(`psn_${"f".repeat(32)}`);
    await rpc.eraseDataSubject({ requestId: randomUUID(), subject, reference: "" });
    await vi.waitFor(async () => {
      const { erasure } = (await rpc.getDataSubject({ subject })).subject ?? {};
      expect(erasure).toMatchObject({ known: false });
      expect(erasure?.erasedAt).toBeDefined();
    }, bound);
  });
});

describe("an export", () => {
  it("has all that names the person, page by page, with their addresses and without other people", async () => {
    const { rpc, her, him, useFrom, send, auditor } = rig;
    const own = await Promise.all(
      Array.from({ length: 520 }, () => useFrom(her, hers.value, { ended: { people: [him], records: 3n } })),
    );
    const reached = await useFrom(him, his.value, { ended: { people: [her, him], records: 1n } });
    const foreign = await useFrom(him, his.value);
    const other = [
      create(UseCompletedSchema, { useId: "u", tokenId: tokenId(2), people: [him, her], part: 1 }),
      create(UnknownAttemptsDeniedSchema, { useId: "n", networkPseudonym: her }),
    ].map((message) =>
      eventRecord(message, { subject: tokenId(2), source: "/verifier", id: `${eventTypeOf(message).type}/1` }),
    );
    await send([...own, reached, foreign, ...other]);
    await hold(byPseudonym(her));
    await vi.waitFor(async () => expect((await auditor.getCheckpoint({})).size).toBeGreaterThanOrEqual(525n), bound);
    const requestId = randomUUID();
    const asked = { requestId, subject: byIdentity(hers), ground: AccessGround.DATA_SUBJECT_REQUEST, reference: "" };
    const events = [];
    const sizes = [];
    let pageToken = "";
    do {
      const page = await rpc.exportDataSubject({ ...asked, pageToken });
      events.push(...page.events);
      sizes.push(page.events.length);
      pageToken = page.nextPageToken;
      if (pageToken)
        await expect(rpc.exportDataSubject({ ...asked, subject: byPseudonym(him), pageToken })).rejects.toMatchObject({
          failure: { reason: "PAGE_TOKEN_INVALID" },
        });
    } while (pageToken);
    expect(Math.max(...sizes)).toBeLessThanOrEqual(500);
    const roles = Map.groupBy(events, ({ role }) => role);
    expect(Object.fromEntries([...roles].map(([role, { length }]) => [role, length]))).toMatchObject({
      ...{ source: 520, reached: 2, network: 1 },
    });
    expect(roles.get("about")?.map(({ type }) => type)).toContain("curfew.legal-hold.placed.v1");
    expect(new Set(roles.get("source")?.map(({ sourceAddress }) => sourceAddress))).toEqual(new Set([hers.value]));
    expect(roles.get("reached")?.map(({ sourceAddress }) => sourceAddress)).toEqual(["", ""]);
    for (const { json } of events) expect(json).not.toMatch(RegExp(`${him}|ciphertext|spiffe:.*person/`));
    expect(new Set(events.map(({ index }) => index)).size).toBe(events.length);
  });

  it("is not kept from a person by a record whose sealed address is not what was committed to", async () => {
    const { rpc, her, useFrom, send, auditor } = rig;
    const forged = { addressPseudonym: her, country: "DE" };
    const address = {
      pseudonym: her,
      salt: Buffer.alloc(16),
      commitment: Buffer.alloc(32),
      ciphertext: Buffer.alloc(80),
    };
    await send([await useFrom(her, hers.value, { source: { ...forged, address } }), await useFrom(her, hers.value)]);
    await vi.waitFor(async () => expect((await auditor.getCheckpoint({})).size).toBeGreaterThanOrEqual(2n), bound);
    const ground = AccessGround.DATA_SUBJECT_REQUEST;
    const asked = { requestId: randomUUID(), subject: byIdentity(hers), ground, reference: "" };
    const { events } = await rpc.exportDataSubject(asked);
    expect(events.filter(({ role }) => role === "source").map((each) => each.sourceAddress)).toEqual(["", hers.value]);
  });

  it("is recorded once for all its pages, by whom and why, and never what it held", async () => {
    const { rpc, her, useFrom, send, evidence, auditor } = rig;
    await send([await useFrom(her, hers.value)]);
    await vi.waitFor(async () => expect((await auditor.getCheckpoint({})).size).toBeGreaterThanOrEqual(1n), bound);
    const ground = AccessGround.DATA_SUBJECT_REQUEST;
    const asked = { requestId: randomUUID(), subject: byIdentity(hers), ground, reference: "dsr/4" };
    expect((await rpc.exportDataSubject(asked)).events.length).toBeGreaterThan(0);
    const records = (await evidence()).filter((each) => readEvent(each).message.$typeName.endsWith("Exported"));
    expect(records).toHaveLength(1);
    expect(readEvent(records[0] as InRecord).message).toMatchObject({
      ...{ pseudonym: her, ground, reference: "dsr/4", exportedBy: { spiffeId: "spiffe://test.example/person/dora" } },
    });
  });
});
