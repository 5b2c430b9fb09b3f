import { X509Certificate } from "node:crypto";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampMs } from "@bufbuild/protobuf/wkt";
import { Delivery, type GrantSchema } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import { IssuerService } from "@curfew/contracts/gen/curfew/issuer/v1/issuer_pb.ts";
import type { KeyPair } from "@curfew/keyring/hpke.ts";
import { openClient } from "@curfew/rpc/client.ts";
import type { IdentitySource } from "@curfew/rpc/credentials.ts";
import { parseRpcError } from "@curfew/rpc/errors.ts";
import { callerOfNames } from "@curfew/rpc/identity.ts";
import { type Clock, systemClock } from "@curfew/runtime/clock.ts";
import type { Log } from "@curfew/runtime/log.ts";
import { type Random, systemRandom, uuidV7 } from "@curfew/runtime/random.ts";
import { type Delivered, openSealedDelivery } from "./sealed-delivery.ts";
import { silentLog } from "./silent-log.ts";

/** What a workload wants to hold: a token of its own by id, or a new one. */
export type Wanted =
  | { readonly tokenId: string }
  | {
      readonly grant: MessageInitShape<typeof GrantSchema>;
      /** UUID: the same again gets the same token as long as it lives (AIP-155). Default: a new token at every start. */
      readonly requestId?: string;
    };

/** Who we are, and whom we trust. */
export interface Connection {
  /** The workload's own certificate: the token's subject. */
  readonly identity: IdentitySource;
  /** Of the organisation's certificate authority. */
  readonly caPem: string;
  readonly trustDomain: string;
}

export interface TokenSourceOptions extends Connection {
  /** Address of the issuer, host:port. */
  readonly issuer: string;
  /** X25519 (`generateKeyPair` of the keyring); registered at the start. Whoever holds it can open the secrets sealed to it. */
  readonly keyPair: KeyPair;
  readonly wanted: Wanted;
  readonly clock?: Clock;
  readonly random?: Random;
  /** Default: silent. No secret ever comes here. */
  readonly log?: Log;
}

/** Keeps a workload in possession of a good secret, in memory only; printing it or turning it into JSON shows none. */
export interface TokenSource {
  /** The newest secret. Waits for one at most 10 s or until the signal aborts; rejects with TokenUnavailable or the signal's reason. */
  current(signal?: AbortSignal): Promise<string>;
  /** Empty until a token is there. */
  readonly tokenId: string;
  /** A server refused the secret: gets another, at most one in 10 s. */
  refused(secret: string): void;
  close(): void;
}

/** There is no good secret, and why: the issuer's reason where it gave one. */
export class TokenUnavailable extends Error {
  override name = "TokenUnavailable";
}

const waitMs = 10_000;
const refusedEveryMs = 10_000;
const retryBaseMs = 200;
const retryCapMs = 30_000;
const pollLeastMs = 1_000;
/** setTimeout takes no more than 2^31 ms. */
const longestWaitMs = 86_400_000;
/** The token will never be good again. */
const isOver = (reason: string) =>
  ["TOKEN_EXPIRED", "TOKEN_REVOKED", "LINEAGE_ENDED", "TOKEN_NOT_FOUND", "NOT_FOUND"].includes(reason);

interface Held {
  readonly secret: string;
  readonly generation: number;
  readonly expiresAtMs: number;
  readonly rotatesAtMs: number;
  /** When to look for the next generation, and when to ask for it. */
  readonly collectAtMs: number;
  readonly rotateAtMs: number;
  confirmed: boolean;
}

/** Starts to get the token at once. Throws when the identity is not a workload of the trust domain. */
export const openTokenSource = (options: TokenSourceOptions): TokenSource => {
  const { identity, trustDomain } = options;
  const own = callerOfNames(new X509Certificate(identity.current().certPem).subjectAltName, trustDomain);
  if (own?.kind !== "workload") throw new TypeError(`the identity is no workload of trust domain ${trustDomain}`);
  return new SealedTokenSource(options, own.uri);
};

