import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { ErasureState } from "@curfew/contracts/gen/curfew/auditor/v1/data_subjects_pb.ts";
import { backupsGoneMs, type ErasureProgress, type SubjectState } from "./domain/data-subject.ts";

/** How a person's holds and erasure are answered. Pure. */
const states = {
  requested: ErasureState.REQUESTED,
  destroyed: ErasureState.DESTROYED,
  propagated: ErasureState.PROPAGATED,
  completed: ErasureState.COMPLETED,
} as const;

const dateOf = (ms: number) => new Date(ms).toISOString();

type Begun = Exclude<ErasureProgress, { status: "none" }>;
/** `keyDestroyedMs`: when the key of its epoch went; undefined: it is there. */
type KeyDestroyed = number | undefined;

const times = (erasure: Exclude<Begun, { status: "requested" }>, keyDestroyedMs: KeyDestroyed) => {
  const keyGoneMs = keyDestroyedMs ?? erasure.keyGoneByMs;
  return { keyGoneMs, backupsMs: backupsGoneMs(erasure.backupDays, keyGoneMs) };
};

/** What can still be read, by whom, until when. */
const residueOf = (erasure: Begun, keyDestroyedMs: KeyDestroyed): string[] => {
  if (erasure.status === "completed") return [];
  if (erasure.status === "requested") return ["key and mapping, in the personal store: about to be destroyed"];
  const { keyGoneMs, backupsMs } = times(erasure, keyDestroyedMs);
  const memory =
    erasure.status === "destroyed"
      ? ["memory of the consumers that have not acknowledged: 5 minutes after they read it, or until they end"]
      : [];
  const wrapped =
    keyDestroyedMs === undefined
      ? [
          `write-ahead log, operations log and free pages of the personal store, wrapped under the key of epoch ${erasure.epoch}: until ${dateOf(keyGoneMs)}`,
        ]
      : [];
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

const erasureOf = (erasure: Begun, keyDestroyedMs: KeyDestroyed) => {
  const asked = { state: states[erasure.status], requestedAt: timestampFromMs(erasure.requestedAtMs) };
  const residue = residueOf(erasure, keyDestroyedMs);
  if (erasure.status === "requested") return { ...asked, residue };
  const { keyGoneMs, backupsMs } = times(erasure, keyDestroyedMs);
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

export const subjectView = (
  pseudonym: string,
  { holds, erasure }: SubjectState,
  keyDestroyedMs: (epoch: number) => number | undefined,
) => ({
  pseudonym,
  holds: holds.map(({ placedAtMs, ...hold }) => ({ ...hold, placedAt: timestampFromMs(placedAtMs) })),
  ...(erasure.status !== "none" && {
    erasure: erasureOf(erasure, erasure.status === "requested" ? undefined : keyDestroyedMs(erasure.epoch)),
  }),
});
