import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { Watcher } from "@curfew/client/watch.ts";
import { EvidenceMode } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import { Reason } from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import type {
  UseRequest,
  VerifyTokenRequest,
  VerifyTokenResponseSchema,
} from "@curfew/contracts/gen/curfew/verifier/v1/verifier_pb.ts";
import type { Keyring } from "@curfew/keyring/keyring.ts";
import type { Address } from "@curfew/personal-data/address.ts";
import type { Feed } from "@curfew/projection/feed.ts";
import { type AtLeast, past } from "@curfew/projection/progress.ts";
import type { CallContext } from "@curfew/rpc/service-definition.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import { digest, secretHash } from "@curfew/token-format/digest.ts";
import { parseSecret } from "@curfew/token-format/secret.ts";
import { type Decision, decide, lifeOf, needsFreshness } from "./domain.ts";
import { detailsOf, type Facts } from "./facts.ts";
import type { Owner, People } from "./people.ts";
import { digestKey, endOf, type Fold, type Generation } from "./projections.ts";
import type { RecentAnswers } from "./recent-answers.ts";
import type { Fact, Recorder } from "./recorder.ts";
import type { UnknownAttempts } from "./unknown-attempts.ts";

/** What the handlers work with once the log is read. */
export interface Verifier {
  readonly fold: Fold;
  readonly feed: Feed;
  readonly watcher: Watcher;
  /** Where the topic of tokens ends now. Rejects with BusUnavailable. */
  readonly tokensEnd: () => Promise<readonly AtLeast[]>;
  /** Waits at most so many ms until this replica is live. */
  readonly liveWithin: (waitMs: number) => Promise<boolean>;
  readonly recentAnswers: RecentAnswers;
  readonly recorder: Recorder;
  readonly facts: Facts;
  readonly unknownAttempts: UnknownAttempts;
  readonly people: People;
  readonly keyring: Keyring;
  readonly instance: string;
  readonly clock: Clock;
}

/** A request whose fields have been checked. */
export interface AskedUse {
  readonly request: VerifyTokenRequest;
  readonly use: UseRequest;
  readonly address: Address | undefined;
}

type Response = MessageInitShape<typeof VerifyTokenResponseSchema>;

/** An answer on its way: given once `fact` is durable, and looked at again then. */
interface Pending {
  readonly decision: Decision;
  readonly useId: string;
  readonly fact: Fact | undefined;
}

/** How long a request waits for this replica to become fresh, or to have read what it names. */
export const freshWaitMs = 250;

/** Answers uses of one call: each on its own, all made durable together. */
export const verifyUses = async (
  verifier: Verifier,
  asked: readonly AskedUse[],
  ctx: CallContext,
): Promise<Response[]> => {
  const deciding = asked.map((one) => {
    try {
      return decideUse(verifier, one, ctx);
    } catch (error) {
      // Others may be on their way: thrown here, nobody would wait for them.
      return Promise.reject(error);
    }
  });
  const pending = deciding.some(isPromise) ? await Promise.all(deciding) : (deciding as Pending[]);
  const facts: Fact[] = [];
  for (const { fact } of pending) if (fact) facts.push(fact);
  if (facts.length > 0) await verifier.recorder.record(facts, ctx);
  // Synchronous from here to the reply: whatever is acknowledged to `revocation` has been looked at.
  return pending.map((one) => answer(verifier, one, ctx));
};

const isPromise = (value: unknown): boolean => value instanceof Promise;

/** At once where nothing has to be waited for, as nearly always: a promise for each step costs more than the decision. */
const decideUse = (verifier: Verifier, asked: AskedUse, ctx: CallContext): Pending | Promise<Pending> => {
  const { request, address } = asked;
  const hash = hashOf(request);
  const decision = hash ? decideNow(verifier, asked, hash, ctx) : malformed;
  const isFinal =
    !hash || !needsFreshness(decision.reason) || (request.atLeast.length === 0 && verifier.watcher.isLive());
  if (!isFinal)
    return decideFresh(verifier, asked, hash, ctx).then((fresh) => withAddress(verifier, asked, fresh, ctx));
  return address ? withAddress(verifier, asked, decision, ctx) : recorded(verifier, asked, decision, undefined, ctx);
};

const malformed: Decision = { reason: Reason.MALFORMED, generation: undefined };

const isUnknown = ({ reason }: Decision): boolean => reason === Reason.MALFORMED || reason === Reason.UNKNOWN;

const withAddress = async (verifier: Verifier, asked: AskedUse, decision: Decision, ctx: CallContext) => {
  const owner = isUnknown(decision) ? undefined : await verifier.people.ownerOf(asked.use, asked.address);
  return recorded(verifier, asked, decision, owner, ctx);
};

