import { Delivery } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import { Rejection } from "@curfew/decider/decider.ts";
import type { Tenure } from "@curfew/event-log/lease.ts";
import type { Outbox } from "@curfew/event-log/outbox.ts";
import type { CommitDoc } from "@curfew/event-log/streams.ts";
import type { Keyring } from "@curfew/keyring/keyring.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import type { Log } from "@curfew/runtime/log.ts";
import type { Random } from "@curfew/runtime/random.ts";
import { span, withSpan } from "@curfew/runtime/telemetry.ts";
import { keyStream } from "./domain/records.ts";
import { nextByTime } from "./domain/token-state.ts";
import { tokenStream } from "./domain.ts";
import type { IssuerAggregates } from "./grpc.ts";
import type { openIdentityImport } from "./identities.ts";
import type { PolicyBook } from "./policy-book.ts";
import type { TokenBook, TokenEntry } from "./projections.ts";
import { mint } from "./secrets.ts";

/**
 * What happens to tokens by the clock: rotation, the report of an uncollected secret, expiry; and sealed secrets that nobody may have
 * any more are cleared away. All of it follows from the log, so whoever takes the lease does at once what is overdue; doing it twice does
 * no harm.
 */

export interface ReactionParts {
  readonly aggregates: IssuerAggregates;
  readonly outbox: Outbox;
  readonly policyBook: PolicyBook;
  readonly book: TokenBook;
  readonly identityImport: ReturnType<typeof openIdentityImport> | undefined;
  readonly keyring: Keyring;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
  /** The issuer's own SPIFFE ID. */
  readonly self: string;
}

const lookEveryMs = 1_000;
const identitiesEveryMs = 2_000;
const sweepEveryMs = 30_000;
/** Done, and not yet seen on the log; or failed. */
const againAfterMs = 30_000;
const maxDueAtOnce = 1_000;
const maxParallel = 16;
const sweepPage = 500;

const rotate = async ({ aggregates, policyBook, keyring, random, clock, self }: ReactionParts, entry: TokenEntry) => {
  const { state } = entry;
  if (state.status === "none") return;
  const key = await aggregates.keys.load(keyStream(state.subject));
  const secret = mint(keyring, random, key.version > 0 ? key : undefined);
  await policyBook.judge((policies) =>
    aggregates.tokens.handle(
      tokenStream(entry.tokenId),
      {
        type: "RotateToken",
        overlapMs: undefined,
        delivery: Delivery.UNSPECIFIED,
        policies,
        secret,
        revoked: entry.revokedMs !== undefined,
        actor: self,
        request: undefined,
        nowMs: clock.now(),
      },
      { attach: secret.attach },
    ),
  );
};

/** Does the next thing; answers when to look at the token again, unless the log says something before. */
const act = async (parts: ReactionParts, entry: TokenEntry): Promise<number> => {
  const { aggregates, clock, log } = parts;
  const { state, tokenId, lastUsedMs } = entry;
  const nowMs = clock.now();
  if (state.status !== "issued") return nowMs + againAfterMs;
  const { expiresMs } = state.generation;
  const stream = tokenStream(tokenId);
  const what = nowMs >= expiresMs ? "expire" : nextByTime(state).what;
  try {
    if (what === "rotate") await rotate(parts, entry);
    else if (what === "report") await aggregates.tokens.handle(stream, { type: "ReportUncollected", nowMs });
    else await aggregates.tokens.handle(stream, { type: "ExpireToken", lastUsedMs, nowMs });
  } catch (error) {
    if (!(error instanceof Rejection)) throw error;
    log.warn({ tokenId, code: error.code }, "a token is not rotated any more: it will expire");
    return expiresMs;
  }
  return Math.min(nowMs + againAfterMs, Math.max(expiresMs, nowMs + lookEveryMs));
};

/** Several at a time, each on its own: one that fails is tried again later. */
const actOnDue = async (parts: ReactionParts, signal: AbortSignal) => {
  const { book, clock, log } = parts;
  const due = book.takeDue(clock.now(), maxDueAtOnce);
  const worker = async () => {
    for (let entry = due.pop(); entry; entry = due.pop()) {
      const current = entry;
      let atMs = clock.now() + lookEveryMs;
      try {
        if (!signal.aborted) atMs = await withSpan(span.reaction("token-time"), {}, () => act(parts, current));
      } catch (err) {
        log.warn({ err, tokenId: current.tokenId }, "what was due for a token failed; trying again");
      }
      book.postpone(current.tokenId, atMs);
    }
  };
  await Promise.all(Array.from({ length: Math.min(maxParallel, due.length) }, worker));
};

/** Whether the sealed secret beside this commit can still be collected, as far as the log was read. */
const isWanted = (book: TokenBook, doc: CommitDoc, nowMs: number): boolean => {
  const entry = book.get(doc.stream.slice(tokenStream("").length));
  if (!entry || entry.sequence < doc.version) return doc.unpublished === true || entry !== undefined;
  if (entry.revokedMs !== undefined || entry.state.status !== "issued") return false;
  const { version, secret, expiresMs } = entry.state.generation;
  return version === doc.version && secret !== "collected" && nowMs < expiresMs;
};

/** Clears what a crash between ConfirmSecret's event and its clearing left, and what rotation, expiry and revocation made useless. */
const sweep = async ({ outbox, book, clock }: ReactionParts, signal: AbortSignal) => {
  const { commits } = outbox.streams;
  for (let from = tokenStream(""); !signal.aborted; ) {
    const page = await commits.find({ where: { held: true }, from, limit: sweepPage });
    for (const doc of page) if (!isWanted(book, doc, clock.now())) await commits.unset(doc._id, "attached", "held");
    const last = page.at(-1);
    if (!last || page.length < sweepPage) return;
    from = `${last._id}!`;
  }
};

/** What the lease on reactions runs. */
export const reactionsWork =
  (parts: ReactionParts) =>
  async ({ signal }: Tenure): Promise<void> => {
    const { clock, log } = parts;
    const every = async (ms: number, what: string, work: () => Promise<void>) => {
      while (!signal.aborted) {
        await work().catch((err: unknown) => log.warn({ err, what }, "a reaction failed; trying again"));
        await clock.sleep(ms, signal);
      }
    };
    await Promise.all([
      every(lookEveryMs, "tokens", () => actOnDue(parts, signal)),
      every(sweepEveryMs, "sealed secrets", () => sweep(parts, signal)),
      every(identitiesEveryMs, "identities", async () => await parts.identityImport?.scan()),
    ]);
  };
