import type { Position } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import type { UseCompleted, UseDecided } from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import type { Collection, DocumentStore } from "@curfew/document-store/port.ts";
import type { ReadEvent } from "@curfew/event-log/envelope.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { Progress } from "@curfew/projection/progress.ts";
import type { UseFact } from "./blast-radius.ts";
import { countedFact, type FactName, TokenUses } from "./use-facts.ts";

/**
 * Uses by token, as rows that any replica writes alike: `_id` is the token and the place on the topic, so the rows that follow a position
 * are found by it, and a second writer changes nothing. A position row says that everything below it has its row: true whoever wrote it,
 * because each replica goes on from such a row. Both are only inserted.
 */
type UseRow = {
  /** `<token id>/<partition>@<offset>`, padded. */
  _id: string;
  fact: FactName;
  /** ce_id. */
  eventId: string;
  /** As it stands on the topic. */
  value: Uint8Array;
};
type PositionRow = {
  /** `<partition>@<offset>`, padded. */
  _id: string;
};

/** Uses of one token below some positions. */
export interface UsesRead {
  readonly uses: readonly UseFact[];
  /** Uses of which a report was read, and not the answer. */
  readonly orphans: number;
  /** Positions up to which they are folded, one per partition. */
  readonly folded: readonly Position[];
  /** More facts than are folded: the numbers are too low. */
  readonly truncated: boolean;
}

export interface UseRows {
  /** Positions to go on from. */
  positions(): Promise<Position[]>;
  /** Takes an event into the batch. */
  add(event: ReadEvent): void;
  /** Writes the batch, then the positions. */
  commit(positions: readonly Position[]): Promise<void>;
  /** The uses of a token below `folded` (positions after the last record applied). */
  read(tokenId: string, folded: readonly Position[]): Promise<UsesRead>;
}

const maxRowsAtOnce = 1_000;
const maxBytesAtOnce = 4 * 2 ** 20;
const pageRows = 1_000;
const keptPositions = 8;
/** Position rows: below what one look at them reads, and prime, so that every partition has its turn. */
const pruneEvery = 53;
/** Facts of one token that are folded. */
const maxFacts = 200_000;
/** Tokens kept folded, the last used ones: to go on from. */
const maxCachedTokens = 50;
const maxCachedFacts = 400_000;

const pad = (n: number | bigint, digits: number) => String(n).padStart(digits, "0");
const rowId = (tokenId: string, partition: number, offset: number | bigint) =>
  `${tokenId}/${pad(partition, 4)}@${pad(offset, 15)}`;
const positionId = (partition: number, offset: number | bigint) => `${pad(partition, 4)}@${pad(offset, 15)}`;

/** Pieces that one insert takes. */
const batches = (rows: readonly UseRow[]): UseRow[][] => {
  const found: UseRow[][] = [];
  let bytes = Number.POSITIVE_INFINITY;
  for (const row of rows) {
    const last = found.at(-1);
    if (last && last.length < maxRowsAtOnce && bytes + row.value.length <= maxBytesAtOnce) {
      last.push(row);
      bytes += row.value.length;
    } else {
      found.push([row]);
      bytes = row.value.length;
    }
  }
  return found;
};

export const openUseRows = async (store: DocumentStore, o: { maxFacts?: number } = {}): Promise<UseRows> => {
  const rows = await store.collection<UseRow>("uses");
  const positions = await store.collection<PositionRow>("use-positions");
  return new StoredUses(rows, positions, o.maxFacts ?? maxFacts);
};

/** The farther of both for each partition of the topic of uses. */
const farthest = (wanted: Map<number, Position>, positions: readonly Position[]): Map<number, Position> => {
  for (const position of positions) {
    if (position.topic !== topicNames.uses) continue;
    const known = wanted.get(position.partition);
    if (!known || known.offset < position.offset) wanted.set(position.partition, position);
  }
  return wanted;
};

interface Cached {
  readonly uses: TokenUses;
  readonly next: Map<number, bigint>;
  truncated: boolean;
}

class StoredUses implements UseRows {
  readonly #rows: Collection<UseRow>;
  readonly #positions: Collection<PositionRow>;
  readonly #maxFacts: number;
  /** Not written yet; a commit that failed leaves them here. */
  readonly #batch = new Map<string, UseRow>();
  /** Least recently used first. */
  readonly #cache = new Map<string, Promise<Cached>>();
  /** Reads of one token go one after another, and all that wait meanwhile share the next: on a slow database no queue grows. */
  readonly #running = new Map<string, Promise<UsesRead>>();
  readonly #queued = new Map<string, { readonly folded: Map<number, Position>; readonly read: Promise<UsesRead> }>();
  readonly #stored = new Map<number, bigint>();
  #insertsSincePruned = 0;

  constructor(rows: Collection<UseRow>, positions: Collection<PositionRow>, limit: number) {
    this.#rows = rows;
    this.#positions = positions;
    this.#maxFacts = limit;
  }

