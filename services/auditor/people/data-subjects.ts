import { hash, type KeyObject } from "node:crypto";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import {
  DataSubjectService,
  type EraseDataSubjectRequest,
  EraseDataSubjectRequestSchema,
  type ExportDataSubjectRequest,
  type OpenSealedFieldRequest,
  type PlaceLegalHoldRequest,
  PlaceLegalHoldRequestSchema,
  type ReleaseLegalHoldRequest,
  ReleaseLegalHoldRequestSchema,
  type Subject,
} from "@curfew/contracts/gen/curfew/auditor/v1/data_subjects_pb.ts";
import type { SealedField } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import type { UseDecided } from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import type { Outbox } from "@curfew/event-log/outbox.ts";
import { decodeLeaf } from "@curfew/ledger/leaf.ts";
import { parseAddress } from "@curfew/personal-data/address.ts";
import { personKeyIn } from "@curfew/personal-data/person-keys.ts";
import type { PersonalStore } from "@curfew/personal-data/personal-store.ts";
import { checkIdentity, type Identity, identityId, pseudonymIn } from "@curfew/personal-data/pseudonyms.ts";
import { NotSealedThere, openField } from "@curfew/personal-data/sealed-field.ts";
import { RpcError, type StatusByCode } from "@curfew/rpc/errors.ts";
import { requestKeyOf } from "@curfew/rpc/request-key.ts";
import { type BoundService, bindService, type CallContext } from "@curfew/rpc/service-definition.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import { type SubjectCommand, type SubjectRejection, subjectStream } from "../domain/data-subject.ts";
import { type EntryRow, entryId, eventKey, headerOf, messageOf, type ReadModels, tokenOf } from "../projections.ts";
import type { ErasureSettings } from "./erasure-settings.ts";
import type { Erasures, Subjects } from "./erasures.ts";
import { personEvent } from "./person-events.ts";
import { subjectView } from "./subject-view.ts";

const rejections = {
  REQUEST_ID_REUSED: "INVALID_ARGUMENT",
  HOLD_IN_FORCE: "FAILED_PRECONDITION",
  TOO_MANY_HOLDS: "RESOURCE_EXHAUSTED",
  HOLD_UNKNOWN: "NOT_FOUND",
  ERASURE_UNDER_WAY: "FAILED_PRECONDITION",
  ERASURE_NOT_REQUESTED: "FAILED_PRECONDITION",
  NOT_PROPAGATED: "FAILED_PRECONDITION",
  BACKUPS_KEPT: "FAILED_PRECONDITION",
} as const satisfies StatusByCode<SubjectRejection>;

export interface DataSubjectParts {
  readonly personal: PersonalStore;
  readonly settings: Pick<ErasureSettings, "backupDays">;
  readonly subjects: Subjects;
  readonly erasures: Pick<Erasures, "wake" | "keyDestroyedMs">;
  readonly outbox: Outbox;
  readonly models: Pick<ReadModels, "entries" | "keys">;
  readonly sealedSize: () => number;
  readonly clock: Clock;
}

/** Rows looked through for a page of an export; few of them are about one person. */
const maxScannedRows = 5_000;
const rowsPerRead = 500;
const maxPageEvents = 500;
const maxPageBytes = 2 * 2 ** 20;
const useType = "curfew.use.decided.v1";
const addressField = "source.address";
const erasedText = "the person is erased: nobody can open it";

const failed = (status: "NOT_FOUND" | "FAILED_PRECONDITION" | "INVALID_ARGUMENT", reason: string, message: string) =>
  new RpcError({ status, reason, message });

/** As resource services name them; an address in the one way in which verifiers write it. */
const normalised = ({ controller, identifierType, value }: Identity): Identity => {
  if (identifierType !== "address") return { controller, identifierType, value };
  const address = parseAddress(value);
  if (!address) throw failed("INVALID_ARGUMENT", "NOT_AN_ADDRESS", "the identity of type address is none");
  return { controller, identifierType, value: address.text };
};

const pageToken = (index: number, pseudonym: string) =>
  Buffer.from(`${index} ${hash("sha256", pseudonym, "base64url").slice(0, 16)}`).toString("base64url");
const parsePageToken = (token: string, pseudonym: string): number => {
  if (token === "") return 0;
  const index = /^\d{1,15}/.exec(Buffer.from(token, "base64url").toString())?.[0] ?? "0";
  if (token === pageToken(Number(index), pseudonym)) return Number(index);
  throw failed("INVALID_ARGUMENT", "PAGE_TOKEN_INVALID", "the page token is not from an export of this person");
};

