import { hash, X509Certificate } from "node:crypto";
import type { Position } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import { Outcome, Reason } from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import type { VerifyTokenResponse } from "@curfew/contracts/gen/curfew/verifier/v1/verifier_pb.ts";
import { openChannel, type RpcChannel } from "@curfew/rpc/channel.ts";
import type { IdentitySource } from "@curfew/rpc/credentials.ts";
import { callerOfNames } from "@curfew/rpc/identity.ts";
import { type Clock, systemClock } from "@curfew/runtime/clock.ts";
import type { Log } from "@curfew/runtime/log.ts";
import { type Random, systemRandom, uuidV7 } from "@curfew/runtime/random.ts";
import { checkGrant } from "@curfew/token-format/grant.ts";
import { type AccessRequest, parseAccessRequest, type UseFields } from "./access-request.ts";
import { Denied, denialReason } from "./denied.ts";
import type { Instant } from "./freshness.ts";
import { OpenUse, type Use } from "./open-use.ts";
import { openQuestions } from "./questions.ts";
import { silentLog } from "./silent-log.ts";
import { type CachedToken, TokenCache } from "./token-cache.ts";
import { openUseReporter } from "./use-reporter.ts";
import { openWatcher } from "./watch.ts";

export interface LocalVerifierOptions {
  /** Addresses of verifiers, host:port; the next one is asked when one fails. */
  readonly verifier: readonly string[];
  /** Addresses of `revocation`. */
  readonly revocation: readonly string[];
  /** The resource service's own: its name is the audience. */
  readonly identity: IdentitySource;
  readonly caPem: string;
  readonly trustDomain: string;
  readonly clock?: Clock;
  readonly random?: Random;
  /** Default: silent. No secret and no person ever comes here. */
  readonly log?: Log;
  /** Tokens remembered; default 100,000. */
  readonly cacheEntries?: number;
  /** Uses that may wait to be reported; default 10,000. */
  readonly maxBufferedUses?: number;
}

export interface AuthorizeOptions {
  /** From now, until the access begins. Default 5 s. */
  readonly deadlineMs?: number;
  /** Gives up as long as the access has not begun. */
  readonly signal?: AbortSignal;
  /** Positions of records, as answered by mutations, that the verifier must have read; asks it even when the token is cached. */
  readonly atLeast?: readonly Position[];
}

/** The SDK of a resource service. */
export interface LocalVerifier {
  /**
   * Runs `access` if the bearer of `secret` may do what `request` says, and reports the use and what it touched. Rejects with Denied
   * (`access` did not run), InvalidRequest, the signal's reason, or whatever `access` threw.
   */
  authorize<T>(
    secret: string,
    request: AccessRequest,
    access: (use: Use) => T | Promise<T>,
    options?: AuthorizeOptions,
  ): Promise<T>;
  /** Whether answers may come from the cache at present; if not, every check goes to the verifier. */
  isLive(): boolean;
  whenLive(signal?: AbortSignal): Promise<void>;
  /** Denies from now on, reports what is left (at most 5 s) and says goodbye. Whether everything was reported. */
  close(): Promise<boolean>;
}

const defaultCacheEntries = 100_000;
const defaultDeadlineMs = 5_000;
const sweepEveryMs = 30_000;
/** Of one access, when answers come too late to be used: the first may have had to wait for a connection. */
const maxAsks = 4;
/** Uses decided by a clock that is further off are not this SDK's to decide: verifiers refuse reports from a future 5 min away. */
const maxClockOffsetMs = 60_000;
/** A reason of our own: without one, abort() makes an exception with a stack, the dearest part of a wait. */
const settled = "settled";

/** One call of `authorize`. */
interface Access<T> {
  readonly key: string;
  readonly use: UseFields;
  readonly run: (use: Use) => T | Promise<T>;
  readonly options: AuthorizeOptions;
}

/** Connects at once; works from the first moment, remotely until the watcher is live. Throws when the identity is not of the trust domain. */
export const openLocalVerifier = (options: LocalVerifierOptions): LocalVerifier => {
  const { identity, trustDomain } = options;
  const own = callerOfNames(new X509Certificate(identity.current().certPem).subjectAltName, trustDomain);
  if (own?.kind !== "workload") throw new TypeError(`the identity is no workload of trust domain ${trustDomain}`);
  return new SdkVerifier(options, own.name);
};

