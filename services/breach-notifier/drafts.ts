import { hash } from "node:crypto";
import { create, fromBinary, type MessageShape, toBinary } from "@bufbuild/protobuf";
import { DraftNotificationResponseSchema } from "@curfew/contracts/gen/curfew/breach/v1/breach_pb.ts";
import { AwarenessDecidedSchema } from "@curfew/contracts/gen/curfew/events/v1/breaches_pb.ts";
import type { DocumentStore } from "@curfew/document-store/port.ts";
import { eventTypeOf } from "@curfew/event-log/event-types.ts";
import type { EventStreams } from "@curfew/event-log/streams.ts";
import { RpcError } from "@curfew/rpc/errors.ts";
import type { RequestKey } from "@curfew/rpc/request-key.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import type { Organisation } from "@curfew/runtime/organisation.ts";
import { type CaseRadius, controllersOf, radiusOfController } from "./case-radius.ts";
import { clockOf } from "./case-view.ts";
import { type OpenCase, pastRequest } from "./domain.ts";
import { draftNotification } from "./draft.ts";
import type { Radii } from "./radii.ts";

type DraftRow = {
  /** Request key, hex: the same request gets the same draft, although the numbers live on. */
  _id: string;
  requestHash: string;
  caseId: string;
  /** DraftNotificationResponse as it was first made. */
  response: Uint8Array;
};

export interface KeptDraft {
  readonly response: MessageShape<typeof DraftNotificationResponseSchema>;
  /** Of the draft as JSON. */
  readonly sha256: Uint8Array;
}

export interface ListedDraft {
  readonly controller: string;
  readonly json: string;
  readonly offset: number;
}

export interface Drafts {
  /** The draft of this request: made now, or when it first came. */
  get(state: OpenCase, controller: string, key: RequestKey): Promise<KeptDraft>;
  /** The newest of each controller, at most 16, with the offset of its event, of those of the case whose event `offsetOf` their request knows. */
  newest(caseId: string, offsetOf: (requestKey: string) => number | undefined): Promise<ListedDraft[]>;
}

/** Of one case; each is a request of a person. */
const maxRead = 1_000;
const maxListed = 16;

const refuse = (reason: string, message: string) =>
  new RpcError({
    status: "INVALID_ARGUMENT",
    reason,
    message,
    fieldViolations: [{ field: "controller", description: message, reason }],
  });

/** Drafts as they were answered: rows that are only inserted, before the event that carries their hash. */
export const openDrafts = async (parts: {
  readonly store: DocumentStore;
  readonly streams: EventStreams;
  readonly radii: Radii;
  readonly organisation: Organisation;
  readonly clock: Clock;
}): Promise<Drafts> => {
  const { streams, radii, organisation, clock } = parts;
  const rows = await parts.store.collection<DraftRow>("drafts", { indexes: ["caseId"] });

  const controllerOf = (asked: string, radius: CaseRadius | undefined) => {
    const touched = radius ? controllersOf(radius) : organisation.controllers.map(({ id }) => id);
    const [only] = touched;
    if (asked === "" && (touched.length !== 1 || only === undefined))
      throw refuse(
        "CONTROLLER_REQUIRED",
        `name the controller: ${touched.join(", ") || "none is known to be touched"}`,
      );
    const controller = organisation.controllers.find(({ id }) => id === (asked || only));
    if (!controller) throw refuse("CONTROLLER_UNKNOWN", "no controller of this id is configured");
    return controller;
  };

  /** ce_id of the decision in force. */
  const decisionEventId = async ({ caseId, decision }: OpenCase): Promise<string> => {
    if (!decision) return "";
    const { type } = eventTypeOf(create(AwarenessDecidedSchema));
    let found = "";
    for (let version = 1; ; version += 1) {
      const commit = await streams.read(caseId, version);
      if (!commit) return found;
      for (const { headers } of commit.doc.events) if (headers.ce_type === type && headers.ce_id) found = headers.ce_id;
    }
  };

  const make = async (state: OpenCase, asked: string): Promise<KeptDraft["response"]> => {
    const whole = await radii.of(state);
    const controller = controllerOf(asked, whole);
    const nowMs = clock.now();
    const draft = draftNotification({
      state,
      controller,
      nowMs,
      clock: clockOf(state, nowMs),
      radius: whole && radiusOfController(whole, controller.id, organisation),
      decisionEventId: await decisionEventId(state),
    });
    const fields = draft.fields.map((field) => ({ ...field, eventIds: [...field.eventIds] }));
    return create(DraftNotificationResponseSchema, { ...draft, fields, missing: [...draft.missing] });
  };

  return {
    async get(state, controller, { keyHex, requestHash }) {
      let row = await rows.get(keyHex);
      if (!row) {
        const response = toBinary(DraftNotificationResponseSchema, await make(state, controller));
        const made = { _id: keyHex, requestHash, caseId: state.caseId, response };
        row = (await rows.insert(made)) === "inserted" ? made : await rows.get(keyHex);
      }
      if (!row) throw new Error("a draft that was kept is gone");
      // Also where the row is older than the event.
      const reused = { ...state, requests: [{ key: keyHex, hash: row.requestHash, awareAtMs: undefined }] };
      pastRequest(reused, { key: keyHex, hash: requestHash });
      const response = fromBinary(DraftNotificationResponseSchema, row.response);
      return { response, sha256: hash("sha256", response.json, "buffer") };
    },
    async newest(caseId, offsetOf) {
      const newest = new Map<string, ListedDraft>();
      for (const { _id, response } of await rows.find({ where: { caseId }, limit: maxRead })) {
        const offset = offsetOf(_id);
        if (offset === undefined) continue;
        const { controller, json } = fromBinary(DraftNotificationResponseSchema, response);
        if (offset > (newest.get(controller)?.offset ?? -1)) newest.set(controller, { controller, json, offset });
      }
      return [...newest.values()].sort((a, b) => b.offset - a.offset).slice(0, maxListed);
    },
  };
};
