import type { KeyObject } from "node:crypto";
import { fromBinary } from "@bufbuild/protobuf";
import { type LedgerKeyRotated, LedgerKeyRotatedSchema } from "@curfew/contracts/gen/curfew/events/v1/evidence_pb.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import type { SigningKey, SigningKeys } from "@curfew/keyring/signing-keys.ts";
import { openCheckpoint, parseCheckpoint, signCheckpoint } from "@curfew/ledger/checkpoint.ts";
import { checkKeyRotation } from "@curfew/ledger/key-rotation.ts";
import type { SealedRecord } from "@curfew/ledger/leaf.ts";
import { parseNote } from "@curfew/ledger/note.ts";
import {
  type NoteSigner,
  type NoteVerifier,
  noteSigner,
  parseVerifierKey,
  verifierKeyText,
} from "@curfew/ledger/note-key.ts";
import { shardOrigin } from "@curfew/ledger/shard.ts";
import { LedgerBroken, type Seal, type Shard } from "./domain.ts";

/**
 * The ledger's keys, each with its own range of sizes; in each shard they go by that shard's name. A new key is in force for every tree that holds the record of its rotation: whoever
 * builds on that batch has read the record, so no two sequencers can disagree. Where that is, the keyring keeps beside the keys, out of
 * reach of whoever can write to the store; so a stolen old key signs nothing newer that we would open. The old key goes on signing beside
 * the new one until it is retired, for clients and witnesses that know that one alone.
 */
export interface LedgerKeys {
  /** Oldest first; read anew at most once a second, or now. */
  all(now?: "now"): readonly [SigningKey, ...SigningKey[]];
  follow(number: number, after: number): void;
}

export const ledgerKeys = (keyring: SigningKeys, origin: string): LedgerKeys => ({
  all: (now) => keyring.signingKeys(origin, now),
  follow: (number, after) => keyring.follow(origin, number, after),
});

export interface LedgerSeal extends Seal {
  /** Verifier key text of the key that signs the shard of a ledger of so many leaves. */
  verifierKeyAt(year: number, size: number): string;
  /** Signs by that key what is no checkpoint. */
  signerAt(year: number, size: number): NoteSigner;
  /** Of all keys that sign the shard as it is now: several while one retires. */
  verifierKeys(year: number): readonly string[];
}

const rotatedType = "curfew.ledger-key.rotated.v1";

const rotationIn = ({ topic, oversize, headers, value }: SealedRecord): LedgerKeyRotated | undefined => {
  if (topic !== topicNames.evidence || oversize) return undefined;
  if (!headers.some(([name, text]) => name === "ce_type" && text === rotatedType)) return undefined;
  try {
    return fromBinary(LedgerKeyRotatedSchema, value);
  } catch {
    return undefined;
  }
};

/** Whether both keys have stated that `to` follows `from`, before there were more than `index` leaves. */
const isStated = (
  event: LedgerKeyRotated,
  of: { origin: string; from: string; to: string; index: number },
): boolean => {
  const { origin, oldKey, newKey, statement } = event;
  const size = Number(event.ledgerSize);
  if (origin !== of.origin || oldKey !== of.from || newKey !== of.to || size > of.index) return false;
  try {
    checkKeyRotation({ origin, oldKey, newKey, size }, statement);
    return true;
  } catch {
    return false;
  }
};

/** Signs as `origin` by the keys that there are; what it signs it can open. */
export const sealOf = (origin: string, keys: LedgerKeys): LedgerSeal =>
  new RangedSeal(origin, keys, new Map(), new WeakMap());

/** By key, then by name. */
type KnownTexts = WeakMap<SigningKey, Map<string, { readonly text: string; readonly verifier: NoteVerifier }>>;

class RangedSeal implements LedgerSeal {
  readonly #origin: string;
  readonly #keys: LedgerKeys;
  /** After how many leaves a key follows, by its number, where the keyring was not told yet. */
  readonly #turns: ReadonlyMap<number, number>;
  readonly #texts: KnownTexts;

  constructor(origin: string, keys: LedgerKeys, turns: ReadonlyMap<number, number>, texts: KnownTexts) {
    this.#origin = origin;
    this.#keys = keys;
    this.#turns = turns;
    this.#texts = texts;
  }