  async positions(): Promise<Position[]> {
    const found = new Map<number, number>();
    // Few rows: those of a partition are pruned as they are passed.
    for (const { _id } of await this.#positions.find({ limit: 10_000 })) {
      const [partition = 0, offset = 0] = _id.split("@").map(Number);
      found.set(partition, Math.max(offset, found.get(partition) ?? 0));
    }
    return [...found].map(([partition, offset]) => Progress.position(topicNames.uses, partition, offset));
  }

  add({ message, record, id }: ReadEvent): void {
    const fact = countedFact(message);
    if (!fact) return;
    const { tokenId } = message as UseDecided | UseCompleted;
    const _id = rowId(tokenId, record.partition, record.offset);
    this.#batch.set(_id, { _id, fact, eventId: id, value: record.value });
  }

  async commit(next: readonly Position[]): Promise<void> {
    for (const rows of batches([...this.#batch.values()])) {
      await this.#rows.insertMany(rows);
      for (const { _id } of rows) this.#batch.delete(_id);
    }
    for (const { partition, offset } of next) {
      if (offset <= (this.#stored.get(partition) ?? 0n)) continue;
      await this.#positions.insert({ _id: positionId(partition, offset) });
      this.#stored.set(partition, offset);
      this.#insertsSincePruned += 1;
      if (this.#insertsSincePruned < pruneEvery) continue;
      this.#insertsSincePruned = 0;
      await this.#prune(partition, offset);
    }
  }

  /** Rows far enough below another one that nobody is about to need them. */
  async #prune(partition: number, offset: bigint): Promise<void> {
    const below = positionId(partition, offset);
    const from = positionId(partition, 0);
    const old = (await this.#positions.find({ from, below, order: -1, limit: 100 })).slice(keptPositions);
    if (old.length > 0) await this.#positions.delete(...old.map(({ _id }) => _id));
  }

  async read(tokenId: string, folded: readonly Position[]): Promise<UsesRead> {
    const queued = this.#queued.get(tokenId);
    if (queued) {
      farthest(queued.folded, folded);
      return await queued.read;
    }
    const running = this.#running.get(tokenId);
    if (!running) return await this.#begin(tokenId, folded);
    const wanted = farthest(new Map(), folded);
    const read = running
      .catch(() => undefined) // its own callers hear of it
      .then(() => {
        this.#queued.delete(tokenId);
        return this.#begin(tokenId, [...wanted.values()]);
      });
    this.#queued.set(tokenId, { folded: wanted, read });
    return await read;
  }

  #begin(tokenId: string, folded: readonly Position[]): Promise<UsesRead> {
    const read = this.#readNow(tokenId, folded).finally(() => {
      if (this.#running.get(tokenId) === read) this.#running.delete(tokenId);
    });
    this.#running.set(tokenId, read);
    return read;
  }

  async #readNow(tokenId: string, folded: readonly Position[]): Promise<UsesRead> {
    const before = this.#cache.get(tokenId);
    const reading = this.#extend(tokenId, before, folded);
    this.#cache.delete(tokenId);
    this.#cache.set(tokenId, reading);
    try {
      const { uses, truncated, next } = await reading;
      // At once: the next reader of this token lets the same fold grow.
      const positions = [...next].map(([p, offset]) => Progress.position(topicNames.uses, p, Number(offset)));
      const read = { uses: uses.list(), orphans: uses.orphans, folded: positions, truncated };
      await this.#trim();
      return read;
    } catch (error) {
      this.#cache.delete(tokenId);
      throw error;
    }
  }

  async #extend(tokenId: string, before: Promise<Cached> | undefined, folded: readonly Position[]): Promise<Cached> {
    const cached = (await before?.catch(() => undefined)) ?? {
      uses: new TokenUses(),
      next: new Map<number, bigint>(),
      truncated: false,
    };
    for (const { topic, partition, offset } of folded) {
      const from = cached.next.get(partition) ?? 0n;
      if (topic !== topicNames.uses || offset <= from) continue;
      await this.#fold(cached, rowId(tokenId, partition, from), rowId(tokenId, partition, offset));
      cached.next.set(partition, offset);
    }
    return cached;
  }

  async #fold(cached: Cached, from: string, below: string): Promise<void> {
    for (let at = from; ; ) {
      const page = await this.#rows.find({ from: at, below, limit: pageRows });
      for (const { fact, value, eventId } of page) {
        if (cached.uses.size >= this.#maxFacts) cached.truncated = true;
        else cached.uses.add(fact, value, eventId);
      }
      const last = page.at(-1);
      if (!last || page.length < pageRows || cached.truncated) return;
      at = `${last._id}!`;
    }
  }

  async #trim(): Promise<void> {
    const entries = await Promise.all(
      [...this.#cache].map(async ([id, entry]) => [id, (await entry.catch(() => undefined))?.uses.size ?? 0] as const),
    );
    let facts = entries.reduce((sum, [, size]) => sum + size, 0);
    let tokens = entries.length;
    for (const [id, size] of entries) {
      if (tokens <= maxCachedTokens && (facts <= maxCachedFacts || tokens === 1)) return;
      this.#cache.delete(id);
      tokens -= 1;
      facts -= size;
    }
  }
}
