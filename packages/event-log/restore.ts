import type { DocumentStore } from "@curfew/document-store/port.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import type { Log } from "@curfew/runtime/log.ts";
import type { InRecord } from "./bus.ts";
import {
  type Found,
  find,
  idIn,
  inGroups,
  lastOf,
  type OwnTopic,
  type Place,
  placeOf,
  StreamForked,
} from "./own-topic.ts";
import { readTopic } from "./read-topic.ts";
import { type CommitDoc, commitId, openCommits } from "./streams.ts";

export interface Restored {
  /** On the topic. */
  readonly records: number;
  /** Copied back. */
  readonly commits: number;
  /** Commits that were never published, written on top of the old store, where the topic has others: they are gone. */
  readonly replaced: number;
}

/** Unpublished commits of the store, from `version` on, that stand where the topic has others. */
interface Conflict {
  readonly docs: readonly CommitDoc[];
  readonly ids: ReadonlySet<string>;
  /** They end a token, and the topic has not been seen to do so. */
  revokes: boolean;
}

const revokedType = "curfew.token.revoked.v1";
const maxConflicts = 10_000;
const typesIn = (docs: readonly CommitDoc[]) => docs.flatMap(({ events }) => events.map((e) => e.headers.ce_type));

const forked = ({ stream, sequence, record }: Place, why: string) =>
  new StreamForked(
    `event ${sequence} of ${stream} at ${record.topic}@${record.offset} is not the one in the store, ${why}: nothing was copied from there on`,
  );

type RestoreRow = { _id: string };
const openRestores = (store: DocumentStore) => store.collection<RestoreRow>("restores");

/**
 * When the store was last restored, in ms since the epoch; 0: never. Rows that are not made from the log, such as leases, may be missing
 * for the time before.
 */
export const restoredAtMs = async (store: DocumentStore): Promise<number> => {
  const [newest] = await (await openRestores(store)).find({ order: -1, limit: 1 });
  return Number(newest?._id ?? 0);
};

/** `restoreFromTopic` for a whole store, which remembers when. */
export const restoreStore = async (
  parts: Omit<OwnTopic, "commits"> & {
    readonly store: DocumentStore;
    readonly clock: Clock;
    readonly log: Pick<Log, "warn">;
  },
): Promise<Restored> => {
  const { store, clock } = parts;
  // Before anything is copied: one that is killed has begun at this time, too.
  await (await openRestores(store)).insert({ _id: String(clock.now()).padStart(15, "0") });
  return await restoreFromTopic({ ...parts, commits: await openCommits(store) });
};

/**
 * Copies back what the topic has and the store has not, as commits with the same bytes and headers. Idempotent, and may be killed at any
 * time: it goes on where it was. No service may run on the store. Rejects with StreamForked where a published event differs.
 */
export const restoreFromTopic = async (own: OwnTopic & { readonly log: Pick<Log, "warn"> }): Promise<Restored> => {
  const replaced = await replaceUnpublished(own);
  const copy = new Copy(own);
  await readTopic({ ...own, name: `${own.service}-restore` }, (records) => copy.take(records));
  await copy.finish();
  return { records: copy.records, commits: copy.commits, replaced };
};

/**
 * Commits that were accepted while the broker could not be asked and never got out, where the topic has others: as if they had not been
 * made. Only a revocation must not be lost so: it goes where the topic has one too. Everything is looked at before anything is changed.
 */
const replaceUnpublished = async (own: OwnTopic & { readonly log: Pick<Log, "warn"> }): Promise<number> => {
  const { commits, service, log } = own;
  const conflicts = new Map<string, Conflict>();
  const look = async (places: readonly Place[]) => {
    let near: Found | undefined;
    for (const place of places) {
      const conflict = conflicts.get(place.stream);
      if (conflict?.ids.has(place.id)) throw forked(place, "and the topic has both");
      if (conflict && place.headers.get("ce_type") === revokedType) conflict.revokes = false;
      if (conflict) continue;
      near = await find(commits, place.stream, place.sequence, near);
      if (!near.holding || idIn(near.holding, place.sequence) === place.id) continue;
      if (conflicts.size >= maxConflicts) throw forked(place, `as are ${maxConflicts} others`);
      conflicts.set(place.stream, await conflictAt(commits, place, near.holding));
    }
  };
  await readTopic({ ...own, name: `${service}-restore` }, (records) => byStream(own, records, look));
  for (const [stream, { revokes }] of conflicts)
    if (revokes)
      throw new StreamForked(
        `${stream} was revoked in the store and is not on the topic, which has other events there: note the token, delete its commits that have the field "unpublished", run this again and revoke the token again`,
      );
  let count = 0;
  for (const [stream, { docs }] of conflicts) {
    log.warn({ stream, commits: docs.length, types: typesIn(docs) }, "never published; the log has other events there");
    // From the end, so that the stream is whole at any time.
    for (const { _id } of docs.toReversed()) count += await commits.delete(_id);
  }
  return count;
};

