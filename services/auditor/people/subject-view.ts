import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { ErasureState } from "@curfew/contracts/gen/curfew/auditor/v1/data_subjects_pb.ts";
import { backupsGoneMs, type ErasureProgress, type SubjectState } from "../domain/data-subject.ts";

/** How a person's holds and erasure are answered. Pure. */
const states = {
  requested: ErasureState.REQUESTED,
  destroyed: ErasureState.DESTROYED,
  propagated: ErasureState.PROPAGATED,
  completed: ErasureState.COMPLETED,
} as const;

const dateOf = (ms: number) => new Date(ms).toISOString();

type Begun = Exclude<ErasureProgress, { status: "none" }>;
export interface Residue {
  /** When the key of an epoch went; undefined: it is there. */
  keyDestroyedMs(epoch: number): number | undefined;
  /** For how long backups are kept now. */
  readonly backupDays: number;
  readonly nowMs: number;
}

const times = (erasure: Exclude<Begun, { status: "requested" }>, { keyDestroyedMs, backupDays, nowMs }: Residue) => {
  if (erasure.status === "completed")
    return { isKeyGone: true, keyGoneMs: erasure.keyDestroyedAtMs, backupsMs: erasure.backupsGoneAtMs };
  const goneMs = keyDestroyedMs(erasure.epoch);
  // One that is there when it should be gone is not gone before now.
  const keyGoneMs = goneMs ?? Math.max(erasure.keyGoneByMs, nowMs);
  const backupsMs = backupsGoneMs(Math.max(erasure.backupDays, backupDays), keyGoneMs);
  return { isKeyGone: goneMs !== undefined, keyGoneMs, backupsMs };
};

/** What can still be read, by whom, until when. */
const residueOf = (erasure: Begun, left: Residue): string[] => {
  if (erasure.status === "completed") return [];
  if (erasure.status === "requested") return ["key and mapping, in the personal store: about to be destroyed"];
  const { isKeyGone, keyGoneMs, backupsMs } = times(erasure, left);
  const memory =
    erasure.status === "destroyed"
      ? ["memory of the consumers that have not acknowledged: 5 minutes after they read it, or until they end"]
      : [];
  const wrapped = isKeyGone
    ? []
    : [
        `write-ahead log, operations log and free pages of the personal store, wrapped under the key of epoch ${erasure.epoch}: until ${dateOf(keyGoneMs)}`,
      ];
  return [
    ...memory,
    ...wrapped,
    `backups of that store together with backups of its keys directory: until ${dateOf(backupsMs)}`,
  ];
};

const nothingHeard: { readonly acknowledged: readonly string[]; readonly lapsed: readonly string[] } = {
  acknowledged: [],
  lapsed: [],
};

const erasureOf = (erasure: Begun, left: Residue) => {
  const asked = { state: states[erasure.status], requestedAt: timestampFromMs(erasure.requestedAtMs) };
  const residue = residueOf(erasure, left);
  if (erasure.status === "requested") return { ...asked, residue };
  const { keyGoneMs, backupsMs } = times(erasure, left);
  const { acknowledged, lapsed } = erasure.status === "destroyed" ? nothingHeard : erasure;
  return {
    ...asked,
    erasedAt: timestampFromMs(erasure.erasedAtMs),
    known: erasure.known,
    consumers: erasure.consumers.map((instance) => ({
      instance,
      acknowledged: acknowledged.includes(instance),
      lapsed: lapsed.includes(instance),
    })),
    keyGoneBy: timestampFromMs(keyGoneMs),
    backupsGoneBy: timestampFromMs(backupsMs),
    residue,
  };
};

export const subjectView = (pseudonym: string, { holds, erasure }: SubjectState, left: Residue) => ({
  pseudonym,
  holds: holds.map(({ placedAtMs, ...hold }) => ({ ...hold, placedAt: timestampFromMs(placedAtMs) })),
  ...(erasure.status !== "none" && { erasure: erasureOf(erasure, left) }),
});
