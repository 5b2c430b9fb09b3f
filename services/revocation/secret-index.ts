import { isMessage, type Message } from "@bufbuild/protobuf";
import type { Timestamp } from "@bufbuild/protobuf/wkt";
import { timestampMs } from "@bufbuild/protobuf/wkt";
import {
  type Generation,
  TokenIssuedSchema,
  TokenRotatedSchema,
} from "@curfew/contracts/gen/curfew/events/v1/tokens_pb.ts";
import type { Peppers } from "@curfew/keyring/keyring.ts";
import { digest } from "@curfew/token-format/digest.ts";

/** Whose a secret is. Times in ms since the epoch. */
export interface KnownSecret {
  readonly tokenId: string;
  readonly generation: number;
  /** SPIFFE ID of the holder. */
  readonly subject: string;
  /** Not good from then on: expiry, or the end of the overlap once a newer generation exists. */
  readonly endsAtMs: number;
}

interface Token {
  readonly id: string;
  readonly subject: string;
  lineageEndsAtMs: number;
  /** Newest last. */
  readonly generations: Entry[];
}

interface Entry {
  readonly token: Token;
  readonly number: number;
  readonly pepperId: string;
  readonly digest: string;
  endsAtMs: number;
}

/** Older generations of one token are forgotten: their secrets are then unknown. 30 days of hourly rotation are 1,080. */
export const maxGenerationsPerToken = 2_000;
/** A dead secret that leaks is still evidence; this long after its lineage ended it is forgotten. */
export const keptAfterLineageMs = 90 * 86_400_000;

const keyOf = (bytes: Uint8Array): string => Buffer.from(bytes).toString("latin1");
const msOf = (timestamp: Timestamp | undefined): number => (timestamp ? timestampMs(timestamp) : 0);

/** Digest → token and generation, folded from the tokens topic, in memory. Events of one token come in their order. */
export class SecretIndex {
  readonly #byPepper = new Map<string, Map<string, Entry>>();
  readonly #tokens = new Map<string, Token>();

  /** Events of other types are none of ours. */
  apply(event: Message): void {
    if (isMessage(event, TokenIssuedSchema)) {
      const token = this.#tokenOf(event.tokenId, event.subject);
      token.lineageEndsAtMs = msOf(event.lineageExpiresAt);
      this.#add(token, event.generation);
    } else if (isMessage(event, TokenRotatedSchema)) {
      const token = this.#tokenOf(event.tokenId, event.subject);
      const number = event.generation?.number ?? 0;
      for (const entry of token.generations)
        if (entry.number < number) entry.endsAtMs = Math.min(entry.endsAtMs, msOf(event.previousEndsAt));
      this.#add(token, event.generation);
    }
  }

  /** Tries every pepper, whether or not an earlier one has found it, so that the answer takes as long either way. */
  find(sha256: Uint8Array, peppers: Peppers): KnownSecret | undefined {
    let found: Entry | undefined;
    for (const { id, key } of peppers.all) {
      const entry = this.#byPepper.get(id)?.get(keyOf(digest(key, sha256)));
      found ??= entry;
    }
    if (!found) return undefined;
    const { token, number, endsAtMs } = found;
    return { tokenId: token.id, generation: number, subject: token.subject, endsAtMs };
  }

  /** Forgets tokens whose lineage ended long ago. */
  sweep(nowMs: number): void {
    for (const token of this.#tokens.values()) {
      if (token.lineageEndsAtMs + keptAfterLineageMs > nowMs) continue;
      for (const entry of token.generations) this.#remove(entry);
      this.#tokens.delete(token.id);
    }
  }

  #tokenOf(id: string, subject: string): Token {
    let token = this.#tokens.get(id);
    if (!token) {
      token = { id, subject, lineageEndsAtMs: Number.POSITIVE_INFINITY, generations: [] };
      this.#tokens.set(id, token);
    }
    return token;
  }

  #add(token: Token, generation: Generation | undefined): void {
    const { digest: stored, number = 0, expiresAt } = generation ?? {};
    if (!stored || token.generations.some((entry) => entry.number === number)) return;
    const entry: Entry = {
      token,
      number,
      pepperId: stored.pepperId,
      digest: keyOf(stored.value),
      endsAtMs: msOf(expiresAt),
    };
    token.generations.push(entry);
    const digests = this.#byPepper.get(entry.pepperId) ?? new Map<string, Entry>();
    this.#byPepper.set(entry.pepperId, digests.set(entry.digest, entry));
    const oldest = token.generations.length > maxGenerationsPerToken ? token.generations.shift() : undefined;
    if (oldest) this.#remove(oldest);
  }

  #remove({ pepperId, digest: key }: Entry): void {
    this.#byPepper.get(pepperId)?.delete(key);
  }
}