export const dataSubjectService = (parts: DataSubjectParts): BoundService => {
  const calls = new SubjectCalls(parts);
  return bindService(
    DataSubjectService,
    {
      eraseDataSubject: (request, ctx) => calls.erase(request, ctx),
      getDataSubject: async ({ subject }) => ({ subject: await calls.view(await calls.pseudonymOf(subject)) }),
      placeLegalHold: (request, ctx) => calls.placeHold(request, ctx),
      releaseLegalHold: (request, ctx) => calls.releaseHold(request, ctx),
      exportDataSubject: (request, ctx) => calls.export(request, ctx),
      openSealedField: (request, ctx) => calls.open(request, ctx),
    },
    { rejections },
  );
};

class SubjectCalls {
  readonly #parts: DataSubjectParts;

  constructor(parts: DataSubjectParts) {
    this.#parts = parts;
  }

  /** An identity ends here: what goes on is the pseudonym. */
  async pseudonymOf(subject: Subject | undefined): Promise<string> {
    const { identities, identifierKey, epochs } = this.#parts.personal;
    const who = subject?.who;
    if (who?.case === "pseudonym") return who.value;
    if (who?.case !== "identity") throw new TypeError("the request was validated without its subject");
    const identity = normalised(who.value);
    try {
      checkIdentity(identity, 0);
    } catch (error) {
      throw failed("INVALID_ARGUMENT", "INVALID_IDENTIFIER", (error as Error).message);
    }
    const row = await identities.get(identityId(identifierKey, identity));
    const pseudonym = row && pseudonymIn(epochs, row);
    if (!pseudonym)
      throw failed("NOT_FOUND", "DATA_SUBJECT_UNKNOWN", "nobody is known by this identity, or not any more");
    return pseudonym;
  }

  async view(pseudonym: string) {
    const { subjects, erasures, settings, clock } = this.#parts;
    const { keyDestroyedMs } = erasures;
    const left = { keyDestroyedMs, backupDays: settings.backupDays, nowMs: clock.now() };
    return subjectView(pseudonym, await subjects.load(subjectStream(pseudonym)), left);
  }

  async erase(request: EraseDataSubjectRequest, ctx: CallContext) {
    const pseudonym = await this.pseudonymOf(request.subject);
    const asked = this.#asked(pseudonym, request, EraseDataSubjectRequestSchema, ctx);
    await this.#handle({ type: "RequestErasure", reference: request.reference, ...asked }, ctx);
    this.#parts.erasures.wake(pseudonym);
    return { subject: await this.view(pseudonym) };
  }

  async placeHold(request: PlaceLegalHoldRequest, ctx: CallContext) {
    const pseudonym = await this.pseudonymOf(request.subject);
    const asked = this.#asked(pseudonym, request, PlaceLegalHoldRequestSchema, ctx);
    const { ground, reference } = request;
    await this.#handle({ type: "PlaceHold", ground, reference, ...asked }, ctx);
    return { subject: await this.view(pseudonym) };
  }

  async releaseHold(request: ReleaseLegalHoldRequest, ctx: CallContext) {
    const pseudonym = await this.pseudonymOf(request.subject);
    const asked = this.#asked(pseudonym, request, ReleaseLegalHoldRequestSchema, ctx);
    await this.#handle({ type: "ReleaseHold", holdId: request.holdId, ...asked }, ctx);
    return { subject: await this.view(pseudonym) };
  }

