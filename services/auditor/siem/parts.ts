import type { DescEnum } from "@bufbuild/protobuf";
import type { Duration, Timestamp } from "@bufbuild/protobuf/wkt";
import { timestampMs } from "@bufbuild/protobuf/wkt";
import type { Actor } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";

/** Objects of OCSF that several event types have. What was not said is undefined, and JSON leaves it out. */

/** What was done, rather than tried. */
export const done = { status_id: 1, status: "Success" } as const;

/** protobuf says "" for a text that was not said. */
export const said = (text: string | undefined): string | undefined => (text === "" ? undefined : text);

/** Of an enum's value, without the prefix; its number where this auditor does not know it. */
export const nameOf = (of: DescEnum, value: number): string => of.value[value]?.localName ?? String(value);

export const msOf = (time: Timestamp | undefined): number | undefined => time && timestampMs(time);
export const durationMs = (span: Duration | undefined): number | undefined =>
  span && Number(span.seconds) * 1_000 + span.nanos / 1_000_000;
/** Counts past 2^53 keep their digits. */
export const countOf = (count: bigint): number | string =>
  count <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(count) : String(count);

/** The holder of a certificate, and the token that it presented: a person goes by a pseudonym. */
export const userOf = (spiffeId: string, credential?: string) => {
  const isPerson = /^spiffe:\/\/[^/]+\/person\//.test(spiffeId);
  return {
    ...(spiffeId === "" ? { name: "unknown" } : { uid: spiffeId }),
    type_id: spiffeId === "" ? 0 : isPerson ? 1 : 4,
    type: spiffeId === "" ? "Unknown" : isPerson ? "User" : "Service",
    credential_uid: said(credential),
  };
};

export const actorOf = (actor: Actor | undefined) =>
  actor && actor.spiffeId !== "" ? { user: userOf(actor.spiffeId) } : undefined;

/** An entity of a kind that OCSF has no number for. */
export const entityOf = (type: string, uid: string, data?: object, version?: number) => ({
  type_id: 99,
  type,
  uid,
  version: version ? String(version) : undefined,
  data,
});

export const tokenOf = (tokenId: string, data?: object, generation?: number) =>
  entityOf("API token", tokenId, data, generation);