class SealedTokenSource implements TokenSource {
  readonly #wanted: Wanted;
  readonly #clock: Clock;
  readonly #random: Random;
  readonly #log: Log;
  readonly #client;
  readonly #delivery;
  readonly #closing = new AbortController();
  readonly #waiting = new Set<() => void>();
  #wake = new AbortController();
  #registered: boolean = false;
  #tokenId: string;
  #requestId: string;
  #held: Held | undefined;
  #failure: TokenUnavailable | undefined;
  /** The token is over, and no other is wanted. */
  #isDead: boolean = false;
  /** The issuer refused, which waiting does not change; it is asked again all the same, for policy may. */
  #isRefused: boolean = false;
  #refusedAtMs = Number.NEGATIVE_INFINITY;

  constructor(options: TokenSourceOptions, subject: string) {
    const { issuer, identity, caPem, trustDomain, keyPair, wanted } = options;
    const { clock = systemClock, random = systemRandom, log = silentLog } = options;
    this.#wanted = wanted;
    this.#clock = clock;
    this.#random = random;
    this.#log = log;
    this.#tokenId = "tokenId" in wanted ? wanted.tokenId : "";
    this.#requestId = ("grant" in wanted ? wanted.requestId : undefined) ?? this.#uuid();
    const channel = { address: issuer, identity, caPem, trustDomain, expectService: "issuer", clock, random };
    this.#client = openClient(IssuerService, channel);
    this.#delivery = openSealedDelivery({ issuer: this.#client.rpc, subject, keyPair });
    void this.#run();
  }

  get tokenId(): string {
    return this.#tokenId;
  }

