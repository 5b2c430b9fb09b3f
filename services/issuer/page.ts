import { createHash } from "node:crypto";

/** Pages of a list by id (AIP-158). A page token only says where to go on: what may be seen is asked anew each time. */

const defaultPageSize = 50;
const maxPageSize = 1_000;

export const pageSizeOf = (asked: number): number => Math.min(asked === 0 ? defaultPageSize : asked, maxPageSize);

const ownerMark = (caller: string): string => createHash("sha256").update(caller).digest("base64url").slice(0, 16);

export const pageTokenOf = (lastId: string, caller: string): string =>
  Buffer.from(`${ownerMark(caller)} ${lastId}`).toString("base64url");

/** The id to go on after, "" for the first page; undefined for what is no page token of this caller's. */
export const pageOf = (pageToken: string, caller: string): string | undefined => {
  if (pageToken === "") return "";
  const [mark, lastId, ...rest] = Buffer.from(pageToken, "base64url").toString().split(" ");
  return mark === ownerMark(caller) && lastId && rest.length === 0 ? lastId : undefined;
};
