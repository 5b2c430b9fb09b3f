import type { Bus } from "@curfew/event-log/bus.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import type { Feed } from "@curfew/projection/feed.ts";
import type { AtLeast } from "@curfew/projection/progress.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import type { Organisation } from "@curfew/runtime/organisation.ts";
import { type CaseRadius, caseRadius } from "./case-radius.ts";
import type { OpenCase } from "./domain.ts";
import type { Knowledge } from "./projections.ts";
import type { UseRows } from "./use-rows.ts";

/** Counts what a case touched, as far as this replica has read; waits a moment for what stands on the topic already. */
export interface Radii {
  /** Undefined for a case that is not about a token, and until the uses are being read. */
  of(state: OpenCase): Promise<CaseRadius | undefined>;
  /** Of several cases, asking the bus once. */
  ofAll(states: readonly OpenCase[]): Promise<(CaseRadius | undefined)[]>;
  /** Whether the bus answered when it was last asked. */
  readonly busAnswers: boolean;
}

type Feeds = { readonly uses: Feed; readonly facts: Feed };

/** What a window and its completeness rest on, beside the uses. */
const countedTopics = [topicNames.tokens, topicNames.revocations, topicNames.evidence];
const askMs = 500;
const catchUpMs = 250;
const atOnce = 4;

export const openRadii = (parts: {
  readonly knowledge: Knowledge;
  readonly rows: UseRows;
  /** The feed of uses and that behind `knowledge`, once they are open. */
  readonly feeds: () => Feeds | undefined;
  readonly bus: Pick<Bus, "ends">;
  readonly organisation: Organisation;
  readonly clock: Clock;
}): Radii => {
  const { knowledge, rows, bus, organisation, clock } = parts;
  let busAnswers = true;

  const endsOf = async (topic: string): Promise<AtLeast[]> =>
    (await bus.ends(topic)).map((offset, partition) => ({ topic, partition, offset: BigInt(offset) }));

  const ends = async () => {
    const over = new AbortController();
    const asked = Promise.all([topicNames.uses, ...countedTopics].map(endsOf)).catch(() => undefined);
    const found = await Promise.race([asked, clock.sleep(askMs, over.signal).then(() => undefined)]);
    over.abort();
    busAnswers = found !== undefined;
    return found;
  };

  const caughtUp = async ({ uses, facts }: Feeds): Promise<boolean> => {
    const [ofUses = [], ...others] = (await ends()) ?? [];
    if (!busAnswers) return false;
    const reached = [uses.reached(ofUses, catchUpMs), facts.reached(others.flat(), catchUpMs)];
    return !(await Promise.all(reached)).includes(false);
  };

  const count = async (state: OpenCase, feed: Feed, isCaughtUp: boolean): Promise<CaseRadius | undefined> => {
    if (state.tokenId === "") return undefined;
    const read = await rows.read(state.tokenId, feed.positions());
    const evidence = {
      token: knowledge.token(state.tokenId),
      read,
      caughtUp: isCaughtUp,
      largestClockOffsetMs: knowledge.largestClockOffsetMs,
      reportingGaps: knowledge.reportingGaps,
      evidenceGaps: knowledge.evidenceGaps,
      nowMs: clock.now(),
    };
    return caseRadius(state, evidence, organisation);
  };

  const ofAll = async (states: readonly OpenCase[]) => {
    const feeds = parts.feeds();
    const found: (CaseRadius | undefined)[] = states.map(() => undefined);
    if (!feeds || states.every(({ tokenId }) => tokenId === "")) return found;
    const isCaughtUp = await caughtUp(feeds);
    const left = [...states.entries()];
    const worker = async () => {
      for (let next = left.shift(); next; next = left.shift())
        found[next[0]] = await count(next[1], feeds.uses, isCaughtUp);
    };
    await Promise.all(Array.from({ length: Math.min(atOnce, states.length) }, worker));
    return found;
  };

  return {
    ofAll,
    of: async (state) => (await ofAll([state]))[0],
    get busAnswers() {
      return busAnswers;
    },
  };
};
