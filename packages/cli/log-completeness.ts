import { type ChainHead, type ChainVerdict, checkLink } from "@curfew/event-log/chain.ts";
import { decodeLeafLike, NoLeaf, type SealedRecord } from "@curfew/ledger/leaf.ts";

/** Whether everything that was produced is in a log, as far as its entries show it. */
export type Completeness = {
  readonly verdict: "holds" | "broken" | "not applicable";
  readonly why: string;
  /** The first ones. */
  readonly gaps: readonly string[];
};

const maxGapsShown = 20;

const describe = (at: number, verdict: ChainVerdict): string => {
  if (verdict.kind === "hole")
    return `entry ${at}: ${verdict.producer} wrote ${verdict.seen} after ${verdict.expected - 1}: records between are missing`;
  if (verdict.kind === "fork")
    return `entry ${at}: number ${verdict.seen} of ${verdict.producer} does not follow the record before it`;
  return `entry ${at}: no producer is named`;
};

/** Follows the producer chains of a log's entries. */
export const openCompleteness = () => {
  const heads = new Map<string, ChainHead>();
  const gaps: string[] = [];
  let [ours, others, found] = [0, 0, 0];
  let last: SealedRecord | undefined;
  const gap = (text: string) => {
    found += 1;
    if (gaps.length < maxGapsShown) gaps.push(text);
  };
  const add = (leaf: Uint8Array, at: number): void => {
    const record = decodeLeafLike(leaf, last);
    last = record;
    ours += 1;
    if (record.oversize) {
      gap(`entry ${at}: too large for a leaf, only its hash is there`);
      return;
    }
    const named = record.headers.find(([name]) => name === "curfew-producer")?.[1] ?? "";
    const chain = `${named} ${record.topic}/${record.partition}`;
    const { verdict, head } = checkLink(heads.get(chain), record);
    if (head) heads.set(chain, head);
    if (verdict.kind !== "ok" && verdict.kind !== "repeat") gap(describe(at, verdict));
  };
  return {
    add(leaf: Uint8Array, at: number): void {
      try {
        add(leaf, at);
      } catch (error) {
        if (!(error instanceof NoLeaf)) throw error;
        others += 1;
        if (ours > 0) gap(`entry ${at}: ${error.message}`);
      }
    },
    verdict(): Completeness {
      if (ours === 0 && others > 0)
        return { verdict: "not applicable", why: "its entries are no records of Curfew", gaps: [] };
      if (ours > 0 && others > 0)
        return { verdict: "broken", why: `${others} of its entries are no records of Curfew`, gaps };
      if (found > 0) return { verdict: "broken", why: `${found} gaps in what its producers wrote`, gaps };
      return { verdict: "holds", why: `${heads.size} producer chains without a gap, each up to its last entry`, gaps };
    },
  };
};
