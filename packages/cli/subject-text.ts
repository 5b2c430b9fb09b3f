import { type Timestamp, timestampDate } from "@bufbuild/protobuf/wkt";
import {
  type Erasure,
  ErasureState,
  type LegalHold,
} from "@curfew/contracts/gen/curfew/auditor/v1/data_subjects_pb.ts";

/** Holds and erasures in words. */
export const iso = (at: Timestamp | undefined): string => (at ? timestampDate(at).toISOString() : "");

const grounds: Readonly<Record<number, string>> = {
  1: "a legal obligation, Art. 17(3)(b)",
  2: "legal claims, Art. 17(3)(e)",
};

export const holdOf = ({ holdId: hold, ground, reference, placedAt }: LegalHold) => ({
  hold,
  ground: grounds[ground] ?? String(ground),
  reference,
  since: iso(placedAt),
});

const stateTexts: Readonly<Record<number, string>> = {
  [ErasureState.REQUESTED]: "asked for; key and mapping are about to be destroyed",
  [ErasureState.DESTROYED]:
    "key and mapping are destroyed; instances that may have them in memory have not all acknowledged",
  [ErasureState.PROPAGATED]: "gone from every memory; what is left is readable until the dates below",
  [ErasureState.COMPLETED]: "rendered unreadable: the epoch's key and the last backup are gone",
};

const consumerText = ({ instance, acknowledged, lapsed }: Erasure["consumers"][number]): string => {
  const silent = lapsed ? "ended without a word" : "has not acknowledged yet";
  return `${instance}: ${acknowledged ? "acknowledged" : silent}`;
};

/** A line a fact; none where no erasure was asked for. */
export const erasureLines = (erasure: Erasure | undefined): string[] => {
  if (!erasure) return [];
  const { state, requestedAt, erasedAt, known, consumers, keyGoneBy, backupsGoneBy, residue } = erasure;
  const dates = erasedAt
    ? [
        `key and mapping destroyed: ${iso(erasedAt)}`,
        ...(known ? [] : ["nobody was known by this pseudonym: check it"]),
        `epoch's key gone by: ${iso(keyGoneBy)}`,
        `last backup gone by: ${iso(backupsGoneBy)}`,
      ]
    : [];
  return [
    stateTexts[state] ?? String(state),
    `asked for: ${iso(requestedAt)}`,
    ...dates,
    ...consumers.map(consumerText),
    ...residue.map((text) => `still readable: ${text}`),
  ];
};