  async open(request: OpenSealedFieldRequest, ctx: CallContext) {
    const { ground, reference } = request;
    const useId = request.useId.toLowerCase();
    const eventId = `${useId}/decided`;
    const { source } = await this.#use(eventId);
    if (!source?.address) throw failed("NOT_FOUND", "NO_SEALED_FIELD", "the use has no sealed address");
    const { pseudonym } = source.address;
    const key = await this.#keyOf(pseudonym);
    if (!key) throw failed("FAILED_PRECONDITION", "DATA_SUBJECT_ERASED", erasedText);
    const opened = { eventId, field: addressField, ground, reference, ...this.#by(pseudonym, ctx) };
    await this.#handle({ type: "RecordOpened", ...opened }, ctx);
    return { pseudonym, address: this.#opened(key, source.address, useId), country: source.country };
  }

  async export(request: ExportDataSubjectRequest, ctx: CallContext) {
    const { ground, reference } = request;
    const pseudonym = await this.pseudonymOf(request.subject);
    const from = parsePageToken(request.pageToken, pseudonym);
    if (request.pageToken === "")
      await this.#handle({ type: "RecordExport", ground, reference, ...this.#by(pseudonym, ctx) }, ctx);
    const size = this.#parts.sealedSize();
    const { events, next } = await this.#eventsOf(pseudonym, from, size);
    return {
      subject: await this.view(pseudonym),
      events,
      nextPageToken: next < size ? pageToken(next, pseudonym) : "",
      lookedAt: BigInt(next),
      ledgerSize: BigInt(size),
    };
  }

  #by(pseudonym: string, { caller }: CallContext) {
    return { pseudonym, by: caller.uri, nowMs: this.#parts.clock.now() };
  }

  /** The request's key, over the pseudonym in place of whatever named the person: no hash of an identity may come into an event. */
  #asked<D extends Parameters<typeof requestKeyOf>[2]>(
    pseudonym: string,
    request: { readonly requestId: string },
    desc: D,
    ctx: CallContext,
  ) {
    const named = { ...request, subject: undefined } as unknown as Parameters<typeof requestKeyOf<D>>[3];
    const { keyHex, requestHash } = requestKeyOf(ctx, request.requestId, desc, named);
    const about = hash("sha256", `${requestHash} ${pseudonym}`);
    return { ...this.#by(pseudonym, ctx), request: { key: keyHex, hash: about } };
  }

  async #handle(command: SubjectCommand, { signal, deadlineMs }: CallContext): Promise<void> {
    const { subjects, outbox } = this.#parts;
    const { commit } = await subjects.handle(subjectStream(command.pseudonym), command, { signal, deadlineMs });
    if (commit) await outbox.relay.published(commit);
  }

  async #keyOf(pseudonym: string) {
    const { persons, epochs } = this.#parts.personal;
    const row = await persons.getLatest(pseudonym);
    return row && personKeyIn(epochs, row);
  }

  #opened(key: KeyObject, field: SealedField, useId: string): string {
    return openField(key, field, { eventType: useType, field: addressField, id: useId });
  }

  /** One forged record must not keep a person from their copy. */
  #openedIfSound(key: KeyObject, field: SealedField, useId: string): string {
    try {
      return this.#opened(key, field, useId);
    } catch (error) {
      if (error instanceof NotSealedThere) return "";
      throw error;
    }
  }

  /** The use as it is sealed; the first one, where it was reported twice. */
  async #use(eventId: string): Promise<UseDecided> {
    const { models, sealedSize } = this.#parts;
    const found = await models.keys.get(eventKey(eventId));
    const row = found && found.index < sealedSize() ? await models.entries.get(entryId(found.index)) : undefined;
    const message = row && messageOf(decodeLeaf(row.leaf));
    if (message?.$typeName !== "curfew.events.v1.UseDecided")
      throw failed("NOT_FOUND", "USE_UNKNOWN", "no such use is sealed");
    return message as UseDecided;
  }

  /** From a leaf on, a page of what names the person; `next`: where to go on. */
  async #eventsOf(pseudonym: string, from: number, size: number) {
    const { entries } = this.#parts.models;
    const key = await this.#keyOf(pseudonym);
    const events: NonNullable<ReturnType<SubjectCalls["exported"]>>[] = [];
    let [next, bytes] = [from, 0];
    const last = Math.min(size, from + maxScannedRows);
    while (next < last && events.length < maxPageEvents && bytes < maxPageBytes) {
      const rows = await entries.find({ from: entryId(next), below: entryId(last), limit: rowsPerRead });
      if (rows.length === 0) break;
      for (const row of rows) {
        if (events.length >= maxPageEvents || bytes >= maxPageBytes) break;
        next = Number(row._id) + 1;
        const event = row.duplicate ? undefined : this.exported(row, pseudonym, key);
        if (!event) continue;
        events.push(event);
        bytes += event.json.length + 512;
      }
    }
    return { events, next: events.length >= maxPageEvents || bytes >= maxPageBytes ? next : last };
  }

  exported(row: EntryRow, pseudonym: string, key: KeyObject | undefined) {
    // Most leaves are not about them, and that shows at once: a pseudonym stands in an event as it is.
    if (!Buffer.from(row.leaf.buffer, row.leaf.byteOffset, row.leaf.byteLength).includes(pseudonym)) return undefined;
    const record = decodeLeaf(row.leaf);
    const message = messageOf(record);
    const type = headerOf(record, "ce_type") ?? "";
    const found = message && personEvent(type, message, pseudonym);
    if (!found) return undefined;
    const { role, json, sealed } = found;
    return {
      index: BigInt(Number(row._id)),
      eventId: headerOf(record, "ce_id") ?? "",
      type,
      ...(row.timeMs !== undefined && { time: timestampFromMs(row.timeMs) }),
      tokenId: tokenOf(record, message) ?? "",
      role,
      json,
      sourceAddress: key && sealed ? this.#openedIfSound(key, sealed.field, sealed.useId) : "",
    };
  }
}