class SdkVerifier implements LocalVerifier {
  readonly #clock: Clock;
  readonly #random: Random;
  readonly #audience: string;
  readonly #channels: readonly RpcChannel[];
  readonly #cache: TokenCache;
  /** Controllers that the verifier has let this resource service report for. */
  readonly #controllers = new Set<string>();
  readonly #questions;
  readonly #reporter;
  readonly #watcher;
  readonly #log: Log;
  #isClockRight: boolean = true;
  #sweptAtMs = Number.NEGATIVE_INFINITY;
  #closed: Promise<boolean> | undefined;
  #closing: boolean = false;

  constructor(options: LocalVerifierOptions, audience: string) {
    const { identity, caPem, trustDomain, clock = systemClock, random = systemRandom, log = silentLog } = options;
    this.#clock = clock;
    this.#random = random;
    this.#log = log;
    this.#audience = audience;
    this.#cache = new TokenCache(options.cacheEntries ?? defaultCacheEntries);
    const channelTo = (expectService: string) => (address: string) =>
      openChannel({ address, identity, caPem, trustDomain, expectService, clock, random });
    const verifiers = options.verifier.map(channelTo("verifier"));
    const revocations = options.revocation.map(channelTo("revocation"));
    this.#channels = [...verifiers, ...revocations];
    const instance = `sdk-${uuidV7(clock.now(), random)}`;
    const { maxBufferedUses: maxBuffered } = options;
    const buffer = maxBuffered === undefined ? {} : { maxBuffered };
    this.#questions = openQuestions({ channels: verifiers, clock });
    this.#reporter = openUseReporter({ instance, channels: verifiers, clock, random, log, ...buffer });
    this.#watcher = openWatcher({
      channels: revocations,
      instance,
      reportsUses: true,
      clock,
      random,
      log,
      onEnded: (tokens) => this.#cache.end(tokens, this.#now()),
      onMark: (...mark) => this.#onMark(...mark),
      reported: () => this.#reporter.reported(),
    });
  }

  isLive(): boolean {
    return this.#watcher.isLive();
  }

  whenLive(signal?: AbortSignal): Promise<void> {
    return this.#watcher.whenLive(signal);
  }

  async authorize<T>(
    secret: string,
    request: AccessRequest,
    run: (use: Use) => T | Promise<T>,
    options: AuthorizeOptions = {},
  ): Promise<T> {
    const use = parseAccessRequest(request);
    const key = hash("sha256", secret, "base64url");
    options.signal?.throwIfAborted();
    if (!this.#reporter.hasRoom && !this.#closing) await this.#room(options);
    if (this.#closing) throw new Denied("CLOSED");
    // From here to the start of `run` nothing is awaited where the cache answers.
    const token = this.#trusted(key, use, options);
    return token ? this.#local({ key, use, run, options }, token) : this.#remote({ key, use, run, options });
  }

  close(): Promise<boolean> {
    this.#closed ??= this.#close();
    return this.#closed;
  }

  #now(): Instant {
    return { monotonicMs: this.#clock.monotonicMs(), wallMs: this.#clock.now() };
  }

  #onMark(positions: readonly Position[], first: boolean, clockOffsetMs: number): void {
    const now = this.#now();
    const isRight = Math.abs(clockOffsetMs) <= maxClockOffsetMs;
    if (this.#isClockRight && !isRight) this.#log.error({ clockOffsetMs }, "the clock is wrong: every use is asked");
    this.#isClockRight = isRight;
    this.#cache.marked(positions, first, now);
    if (now.monotonicMs - this.#sweptAtMs < sweepEveryMs) return;
    this.#sweptAtMs = now.monotonicMs;
    this.#cache.sweep(now);
  }

  async #room({ deadlineMs = defaultDeadlineMs, signal }: AuthorizeOptions): Promise<void> {
    const untilMs = this.#clock.monotonicMs() + deadlineMs;
    while (!this.#reporter.hasRoom && !this.#closing) {
      const woken = await this.#reporter.whenRoom(untilMs - this.#clock.monotonicMs(), signal);
      signal?.throwIfAborted();
      if (!woken) throw new Denied("EVIDENCE_BACKLOG", "", "uses wait to be reported; is a verifier reachable?");
    }
  }

  #trusted(key: string, use: UseFields, { atLeast = [] }: AuthorizeOptions): CachedToken | undefined {
    if (atLeast.length > 0 || !this.#controllers.has(use.controller) || !this.#isClockRight) return undefined;
    if (!this.#watcher.isLive()) return undefined;
    return this.#cache.find(key, this.#now()) ?? this.#cache.findRevoked(key);
  }

  #local<T>({ use, run }: Access<T>, { tokenId, generation, grant, revoked }: CachedToken): T | Promise<T> {
    const reason = revoked ? Reason.REVOKED : checkGrant(grant, { ...use, audience: this.#audience });
    const nowMs = this.#clock.now();
    const useId = uuidV7(nowMs, this.#random);
    const decision = this.#reporter.decided({ useId, decidedMs: nowMs, tokenId, generation, reason, use });
    if (reason !== Reason.OK) throw new Denied(denialReason(reason), tokenId);
    return this.#run(new OpenUse(this.#reporter, useId, tokenId, use, decision), run);
  }

  async #run<T>(use: OpenUse, run: (use: Use) => T | Promise<T>): Promise<T> {
    try {
      const result = await run(use);
      use.end(Outcome.COMPLETED);
      return result;
    } catch (error) {
      use.end(Outcome.FAILED);
      throw error;
    }
  }

  #remote<T>(access: Access<T>): Promise<T> {
    const { key, use, options } = access;
    const { atLeast = [], signal } = options;
    const secretSha256 = Buffer.from(key, "base64url");
    const request = { credential: { case: "secretSha256" as const, value: secretSha256 }, use, atLeast: [...atLeast] };
    return new Promise<T>((resolve, reject) => {
      const over = new AbortController();
      const giveUp = (error: unknown) => {
        over.abort(settled);
        signal?.removeEventListener("abort", onAbort);
        reject(error);
      };
      const onAbort = () => giveUp(signal?.reason);
      signal?.addEventListener("abort", onAbort);
      void this.#clock.sleep(options.deadlineMs ?? defaultDeadlineMs, over.signal).then(() => {
        if (!over.signal.aborted) giveUp(new Denied("VERIFIER_UNREACHABLE", "", "no answer within the deadline"));
      });
      const ask = (asksLeft: number) =>
        this.#questions.ask({
          request,
          failed: giveUp,
          answered: (response, sentAt) => {
            const verdict = this.#judge(access, response, sentAt, over.signal.aborted);
            if (verdict === "late" && asksLeft > 0) return ask(asksLeft - 1);
            if (verdict) return giveUp(verdict === "late" ? new Denied("STALE_VERIFIER", response.tokenId) : verdict);
            over.abort(settled);
            signal?.removeEventListener("abort", onAbort);
            resolve(this.#run(new OpenUse(this.#reporter, response.useId, response.tokenId, use), access.run));
          },
        });
      ask(maxAsks - 1);
    });
  }

  /**
   * The last look at a verifier's answer, in the turn in which the access begins: what was pushed since counts, and one that is too
   * old (this process was stopped, say) vouches for nothing. An allowed answer that is not used is reported as such. "late": it may be
   * asked for again.
   */
  #judge<T>(
    access: Access<T>,
    response: VerifyTokenResponse,
    sentAt: Instant,
    gaveUp: boolean,
  ): Denied | "late" | undefined {
    const { allowed, reason, tokenId, cacheable } = response;
    if (!allowed) return new Denied(denialReason(reason), tokenId);
    const now = this.#now();
    const ended = this.#cache.endOf(tokenId, cacheable?.generation ?? 0, cacheable?.ancestors ?? [], now);
    let denied: Denied | "late" | undefined =
      ended && new Denied(ended === "UNKNOWN" ? "STALE_VERIFIER" : ended, tokenId);
    if (gaveUp || this.#closing) denied = new Denied("STALE_VERIFIER", tokenId);
    else if (this.#questions.isTooOld(sentAt, now, this.#watcher.isLive())) denied ??= "late";
    if (denied) {
      new OpenUse(this.#reporter, response.useId, tokenId, access.use).end(Outcome.UNANSWERED);
      return denied;
    }
    this.#controllers.add(access.use.controller);
    if (cacheable) this.#cache.keep(access.key, cacheable, now);
    return undefined;
  }

  async #close(): Promise<boolean> {
    this.#closing = true;
    const reported = await this.#reporter.close();
    await this.#watcher.close();
    this.#cache.clear();
    for (const channel of this.#channels) channel.close();
    return reported;
  }
}
