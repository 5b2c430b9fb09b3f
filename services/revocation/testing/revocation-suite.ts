import { randomUUID } from "node:crypto";
import { create, type Message } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { RevocationReason } from "@curfew/contracts/gen/curfew/events/v1/revocations_pb.ts";
import { TokenIssuedSchema, TokenRotatedSchema } from "@curfew/contracts/gen/curfew/events/v1/tokens_pb.ts";
import {
  type EndedToken,
  type FreshnessMark,
  RevocationService,
  type WatcherPing,
} from "@curfew/contracts/gen/curfew/revocation/v1/revocation_pb.ts";
import { encodeEvent } from "@curfew/event-log/envelope.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import type { ServiceClient } from "@curfew/rpc/client.ts";
import { parseRpcError, type RpcFailure } from "@curfew/rpc/errors.ts";
import type { RunningService, ServiceParts } from "@curfew/rpc/replica.ts";
import { eventually, openTestSuite, trustDomain } from "@curfew/rpc/testing/suite.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { digest, secretHash } from "@curfew/token-format/digest.ts";
import { mintSecret } from "@curfew/token-format/secret.ts";
import { tokenIdFrom } from "@curfew/token-format/token-id.ts";
import { openRevocation } from "../service.ts";
import type { WatchLimits } from "../watch-limits.ts";

export type Client = ServiceClient<typeof RevocationService>;
export const newTokenId = () => tokenIdFrom(systemRandom(32));
export const requestId = () => randomUUID();
export const revokeRequest = (tokenId: string, reason = RevocationReason.COMPROMISED) => ({
  requestId: requestId(),
  tokenId,
  reason,
});

/** Leases of 600 ms, so that a silent watcher is waited out in a moment. */
export const shortLimits: Partial<WatchLimits> = {
  leaseMs: 600,
  renewAfterMs: 150,
  markEveryMs: 5,
  gapGraceMs: 300,
  gapEveryMs: 50,
};

/** The failure a call ends in; fails the test when there is none. */
export const failureOf = async (call: Promise<unknown>): Promise<RpcFailure> => {
  try {
    await call;
  } catch (error) {
    return parseRpcError(error);
  }
  throw new Error("the call succeeded");
};

/** Replicas of `revocation` on one store and one bus, and somebody who writes tokens as the issuer does. */
export const openRevocationSuite = async () => {
  const suite = await openTestSuite();
  const producer = await (await suite.parts("issuer")).bus.openProducer({
    topic: topicNames.tokens,
    name: "issuer/test",
  });
  const sequences = new Map<string, number>();

  const write = async (tokenId: string, message: Message) => {
    const subject = `tokens/${tokenId}`;
    const sequence = (sequences.get(subject) ?? 0) + 1;
    sequences.set(subject, sequence);
    const nowMs = systemClock.now();
    const traceparent = `00-${"a".repeat(32)}-${"b".repeat(16)}-00`;
    const context = { source: "/issuer", subject, nowMs, random: systemRandom, traceparent, sequence };
    const { headers, value } = encodeEvent(message, context);
    const [offset] = await producer.send([{ partition: 0, key: subject, headers, value }]);
    return offset as number;
  };
  const { keyring } = await suite.parts("issuer");
  const generationOf = (number: number, lifeMs: number) => {
    const secret = mintSecret("s", systemRandom);
    const { id, key } = keyring.peppers().current;
    const expiresAt = timestampFromMs(systemClock.now() + lifeMs);
    const stored = { pepperId: id, value: digest(key, secretHash(secret)) };
    return { secret, generation: { number, digest: stored, expiresAt } };
  };

  return {
    ...suite,
    start: async (limits: Partial<WatchLimits> = shortLimits, more: Partial<ServiceParts> = {}) =>
      suite.use(openRevocation({ ...(await suite.parts("revocation")), ...more }, { limits })),
    as: (path: string, service: RunningService): Promise<Client> => suite.client(RevocationService, service, path),
    async issue(lifeMs = 3_600_000) {
      const tokenId = newTokenId();
      const { secret, generation } = generationOf(1, lifeMs);
      const subject = `spiffe://${trustDomain}/workload/billing`;
      const lineageExpiresAt = timestampFromMs(systemClock.now() + 30 * 86_400_000);
      await write(tokenId, create(TokenIssuedSchema, { tokenId, subject, generation, lineageExpiresAt }));
      return { tokenId, secret, sha256: secretHash(secret) };
    },
    async rotate(tokenId: string, number: number, overlapMs: number) {
      const { secret, generation } = generationOf(number, 3_600_000);
      const previousEndsAt = timestampFromMs(systemClock.now() + overlapMs);
      const offset = await write(tokenId, create(TokenRotatedSchema, { tokenId, generation, previousEndsAt }));
      return { secret, sha256: secretHash(secret), offset, previousEndsAt };
    },
  };
};
export type RevocationSuite = Awaited<ReturnType<typeof openRevocationSuite>>;

