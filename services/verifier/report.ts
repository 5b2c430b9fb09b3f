import { type Timestamp, timestampFromMs } from "@bufbuild/protobuf/wkt";
import type {
  CachedUse,
  CompletedUse,
  ReportUsesRequest,
} from "@curfew/contracts/gen/curfew/verifier/v1/verifier_pb.ts";
import type { OutRecord } from "@curfew/event-log/bus.ts";
import { RpcError } from "@curfew/rpc/errors.ts";
import type { CallContext } from "@curfew/rpc/service-definition.ts";
import { detailsOf } from "./facts.ts";
import type { Owner, People } from "./people.ts";
import { impossibility, isCachedUseKnown, isCompletedUseKnown, unknownToken } from "./plausible.ts";
import type { Fact } from "./recorder.ts";
import type { RequestCheck } from "./requests.ts";
import { freshWaitMs, type Verifier } from "./verify.ts";

/**
 * Uses that an SDK answered by itself, and what accesses touched, become facts as they are reported, in the name of the calling
 * resource service; people and addresses become pseudonyms first. Answers once all is durable; repeating it repeats the same ce_ids.
 */
export const reportUses = (
  verifier: Verifier,
  request: ReportUsesRequest,
  check: RequestCheck,
  ctx: CallContext,
): Promise<Acknowledged> =>
  // No `await` here: the request would be held while its facts become durable, and be copied by every collection of garbage till then.
  factsOf(verifier, request, check, ctx).then(({ facts, acknowledgedSequence }) =>
    verifier.recorder.record(facts, ctx).then(() => ({ acknowledgedSequence })),
  );

interface Acknowledged {
  readonly acknowledgedSequence: bigint;
}

const factsOf = async (
  verifier: Verifier,
  request: ReportUsesRequest,
  check: RequestCheck,
  ctx: CallContext,
): Promise<Acknowledged & { readonly facts: readonly Fact[] }> => {
  const { cachedUses, completedUses } = request;
  const addresses = cachedUses.map((use, i) => check.cachedUse(use, i));
  for (let i = 0; i < completedUses.length; i += 1) check.completedUse(completedUses[i] as CompletedUse, i);
  check.assertRight();
  await readWhatIsNamed(verifier, request);
  checkPossible(verifier, request, check, ctx);
  check.assertRight();
  // By the use or part that touched them.
  const people = new Map<CachedUse | CompletedUse, string[]>();
  for (const [i, use] of cachedUses.entries())
    if (use.ended && use.ended.people.length > 0)
      people.set(use, await pseudonymsOf(verifier.people, use.ended.people, `cached_uses[${i}].ended.people`, check));
  for (const [i, part] of completedUses.entries())
    if (part.people.length > 0)
      people.set(part, await pseudonymsOf(verifier.people, part.people, `completed_uses[${i}].people`, check));
  check.assertRight();
  const owners: (Owner | undefined)[] = [];
  for (const [i, { use }] of cachedUses.entries())
    owners.push(use && addresses[i] ? await verifier.people.ownerOf(use, addresses[i]) : undefined);
  // Nothing is awaited between the records: a promise for each cost more than the record.
  const facts: Fact[] = [];
  for (const [i, use] of cachedUses.entries())
    facts.push({
      record: cachedRecord(verifier, use, owners[i], people.get(use) ?? nobody, request.instance, ctx),
    });
  const completedAt = timestampFromMs(verifier.clock.now());
  for (const part of completedUses)
    facts.push({ record: completedRecord(verifier, part, completedAt, people.get(part) ?? nobody, ctx) });
  let acknowledgedSequence = 0n;
  for (const { instanceSequence } of cachedUses)
    if (instanceSequence > acknowledgedSequence) acknowledgedSequence = instanceSequence;
  return { facts, acknowledgedSequence };
};

const nobody: string[] = [];

/** Another replica may have answered first and be ahead: only what is unknown after all that is on the topic was read does not exist. */
const readWhatIsNamed = async (verifier: Verifier, request: ReportUsesRequest): Promise<void> => {
  const { fold, feed, clock } = verifier;
  const isRead = () => {
    const nowMs = clock.now();
    return (
      request.cachedUses.every((use) => isCachedUseKnown(fold, use)) &&
      request.completedUses.every((use) => isCompletedUseKnown(fold, use, nowMs))
    );
  };
  if (isRead() || (await feed.reached(await verifier.tokensEnd(), freshWaitMs)) || isRead()) return;
  throw new RpcError({
    status: "UNAVAILABLE",
    reason: "NOT_CAUGHT_UP",
    message: "this verifier has not read of a token that is named yet; ask another, or retry",
    retryDelayMs: 250,
  });
};

const checkPossible = (
  { fold, clock }: Verifier,
  { cachedUses, completedUses }: ReportUsesRequest,
  check: RequestCheck,
  ctx: CallContext,
): void => {
  const nowMs = clock.now();
  for (const [i, use] of cachedUses.entries()) {
    const found = impossibility(fold, use, ctx.caller.name, nowMs);
    if (found) check.violation(`cached_uses[${i}].${found.field}`, found.reason, found.description);
  }
  for (const [i, use] of completedUses.entries()) {
    if (isCompletedUseKnown(fold, use, nowMs)) continue;
    const { field, reason, description } = unknownToken;
    check.violation(`completed_uses[${i}].${field}`, reason, description);
  }
};

/** Each person once: the same one named twice in a part is one person touched. */
const pseudonymsOf = async (
  { pseudonymsOf: swap }: People,
  people: CompletedUse["people"],
  at: string,
  check: RequestCheck,
): Promise<string[]> => {
  try {
    return [...new Set(await swap(people))];
  } catch (error) {
    if ((error as Error).name !== "InvalidIdentity") throw error;
    // Its message names the place in the batch, never the value.
    check.violation(at, "INVALID_IDENTIFIER", (error as Error).message);
    return [];
  }
};

const cachedRecord = (
  { fold, facts }: Verifier,
  cached: CachedUse,
  owner: Owner | undefined,
  people: string[],
  instance: string,
  ctx: CallContext,
): OutRecord => {
  const { use, useId, decidedAt, tokenId, generation, reason, instanceSequence, ended } = cached;
  return facts.decided({
    useId: useId.toLowerCase(),
    decidedAt,
    tokenId,
    generation,
    // Of a denial the token may be unknown.
    subject: fold.token(tokenId)?.subject?.value ?? "",
    resourceService: ctx.caller.name,
    instance,
    reason,
    details: use && detailsOf(use),
    source: use && facts.sourceOf(use, useId.toLowerCase(), owner),
    instanceSequence,
    ended: ended && { outcome: ended.outcome, records: ended.records, people, unnamedPeople: ended.unnamedPeople },
  });
};

const completedRecord = (
  { facts }: Verifier,
  completed: CompletedUse,
  completedAt: Timestamp,
  people: string[],
  ctx: CallContext,
): OutRecord => {
  const { useId, tokenId, outcome, records, unnamedPeople, part, parts } = completed;
  return facts.completed({
    useId: useId.toLowerCase(),
    completedAt,
    tokenId,
    outcome,
    records,
    people,
    unnamedPeople,
    part,
    parts,
    resourceService: ctx.caller.name,
  });
};
