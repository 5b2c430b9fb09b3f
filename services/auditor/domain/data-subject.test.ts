import { create } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import {
  AccessGround,
  DataSubjectErasedSchema,
  DataSubjectExportedSchema,
  ErasureCompletedSchema,
  ErasurePropagatedSchema,
  ErasureRequestedSchema,
  HoldGround,
  LegalHoldPlacedSchema,
  LegalHoldReleasedSchema,
  SealedFieldOpenedSchema,
} from "@curfew/contracts/gen/curfew/events/v1/data_subjects_pb.ts";
import { fold } from "@curfew/decider/decider.ts";
import { specFor } from "@curfew/decider/spec.ts";
import { describe, expect, it } from "vitest";
import { dataSubject, type SubjectCommand, type SubjectEvent, type SubjectRejection } from "./data-subject.ts";

const given = specFor(dataSubject);
const pseudonym = `psn_${"a".repeat(32)}`;
const dayMs = 86_400_000;
const [t0, t1] = [1_795_000_000_000, 1_795_000_100_000];
const at = timestampFromMs;
const dana = "spiffe://test.example/person/dana";
const by = { spiffeId: dana };
const key = (n: number) => String(n).repeat(64);
const request = (n: number, hash = "h") => ({ request: { key: key(n), hash } });
const base = { pseudonym, by: dana, nowMs: t0 };
const holdId = `hold_${"1".repeat(32)}`;
const reference = "case-7";
const ground = HoldGround.LEGAL_CLAIMS;

const place: SubjectCommand = { type: "PlaceHold", ground, reference, ...base, ...request(1) };
const release: SubjectCommand = { type: "ReleaseHold", holdId, ...base, ...request(2) };
const erase: SubjectCommand = { type: "RequestErasure", reference, ...base, ...request(3) };
const placed = create(LegalHoldPlacedSchema, {
  ...{ pseudonym, holdId, ground, reference, placedBy: by, placedAt: at(t0), requestKey: key(1), requestHash: "h" },
});
const released = create(LegalHoldReleasedSchema, {
  ...{ pseudonym, holdId, releasedBy: by, releasedAt: at(t0), requestKey: key(2), requestHash: "h" },
});
const requested = create(ErasureRequestedSchema, {
  ...{ pseudonym, reference, requestedBy: by, requestedAt: at(t0), requestKey: key(3), requestHash: "h" },
});
const destruction = { known: true, consumers: ["v1", "v2"], epoch: 3, backupDays: 10 };
const recordDestroyed: SubjectCommand = {
  ...{ type: "RecordDestroyed", pseudonym, ...destruction, erasedAtMs: t0, keyGoneByMs: t1 },
};
const erased = create(DataSubjectErasedSchema, { pseudonym, ...destruction, erasedAt: at(t0), keyGoneBy: at(t1) });
const propagate = (acknowledged: string[], lapsed: string[]): SubjectCommand => ({
  ...{ type: "RecordPropagated", pseudonym, acknowledged, lapsed, nowMs: t1 },
});
const propagated = create(ErasurePropagatedSchema, {
  ...{ pseudonym, acknowledged: ["v1"], lapsed: ["v2"], propagatedAt: at(t1) },
});
const goneMs = t1 + 10 * dayMs;
const complete = (nowMs: number, backupDays = 10): SubjectCommand => ({
  ...{ type: "Complete", pseudonym, keyDestroyedAtMs: t1, backupDays, nowMs },
});
const completed = create(ErasureCompletedSchema, { pseudonym, keyDestroyedAt: at(t1), backupsGoneAt: at(goneMs) });
const whole: SubjectEvent[] = [requested, erased, propagated, completed];

describe("a hold", () => {
  it("is placed once however often it is asked for, and can be released and placed anew", () => {
    given([]).when(place).then([placed]);
    given([placed]).when(place).then([]);
    given([placed]).when(release).then([released]);
    given([placed, released]).when(release).then([]);
    given([placed, released]).when(place).then([]);
  });

  it("refuses an erasure, and says why the data must be kept", () => {
    given([placed]).when(erase).thenRejected("HOLD_IN_FORCE");
    expect(() => dataSubject.decide(fold(dataSubject, [placed]), erase)).toThrow(
      /Art\. 17\(3\)\(e\)\), case-7, hold_1+/,
    );
    given([placed, released]).when(erase).then([requested]);
  });
});

describe("an erasure", () => {
  it("goes its way: asked for, destroyed, propagated, completed; each step once", () => {
    given([]).when(erase).then([requested]);
    given([requested]).when(recordDestroyed).then([erased]);
    given([requested, erased])
      .when(propagate(["v1"], ["v2"]))
      .then([propagated]);
    given([requested, erased, propagated]).when(complete(goneMs)).then([completed]);
    for (const command of [erase, recordDestroyed, propagate([], []), complete(0)]) given(whole).when(command).then([]);
    given([requested])
      .when({ ...erase, ...request(9) })
      .then([]);
    given([requested, erased]).when(recordDestroyed).then([]);
  });

  it("leaves nothing that a hold could keep, and can still be looked at", () => {
    given([requested]).when(place).thenRejected("ERASURE_UNDER_WAY");
    const export_: SubjectCommand = {
      ...{ type: "RecordExport", ground: AccessGround.DATA_SUBJECT_REQUEST, reference, ...base },
    };
    given(whole)
      .when(export_)
      .then([
        create(DataSubjectExportedSchema, {
          ...{ pseudonym, ground: AccessGround.DATA_SUBJECT_REQUEST, reference, exportedBy: by, exportedAt: at(t0) },
        }),
      ]);
    const opening = { eventId: "u/decided", field: "source.address", ground: AccessGround.INCIDENT, reference };
    given([])
      .when({ type: "RecordOpened", ...opening, ...base })
      .then([create(SealedFieldOpenedSchema, { pseudonym, ...opening, openedBy: by, openedAt: at(t0) })]);
  });
});

/** Does not compile while a code has no test. */
const rejections: Record<SubjectRejection, [SubjectEvent[], SubjectCommand]> = {
  REQUEST_ID_REUSED: [[placed], { ...place, ...request(1, "other") }],
  HOLD_IN_FORCE: [[placed], erase],
  TOO_MANY_HOLDS: [
    Array.from({ length: 100 }, (_, i) => create(LegalHoldPlacedSchema, { pseudonym, holdId: `hold_${i}` })),
    place,
  ],
  HOLD_UNKNOWN: [[], release],
  ERASURE_UNDER_WAY: [[requested], place],
  ERASURE_NOT_REQUESTED: [[], recordDestroyed],
  NOT_PROPAGATED: [[requested, erased], propagate(["v1"], [])],
  BACKUPS_KEPT: [[requested, erased, propagated], complete(goneMs - 1)],
};
it.each(Object.entries(rejections))("%s", (code, [events, command]) => {
  given(events).when(command).thenRejected(code);
});
it("is not complete while an instance has not acknowledged", () => {
  given([requested, erased]).when(complete(goneMs)).thenRejected("NOT_PROPAGATED");
  given([requested, erased, propagated]).when(complete(goneMs, 20)).thenRejected("BACKUPS_KEPT");
});
