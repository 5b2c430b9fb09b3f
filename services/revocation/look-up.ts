import type { Bus } from "@curfew/event-log/bus.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import type { Keyring } from "@curfew/keyring/keyring.ts";
import type { Feed } from "@curfew/projection/feed.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import type { KnownSecret, SecretIndex } from "./secret-index.ts";

/** Longest wait for our feed to reach what is on the topic. */
export const readWaitMs = 250;
/** A bus that does not answer for so long cannot be asked. */
const busWaitMs = 500;

export interface LookUp {
  readonly known: KnownSecret | undefined;
  /** Nothing on the topic of tokens was left unread: an unknown secret is not ours. */
  readonly certain: boolean;
}

/** Whose a secret is, by its SHA-256, as far as the topic of tokens goes when it is asked. */
export const lookUpSecret = async (
  parts: { readonly index: SecretIndex; readonly keyring: Keyring; readonly bus: Bus; readonly clock: Clock },
  feed: Feed,
  sha256: Uint8Array,
): Promise<LookUp> => {
  const { index, keyring, bus, clock } = parts;
  const over = new AbortController();
  const late = clock.sleep(busWaitMs, over.signal).then(() => undefined);
  const ends = await Promise.race([bus.ends(topicNames.tokens).catch(() => undefined), late]);
  over.abort();
  const topic = topicNames.tokens;
  const wanted = ends?.map((offset, partition) => ({ topic, partition, offset: BigInt(offset) }));
  const certain = wanted !== undefined && (await feed.reached(wanted, readWaitMs));
  return { known: index.find(sha256, keyring.peppers()), certain };
};