  sign({ year, first }: Shard, size: number, root: Uint8Array): string {
    const origin = shardOrigin(this.#origin, year);
    // Another replica may have gone on to the next key just now: it says so in the keyring before anybody can build on its batch.
    const signers = this.#signersAt(size, this.#keys.all("now")).flatMap(({ privateKey }) => privateKey ?? []);
    return signCheckpoint(
      { origin, size: size - first, root },
      signers.map((key) => noteSigner(origin, key)),
    );
  }

  open({ year, first }: Shard, checkpoint: string) {
    const { text, signatures } = parseNote(checkpoint);
    const size = first + parseCheckpoint(text).size;
    const origin = shardOrigin(this.#origin, year);
    const keyIds = new Set(signatures.map(({ keyId }) => keyId));
    const idOf = (key: SigningKey) => this.#textsOf(key, origin).verifier.keyId;
    const signed = (all = this.#keys.all()) => this.#validFor(size, all).find((key) => keyIds.has(idOf(key)));
    // Another replica may have gone on to the next key within this second.
    const key = signed() ?? signed(this.#keys.all("now")) ?? this.#inForce(size);
    const { root } = openCheckpoint(checkpoint, this.#textsOf(key, origin).verifier);
    return { size, root };
  }

  turned(first: number, records: readonly SealedRecord[]): RangedSeal {
    let seal: RangedSeal = this;
    for (const [at, record] of records.entries()) {
      const event = rotationIn(record);
      const number = event && seal.#rotated(event, first + at);
      if (number === undefined) continue;
      const turns = new Map(seal.#turns).set(number, first + at);
      seal = new RangedSeal(this.#origin, this.#keys, turns, this.#texts);
    }
    return seal;
  }

  keep(): void {
    for (const [number, after] of this.#turns)
      if (this.#keys.all()[number - 1]?.after === undefined) this.#keys.follow(number, after);
  }

  verifierKeyAt(year: number, size: number): string {
    return this.#textsOf(this.#inForce(size), shardOrigin(this.#origin, year)).text;
  }

  signerAt(year: number, size: number): NoteSigner {
    const [key] = this.#signersAt(size);
    return noteSigner(shardOrigin(this.#origin, year), key?.privateKey as KeyObject);
  }

  verifierKeys(year: number): readonly string[] {
    const origin = shardOrigin(this.#origin, year);
    return this.#signersAt(Number.POSITIVE_INFINITY).map((key) => this.#textsOf(key, origin).text);
  }

  /** Under the name of a shard, or of the whole ledger, by which keys rotate. */
  #textsOf(key: SigningKey, name = this.#origin) {
    const names = this.#texts.get(key) ?? new Map();
    this.#texts.set(key, names);
    const text = verifierKeyText(name, key.publicKey);
    const texts = names.get(name) ?? { text, verifier: parseVerifierKey(text) };
    names.set(name, texts);
    return texts;
  }

  #afterOf({ number, after }: SigningKey): number | undefined {
    return after ?? this.#turns.get(number);
  }

  /** The key of a tree of `size` leaves. */
  #inForce(size: number, all = this.#keys.all()): SigningKey {
    return all.findLast((key) => (this.#afterOf(key) ?? Number.POSITIVE_INFINITY) < size) ?? all[0];
  }

  /** Those that may have signed a tree of `size` leaves: the one in force, and later ones, which vouch for all before them. */
  #validFor(size: number, all: ReturnType<LedgerKeys["all"]>): SigningKey[] {
    const { number } = this.#inForce(size, all);
    return all.filter((key) => key.number >= number && this.#afterOf(key) !== undefined);
  }

  /** Those that sign a tree of `size` leaves now, one that is valid for it first. */
  #signersAt(size: number, all = this.#keys.all()): SigningKey[] {
    const first = this.#validFor(size, all).find(({ privateKey }) => privateKey);
    if (!first) throw new LedgerBroken(`no key is left that signs ${size} leaves`);
    return [first, ...all.filter(({ number, privateKey }) => privateKey && number < first.number).reverse()];
  }

  /**
   * The number of the key that comes in force with the leaf at `index`; undefined where the record is not, or not any more, the keyring's own
   * next step: a repetition, or the work of somebody who has stolen a key. Throws LedgerBroken where that key came in force elsewhere.
   */
  #rotated(event: LedgerKeyRotated, index: number): number | undefined {
    const isThere = this.#keys.all().some((key) => this.#textsOf(key).text === event.newKey);
    const all = this.#keys.all(isThere ? undefined : "now");
    const before = this.#inForce(index, all);
    const next = all[before.number];
    if (!next) return undefined;
    const [from, to] = [this.#textsOf(before).text, this.#textsOf(next).text];
    if (!isStated(event, { origin: this.#origin, from, to, index })) return undefined;
    const after = this.#afterOf(next);
    if (after !== undefined && after !== index)
      throw new LedgerBroken(`leaf ${index} rotates to key ${next.number}, which follows after ${after}`);
    return next.number;
  }
}