const recorded = (
  { facts, instance, clock, unknownAttempts }: Verifier,
  { use, address }: AskedUse,
  decision: Decision,
  owner: Owner | undefined,
  ctx: CallContext,
): Pending => {
  const { reason, generation } = decision;
  if (isUnknown(decision)) {
    unknownAttempts.add(ctx.caller.name, reason, address?.network ?? "", clock.now());
    return { decision, useId: "", fact: undefined };
  }
  const useId = facts.newUseId();
  const tokenId = generation?.token.id ?? "";
  const resourceService = ctx.caller.name;
  const record = facts.decided({
    useId,
    decidedAt: timestampFromMs(clock.now()),
    tokenId,
    generation: generation?.number ?? 0,
    subject: generation?.token.subject?.value ?? "",
    resourceService,
    instance,
    reason,
    details: detailsOf(use),
    source: facts.sourceOf(use, useId, owner),
  });
  const { traceparent } = record.headers;
  const unanswered = () => facts.unanswered({ useId, tokenId, resourceService, traceparent });
  return { decision, useId, fact: reason === Reason.OK ? { record, unanswered } : { record } };
};

/** Where more of the log could change the decision, only by a fresh verifier that has read what is asked. */
const decideFresh = async (
  verifier: Verifier,
  asked: AskedUse,
  hash: Uint8Array,
  ctx: CallContext,
): Promise<Decision> => {
  const { feed, clock } = verifier;
  const untilMs = Math.min(clock.now() + freshWaitMs, ctx.deadlineMs ?? Number.POSITIVE_INFINITY);
  const waitMs = () => Math.max(0, untilMs - clock.now());
  const has = await feed.reached(past(asked.request.atLeast), waitMs());
  const isFresh = has && (await verifier.liveWithin(waitMs()));
  const decision = decideNow(verifier, asked, hash, ctx);
  return isFresh || !needsFreshness(decision.reason) ? decision : { ...decision, reason: Reason.STALE_VERIFIER };
};

const decideNow = (verifier: Verifier, { use }: AskedUse, hash: Uint8Array, { caller }: CallContext): Decision => {
  const { fold, clock } = verifier;
  const { scope, resource, purpose, dataCategories, presenterThumbprint } = use;
  const intended = { scope, resource, purpose, dataCategories, audience: caller.name, presenterThumbprint };
  return decide(fold, find(verifier, hash), intended, clock.now());
};

/** Waits for liveness on behalf of all callers at once; answers whether it is live now. */
export const openLiveWait = (watcher: Watcher, clock: Clock): ((waitMs: number) => Promise<boolean>) => {
  let live: Promise<void> | undefined;
  return async (waitMs) => {
    if (watcher.isLive()) return true;
    live ??= watcher
      .whenLive()
      .catch(() => undefined)
      .finally(() => {
        live = undefined;
      });
    const over = new AbortController();
    await Promise.race([live, clock.sleep(waitMs, over.signal)]);
    over.abort();
    return watcher.isLive();
  };
};

/** Undefined for a secret that is not of our format: neither hashed nor looked up. */
const hashOf = ({ credential }: VerifyTokenRequest): Uint8Array | undefined => {
  if (credential.case === "secretSha256") return credential.value;
  return credential.case === "secret" && parseSecret(credential.value).ok ? secretHash(credential.value) : undefined;
};

/** Tries each live pepper, at most four. */
const find = ({ fold, keyring }: Verifier, hash: Uint8Array): Generation | undefined => {
  for (const { key } of keyring.peppers().all) {
    const found = fold.find(digestKey(digest(key, hash)));
    if (found) return found;
  }
  return undefined;
};

/** The last step: an answer that would allow is checked again, and where it may not be given, the log says so. */
const answer = (verifier: Verifier, { decision, useId }: Pending, ctx: CallContext): Response => {
  const { fold, watcher, recorder, facts, clock } = verifier;
  const { generation } = decision;
  const named = { useId, tokenId: generation?.token.id ?? "", subject: generation?.token.subject?.value ?? "" };
  if (decision.reason !== Reason.OK || !generation) return { ...named, allowed: false, reason: decision.reason };
  const life = lifeOf(fold, generation, clock.now());
  const reason = life === Reason.OK && !watcher.isLive() ? Reason.STALE_VERIFIER : life;
  if (reason === Reason.OK) return allowed(verifier, generation, named);
  // Only closing rejects it; the use then counts with its declared maximum.
  recorder
    .follow([
      facts.unanswered({ useId, tokenId: named.tokenId, resourceService: ctx.caller.name, traceparent: undefined }),
    ])
    .catch(() => undefined);
  return { ...named, allowed: false, reason };
};

const allowed = (
  { feed, recentAnswers }: Verifier,
  generation: Generation,
  named: { readonly useId: string; readonly tokenId: string; readonly subject: string },
): Response => {
  const { token, number, notBeforeMs } = generation;
  recentAnswers.allowed(token.id, token.ancestors);
  const expiresAt = timestampFromMs(endOf(generation));
  const grant = token.grant?.value;
  const base: Response = { ...named, allowed: true, reason: Reason.OK, expiresAt };
  if (!grant || grant.evidenceMode !== EvidenceMode.BATCHED) return base;
  const { tokenId, subject } = named;
  const cacheable = {
    tokenId,
    generation: number,
    subject,
    grant,
    notBefore: timestampFromMs(notBeforeMs),
    expiresAt,
    ancestors: [...token.ancestors],
    asOf: feed.positions(),
  };
  return { ...base, cacheable };
};