const conflictAt = async (commits: OwnTopic["commits"], place: Place, first: CommitDoc): Promise<Conflict> => {
  const docs: CommitDoc[] = [];
  for (let doc: CommitDoc | undefined = first; doc; doc = await commits.get(commitId(doc.stream, doc.version + 1))) {
    if (!doc.unpublished) throw forked(place, "which was published");
    docs.push(doc);
  }
  const ids = new Set(docs.flatMap(({ events }) => events.map(({ headers }) => headers.ce_id ?? "")));
  const onTopic = place.headers.get("ce_type") === revokedType;
  return { docs, ids, revokes: !onTopic && typesIn(docs).includes(revokedType) };
};

const byStream = (
  { service }: OwnTopic,
  records: readonly InRecord[],
  act: (places: readonly Place[]) => Promise<void>,
): Promise<void> => {
  const places = records.map((record) => placeOf(record, service));
  return inGroups([...Map.groupBy(places, ({ stream }) => stream).values()], act);
};

/** Records that were one commit lie side by side: same stream, same time, same trace, numbers in a row. */
const isOneCommit = (one: Place, next: Place): boolean =>
  one.stream === next.stream &&
  one.sequence + 1 === next.sequence &&
  ["ce_time", "traceparent"].every((name) => one.headers.get(name) === next.headers.get(name));

const storedEvent = ({ headers, record }: Place) => ({
  headers: Object.fromEntries([...headers].filter(([name]) => !name.startsWith("curfew-"))),
  value: record.value,
});

class Copy {
  records = 0;
  commits = 0;
  readonly #own: OwnTopic;
  /** The last commit read, which may go on in the next records. */
  #open: Place[] = [];

  constructor(own: OwnTopic) {
    this.#own = own;
  }

  async take(records: readonly InRecord[]): Promise<void> {
    const runs: Place[][] = [];
    for (const place of records.map((record) => placeOf(record, this.#own.service))) {
      const last = this.#open.at(-1);
      if (last && isOneCommit(last, place)) this.#open.push(place);
      else {
        if (last) runs.push(this.#open);
        this.#open = [place];
      }
    }
    this.records += records.length;
    await this.#write(runs);
  }

  async finish(): Promise<void> {
    if (this.#open.length > 0) await this.#write([this.#open]);
  }

  /** Streams side by side, each in its order. */
  async #write(runs: readonly Place[][]): Promise<void> {
    const streams = Map.groupBy(runs, ([first]) => (first as Place).stream);
    await inGroups([...streams.values()], async (ofStream) => {
      let near: Found | undefined;
      for (const run of ofStream) near = await this.#writeRun(run, near);
    });
  }

  async #writeRun(run: readonly Place[], near: Found | undefined): Promise<Found | undefined> {
    const { commits } = this.#own;
    let found = near;
    for (const [i, place] of run.entries()) {
      const { stream, sequence, id } = place;
      found = await find(commits, stream, sequence, found);
      if (found.holding && idIn(found.holding, sequence) !== id) throw forked(place, "which was published");
      if (found.holding) continue;
      const { before } = found;
      if (sequence !== (before ? lastOf(before) : 0) + 1)
        throw forked(place, "which ends before, nor is its predecessor");
      const version = (before?.version ?? 0) + 1;
      const events = run.slice(i).map(storedEvent);
      const doc: CommitDoc = { _id: commitId(stream, version), stream, version, events };
      if ((await commits.insert(doc)) === "exists") throw forked(place, "which another process has just written");
      this.commits += 1;
      return { holding: doc };
    }
    return found;
  }
}
