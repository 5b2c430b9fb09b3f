import type { Actor } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import { AccessGroundSchema, HoldGroundSchema } from "@curfew/contracts/gen/curfew/events/v1/data_subjects_pb.ts";
import type { Told } from "./ocsf.ts";
import { actorOf, done, entityOf, msOf, nameOf, said } from "./parts.ts";
import type { Tellers } from "./told.ts";

/** Whoever it is about goes by a pseudonym, which leads to nobody once they are erased. */
const about = (
  activity: string,
  message: string,
  of: { pseudonym: string; by?: Actor | undefined; data?: object },
): Told => ({
  class: "entity_management",
  activity,
  severity: "Informational",
  message,
  attributes: { ...done, actor: actorOf(of.by), entity: entityOf("Data subject", of.pseudonym, of.data) },
});

export const dataSubjectsTold = {
  "curfew.legal-hold.placed.v1": ({ pseudonym, holdId, ground, reference, placedBy: by }) =>
    about("Hold", "Data about a person must be kept", {
      pseudonym,
      by,
      data: { hold: holdId, ground: nameOf(HoldGroundSchema, ground), reference: said(reference) },
    }),
  "curfew.legal-hold.released.v1": ({ pseudonym, holdId, releasedBy: by }) =>
    about("Release", "A hold on the data of a person is over", { pseudonym, by, data: { hold: holdId } }),
  "curfew.erasure.requested.v1": ({ pseudonym, reference, requestedBy: by }) =>
    about("Request", "The erasure of a person was asked for", { pseudonym, by, data: { reference: said(reference) } }),
  "curfew.data-subject.erased.v1": ({ pseudonym, consumers, epoch, keyGoneBy, backupDays }) =>
    about("Delete", "Key and mapping of a person are gone", {
      pseudonym,
      data: { consumers, epoch, key_gone_by: msOf(keyGoneBy), backup_days: backupDays },
    }),
  "curfew.erasure.acknowledged.v1": ({ pseudonym, consumer }) =>
    about("Acknowledge", `${said(consumer) ?? "An instance"} has forgotten an erased person`, { pseudonym }),
  "curfew.erasure.propagated.v1": ({ pseudonym, acknowledged, lapsed }) =>
    about("Propagate", "Every instance has forgotten an erased person", { pseudonym, data: { acknowledged, lapsed } }),
  "curfew.epoch-key.destroyed.v1": ({ epoch, successor, destroyedAt }) => ({
    class: "entity_management",
    activity: "Delete",
    severity: "Low",
    message: `The key of epoch ${epoch} of personal data is destroyed`,
    attributes: {
      ...done,
      entity: entityOf("Epoch key", String(epoch), { successor, destroyed_at: msOf(destroyedAt) }),
    },
  }),
  "curfew.erasure.completed.v1": ({ pseudonym, keyDestroyedAt, backupsGoneAt }) =>
    about("Complete", "Nothing readable is left of an erased person", {
      pseudonym,
      data: { key_destroyed_at: msOf(keyDestroyedAt), backups_gone_at: msOf(backupsGoneAt) },
    }),
  "curfew.data-subject.exported.v1": ({ pseudonym, ground, reference, exportedBy: by }) => ({
    ...about("Read", "What is held about a person was handed out", {
      pseudonym,
      by,
      data: { ground: nameOf(AccessGroundSchema, ground), reference: said(reference) },
    }),
    severity: "Medium",
  }),
  "curfew.sealed-field.opened.v1": ({ pseudonym, eventId, field, ground, reference, openedBy: by }) => ({
    ...about("Read", "A sealed field was opened", {
      pseudonym,
      by,
      data: { event: eventId, field, ground: nameOf(AccessGroundSchema, ground), reference: said(reference) },
    }),
    severity: "Medium",
  }),
} satisfies Partial<Tellers>;