/** The other end of WatchRevocations, by hand: it does nothing that the test does not tell it to. */
export class RawWatcher {
  /** Everything received, in order. */
  readonly received: (EndedToken | FreshnessMark)[] = [];
  readonly #exchange: ReturnType<Client["watchRevocations"]>;
  readonly #cut = new AbortController();
  #sequence = 0;
  /** How the stream ended; undefined while it is open, null in order. */
  end: RpcFailure | null | undefined;

  constructor(client: Client, options: { readonly read?: boolean } = {}) {
    this.#exchange = client.watchRevocations({ signal: this.#cut.signal });
    if (options.read !== false) void this.read();
  }

  async read(): Promise<void> {
    try {
      for await (const { kind } of this.#exchange.responses) {
        if (kind.case === "ended") this.received.push(...kind.value.tokens);
        else if (kind.case === "mark") this.received.push(kind.value);
      }
      this.end = null;
    } catch (error) {
      this.end = parseRpcError(error);
    }
  }

  get ended(): EndedToken[] {
    return this.received.filter((m): m is EndedToken => m.$typeName === "curfew.revocation.v1.EndedToken");
  }

  get marks(): FreshnessMark[] {
    return this.received.filter((m): m is FreshnessMark => m.$typeName === "curfew.revocation.v1.FreshnessMark");
  }

  async hello(instance: string, reportsUses = false): Promise<void> {
    await this.#exchange.send({ kind: { case: "hello", value: { instance, reportsUses } } });
  }

  async ping(more: Partial<Omit<WatcherPing, "$typeName">> = {}): Promise<number> {
    this.#sequence += 1;
    const value = { sequence: BigInt(this.#sequence), sentAt: timestampFromMs(systemClock.now()), ...more };
    await this.#exchange.send({ kind: { case: "ping", value } });
    return this.#sequence;
  }

  /** The mark of a ping sent now, and again as long as there is none: whose mark cannot be made in time gets none. */
  async mark(more: Partial<Omit<WatcherPing, "$typeName">> = {}): Promise<FreshnessMark> {
    const sequence = await this.ping(more);
    let sentMs = systemClock.monotonicMs();
    return await eventually(async () => {
      const found = this.marks.find((mark) => Number(mark.sequence) >= sequence);
      if (found) return found;
      if (systemClock.monotonicMs() - sentMs > 2_000) {
        sentMs = systemClock.monotonicMs();
        await this.ping(more);
      }
      throw new Error(`no mark for ping ${sequence}: ${JSON.stringify(this.end)}`);
    });
  }

  async acknowledge(...revocationEventIds: string[]): Promise<void> {
    await this.#exchange.send({ kind: { case: "acknowledge", value: { revocationEventIds } } });
  }

  /** The end of this token, once it came. */
  endOf(tokenId: string): Promise<EndedToken> {
    return eventually(() => {
      const found = this.ended.find((ended) => ended.tokenId === tokenId);
      if (!found) throw new Error(`${tokenId} was not pushed`);
      return found;
    });
  }

  /** No more requests. */
  finish(): void {
    this.#exchange.end();
  }

  /** As when the process dies. */
  cut(): void {
    this.#cut.abort();
  }
}
