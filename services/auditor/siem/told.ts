import type { Message } from "@bufbuild/protobuf";
import type { EventByType } from "@curfew/event-log/event-types.ts";
import { breachesTold } from "./breaches.ts";
import { dataSubjectsTold } from "./data-subjects.ts";
import { evidenceTold } from "./evidence.ts";
import type { Told } from "./ocsf.ts";
import { revocationsTold } from "./revocations.ts";
import { tokensTold } from "./tokens.ts";
import { usesTold } from "./uses.ts";

/**
 * What each event is in OCSF. Every type is here, so that the ledger's indices on `curfew.siem.v1` have no gaps: a new one does not compile
 * until it is told. Free text of people, addresses and the people reached stay out: they are read at the auditor, by who may.
 */
export type Tellers = { readonly [Type in keyof EventByType]: (event: EventByType[Type], id: string) => Told };

const tellers: Tellers = {
  ...tokensTold,
  ...usesTold,
  ...revocationsTold,
  ...breachesTold,
  ...evidenceTold,
  ...dataSubjectsTold,
};

/** `message` is of the event type `type`, its id is `id`. */
export const toldOf = (type: string, message: Message, id: string): Told => {
  const teller = tellers[type as keyof EventByType] as (event: Message, id: string) => Told;
  return teller(message, id);
};

/** A record that is sealed and that we cannot read: forged, or from a future that this auditor does not know. */
export const unreadable = (where: string): Told => ({
  class: "detection_finding",
  activity: "Create",
  severity: "High",
  message: `A record that is no event of a known kind stands at ${where}`,
  attributes: {
    is_alert: true,
    status_id: 1,
    status: "New",
    finding_info: { uid: where, title: "Unreadable record", types: ["Unreadable record"] },
    resources: [{ uid: where, type: "Record" }],
  },
});