  async current(signal?: AbortSignal): Promise<string> {
    const untilMs = this.#clock.monotonicMs() + waitMs;
    for (;;) {
      signal?.throwIfAborted();
      if (this.#closing.signal.aborted) throw new TokenUnavailable("the token source is closed");
      const held = this.#held;
      if (this.#isGood(held)) return held.secret;
      if (this.#failure && (this.#isDead || this.#isRefused)) throw this.#failure;
      const leftMs = untilMs - this.#clock.monotonicMs();
      if (leftMs <= 0) throw this.#failure ?? new TokenUnavailable("no secret yet: is the issuer reachable?");
      await this.#changed(leftMs, signal);
    }
  }

  refused(secret: string): void {
    const nowMs = this.#clock.monotonicMs();
    if (this.#held?.secret !== secret || nowMs - this.#refusedAtMs < refusedEveryMs) return;
    this.#refusedAtMs = nowMs;
    this.#held = undefined;
    this.#wake.abort();
  }

  close(): void {
    this.#closing.abort();
    this.#held = undefined;
    this.#wake.abort();
    this.#notify();
    this.#client.close();
  }

  toJSON(): object {
    return { tokenId: this.#tokenId, generation: this.#held?.generation ?? 0 };
  }

  #uuid(): string {
    return uuidV7(this.#clock.now(), this.#random);
  }

  async #changed(ms: number, signal: AbortSignal | undefined): Promise<void> {
    const over = new AbortController();
    const done = () => over.abort();
    this.#waiting.add(done);
    signal?.addEventListener("abort", done);
    await this.#clock.sleep(ms, over.signal);
    signal?.removeEventListener("abort", done);
    this.#waiting.delete(done);
  }

  #notify(): void {
    for (const done of [...this.#waiting]) done();
  }

  async #run(): Promise<void> {
    let failures = 0;
    while (!this.#closing.signal.aborted && !this.#isDead) {
      let sleepMs: number;
      try {
        await this.#step();
        failures = 0;
        sleepMs = this.#untilNext();
      } catch (error) {
        if (this.#closing.signal.aborted) return;
        failures += 1;
        sleepMs = this.#failed(error, failures);
      }
      this.#wake = new AbortController();
      await this.#clock.sleep(
        Math.min(sleepMs, longestWaitMs),
        AbortSignal.any([this.#wake.signal, this.#closing.signal]),
      );
    }
  }

  /** Records why; answers when to try again. */
  #failed(error: unknown, failures: number): number {
    const { status, reason, message } = parseRpcError(error);
    this.#log.warn({ status, reason, tokenId: this.#tokenId }, "no new secret");
    this.#isRefused = ["PERMISSION_DENIED", "INVALID_ARGUMENT", "FAILED_PRECONDITION"].includes(status);
    this.#failure = new TokenUnavailable(`${reason || status}: ${message}`, { cause: error });
    if (isOver(reason) && this.#tokenId !== "") this.#abandon(reason);
    this.#notify();
    return this.#jittered(Math.min(retryCapMs, retryBaseMs * 2 ** Math.min(failures, 10)));
  }

  #abandon(reason: string): void {
    // At the end of its lineage a secret stays good until it expires.
    if (reason !== "LINEAGE_ENDED" || !this.#isGood(this.#held)) this.#held = undefined;
    if ("tokenId" in this.#wanted) this.#isDead = this.#held === undefined;
    else {
      this.#tokenId = "";
      this.#requestId = this.#uuid();
      this.#isRefused = false;
    }
  }

  #isGood(held: Held | undefined): held is Held {
    return held !== undefined && this.#clock.now() < held.expiresAtMs;
  }

  #jittered(ms: number): number {
    const [byte = 0] = this.#random(1);
    return (ms * (byte + 1)) / 256;
  }

  #untilNext(): number {
    const held = this.#held;
    if (!held) return 0;
    const nowMs = this.#clock.now();
    if (!held.confirmed) return pollLeastMs;
    if (nowMs < held.collectAtMs) return held.collectAtMs - nowMs;
    return Math.max(pollLeastMs, (held.expiresAtMs - held.rotatesAtMs) / 20);
  }

  /** Does whatever is due. */
  async #step(): Promise<void> {
    if (!this.#registered) {
      await this.#delivery.register(this.#uuid());
      this.#registered = true;
    }
    const held = this.#held;
    const nowMs = this.#clock.now();
    if (!this.#isGood(held) || this.#tokenId === "") {
      if (this.#tokenId === "") await this.#create();
      if (!(await this.#collect(0))) await this.#rotate(0);
      return;
    }
    if (!held.confirmed) await this.#confirm(held);
    if (nowMs < held.collectAtMs || (await this.#collect(held.generation))) return;
    if (nowMs >= held.rotateAtMs) await this.#rotate(held.generation);
  }

  async #create(): Promise<void> {
    if (!("grant" in this.#wanted)) return;
    const { grant } = this.#wanted;
    const request = { requestId: this.#requestId, grant, delivery: Delivery.SEALED };
    const { token } = await this.#client.rpc.createToken(request);
    this.#tokenId = token?.tokenId ?? "";
    this.#log.info({ tokenId: this.#tokenId }, "token created");
  }

  async #rotate(above: number): Promise<void> {
    await this.#client.rpc.rotateToken({ requestId: this.#uuid(), tokenId: this.#tokenId, delivery: Delivery.SEALED });
    if (!(await this.#collect(above))) throw new TokenUnavailable("the token was rotated, and no secret is waiting");
  }

  /** Takes the sealed secret of a generation above the one held, if one waits. */
  async #collect(above: number): Promise<boolean> {
    const delivered = await this.#delivery.collect(this.#tokenId, above);
    if (!delivered) return false;
    const held = this.#hold(delivered);
    this.#held = held;
    this.#failure = undefined;
    this.#notify();
    this.#log.info({ tokenId: this.#tokenId, generation: held.generation }, "secret collected");
    await this.#confirm(held);
    return true;
  }

  #hold({ secret, generation, expiresAt, rotatesAt }: Delivered): Held {
    const nowMs = this.#clock.now();
    const expiresAtMs = expiresAt ? timestampMs(expiresAt) : nowMs;
    const rotatesAtMs = rotatesAt ? timestampMs(rotatesAt) : expiresAtMs - (expiresAtMs - nowMs) / 3;
    const restMs = expiresAtMs - rotatesAtMs;
    // Not all at once with every other workload; asks for the rotation itself when half of the rest is over.
    const collectAtMs = rotatesAtMs + this.#jittered(restMs / 10);
    return {
      secret,
      generation,
      expiresAtMs,
      rotatesAtMs,
      collectAtMs,
      rotateAtMs: rotatesAtMs + restMs / 2,
      confirmed: false,
    };
  }

  /** Until then the sealed copy stays, and the issuer does not rotate by itself. Tried again at the next step. */
  async #confirm(held: Held): Promise<void> {
    try {
      await this.#client.rpc.confirmSecret({ tokenId: this.#tokenId, generation: held.generation });
      held.confirmed = true;
    } catch (error) {
      const { status, reason } = parseRpcError(error);
      this.#log.warn({ status, reason, tokenId: this.#tokenId }, "the secret could not be confirmed yet");
    }
  }
}
