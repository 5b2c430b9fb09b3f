import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { TokenSchema } from "@curfew/contracts/gen/curfew/issuer/v1/issuer_pb.ts";
import type { Outbox } from "@curfew/event-log/outbox.ts";
import { type CommitDoc, commitId } from "@curfew/event-log/streams.ts";
import { RpcError } from "@curfew/rpc/errors.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import { reject } from "./domain/requests.ts";
import type { ExpiredToken, IssuedToken, TokenState } from "./domain/token-state.ts";
import type { PolicyProblem } from "./policy-document.ts";
import type { TokenBook } from "./projections.ts";

/** What the handlers' answers have in common: tokens as others may see them, and where a command's record stands. */

export interface AnswerParts {
  readonly outbox: Outbox;
  readonly book: TokenBook;
  readonly clock: Clock;
  /** Called with each offset that a command of this replica was published at. */
  readonly onPublished: (offset: number) => void;
}

export type Known = IssuedToken | ExpiredToken;

const maxFieldViolations = 50;

export const invalid = (reason: string, message: string, problems: readonly PolicyProblem[] = []) =>
  new RpcError({
    status: "INVALID_ARGUMENT",
    reason,
    message:
      problems.length > 0 ? `${message}: ${problems.map((p) => `${p.field}: ${p.description}`).join("; ")}` : message,
    fieldViolations: problems.slice(0, maxFieldViolations).map((problem) => ({ ...problem, reason: "" })),
  });

export const issued = (state: TokenState): Known =>
  state.status === "none" ? reject("TOKEN_NOT_FOUND", "there is no such token") : state;

/** Whether the commits of commands are on the topic, and where. */
export const openPublications = ({ outbox, book, onPublished }: AnswerParts) => {
  const at = (offset: number) => ({ topic: outbox.topic, partition: 0, offset: BigInt(offset) });
  return async (stream: string, version: number, commit: CommitDoc | undefined) => {
    const doc = commit ?? (await outbox.streams.commits.get(commitId(stream, version)));
    if (doc?.unpublished) {
      const offset = await outbox.relay.published(doc);
      if (offset === undefined) return { published: false };
      onPublished(offset);
      return { published: true, position: at(offset) };
    }
    // Published before this call, by whom we cannot ask: a later record of the same stream is at least as far.
    const read = book.get(stream.slice(stream.indexOf("/") + 1));
    return read && read.sequence >= version ? { published: true, position: at(read.offset) } : { published: true };
  };
};

export const openViews = ({ book, clock }: AnswerParts) => {
  const stateName = (token: Known): string => {
    if (book.get(token.tokenId)?.revokedMs !== undefined) return "revoked";
    return token.status === "expired" || clock.now() >= token.generation.expiresMs ? "expired" : "live";
  };
  return (token: Known): MessageInitShape<typeof TokenSchema> => {
    const lastUsedMs = book.get(token.tokenId)?.lastUsedMs;
    return {
      tokenId: token.tokenId,
      subject: token.subject,
      grant: token.grant,
      generation: token.generation.number,
      expiresAt: timestampFromMs(token.generation.expiresMs),
      lineageExpiresAt: timestampFromMs(token.lineageExpiresMs),
      state: stateName(token),
      policy: token.policy,
      policyVersion: token.policyVersion,
      createTime: timestampFromMs(token.issuedMs),
      ...(lastUsedMs !== undefined && { lastUsedAt: timestampFromMs(lastUsedMs) }),
    };
  };
};
