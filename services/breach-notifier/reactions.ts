import type { Bus } from "@curfew/event-log/bus.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import type { Aggregates } from "@curfew/event-log/handle-command.ts";
import { type Lease, openLease, type Tenure } from "@curfew/event-log/lease.ts";
import type { Outbox } from "@curfew/event-log/outbox.ts";
import type { Feed } from "@curfew/projection/feed.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import type { Log } from "@curfew/runtime/log.ts";
import { span, withSpan } from "@curfew/runtime/telemetry.ts";
import type { Delivery } from "./delivery.ts";
import { breachCase, type CaseCommand, type CaseEvent, type CaseState } from "./domain.ts";
import type { KnownSignal } from "./pending-signals.ts";
import type { Knowledge } from "./projections.ts";

export type Cases = Aggregates<CaseState, CaseCommand, CaseEvent>;

export interface ReactionParts {
  readonly outbox: Outbox;
  readonly cases: Cases;
  readonly knowledge: Knowledge;
  /** The feed behind `knowledge`, once all that was there at start is read: no signal is acted on before. */
  readonly feed: () => Feed | undefined;
  readonly bus: Pick<Bus, "ends">;
  /** Opened anew for each tenure: another replica may have sent in between. */
  readonly openDelivery: (command: (caseId: string, command: CaseCommand) => Promise<void>) => Delivery;
  readonly targets: readonly string[];
  readonly repeatMs: number;
  readonly instance: string;
  readonly address: () => string;
  readonly exclusive: boolean;
  readonly clock: Clock;
  readonly log: Log;
}

const lookEveryMs = 1_000;
/** What another replica has committed to a case is seen at the latest after this; a command sees it at once anyway. */
const readAgainMs = 15_000;
const atOnce = 16;
const grantWaitMs = 2_000;
const settleMs = 1_000;

/**
 * Signals become cases and time becomes pages, on one replica at a time. All of it is derived from the streams in the store: a replica that
 * takes over finds what is overdue and what was not sent, also while the bus is down; doing it twice does no harm.
 */
export const openReactions = (parts: ReactionParts): Lease => {
  const { outbox, clock, log, knowledge } = parts;
  let woken = Promise.withResolvers<void>();
  knowledge.onSignal = () => woken.resolve();
  const work = async ({ signal }: Tenure) => {
    const aborted = new Promise((resolve) => signal.addEventListener("abort", resolve, { once: true }));
    // A store from a backup must not go on by itself; one whose bus is away must.
    await Promise.race([outbox.comparedOrUnasked, aborted]);
    const tenure = new ReactionTenure(parts, () => woken.resolve());
    signal.addEventListener("abort", () => woken.resolve(), { once: true });
    while (!signal.aborted) {
      woken = Promise.withResolvers<void>();
      try {
        await withSpan(span.reaction("cases"), {}, () => tenure.look(signal));
      } catch (error) {
        log.warn({ err: error }, "cases are looked at again");
      }
      const over = new AbortController();
      await Promise.race([woken.promise, clock.sleep(lookEveryMs, over.signal)]);
      over.abort();
    }
    await tenure.settle(settleMs);
  };
  return openLease({
    rows: outbox.leases,
    name: "reactions-breach-notifier",
    holder: parts.instance,
    address: parts.address,
    clock,
    log,
    exclusive: parts.exclusive,
    work,
  });
};

class ReactionTenure {
  readonly #parts: ReactionParts;
  readonly #delivery: Delivery;
  readonly #wake: () => void;
  /** Every case there is, as last read; without a state: to be read. */
  readonly #cases = new Map<string, { readonly state?: CaseState; readonly readMs: number }>();
  /** Of the signals that their case's topic does not tell yet: those that are in it. */
  #taken = new Set<string>();
  #listed: boolean;

  constructor(parts: ReactionParts, wake: () => void) {
    this.#parts = parts;
    this.#wake = wake;
    this.#listed = false;
    this.#delivery = parts.openDelivery((caseId, command) => this.#command(caseId, command));
  }

  async look(signal: AbortSignal): Promise<void> {
    if (!this.#listed) await this.#list();
    await this.#takeSignals();
    if (signal.aborted) return;
    await inParallel([...this.#cases.keys()], (caseId) => this.#act(caseId, signal));
  }

  settle(ms: number): Promise<void> {
    return this.#delivery.settle(ms);
  }

  /** From one stream to the next, skipping its commits: cases are known without the bus. */
  async #list(): Promise<void> {
    const { commits } = this.#parts.outbox.streams;
    for (let from = "case/"; ; ) {
      const [first] = await commits.find({ from, below: "case0", limit: 1 });
      if (!first) break;
      if (!this.#cases.has(first.stream)) this.#cases.set(first.stream, { readMs: 0 });
      from = `${first.stream}@~`;
    }
    this.#listed = true;
  }

  async #takeSignals(): Promise<void> {
    const { knowledge, feed, log } = this.#parts;
    if (!feed()) return;
    const pending = [...knowledge.signals];
    this.#taken = this.#taken.intersection(new Set(pending.map(({ signal }) => signal.eventId)));
    const byCase = Map.groupBy(
      pending.filter(({ signal }) => !this.#taken.has(signal.eventId)),
      ({ caseId }) => caseId,
    );
    await inParallel([...byCase.values()], async (signals) => {
      try {
        for (const known of signals) await this.#take(known);
      } catch (err) {
        log.warn({ err, caseId: signals[0]?.caseId }, "a signal could not be taken into its case; trying again");
      }
    });
  }

  async #take({ caseId, tokenId, producer, signal }: KnownSignal): Promise<void> {
    const noPersonalData = tokenId !== "" && (await this.#reachesNoPersonalData(tokenId));
    await this.#command(caseId, { type: "RecordSignal", caseId, tokenId, producer, noPersonalData, signal });
    this.#taken.add(signal.eventId);
  }

  /** A token that we do not know counts as one that reaches personal data. Its issue may stand on its topic and not be read yet. */
  async #reachesNoPersonalData(tokenId: string): Promise<boolean> {
    const { knowledge, feed, bus, clock } = this.#parts;
    if (!knowledge.token(tokenId)?.grant) {
      const over = new AbortController();
      const asked = bus.ends(topicNames.tokens).catch(() => []);
      const ends = await Promise.race([asked, clock.sleep(grantWaitMs, over.signal).then(() => [])]);
      over.abort();
      const wanted = ends.map((end, partition) => ({ topic: topicNames.tokens, partition, offset: BigInt(end) }));
      await feed()?.reached(wanted, grantWaitMs);
    }
    return knowledge.token(tokenId)?.grant?.dataCategories.length === 0;
  }

  async #act(caseId: string, signal: AbortSignal): Promise<void> {
    const { targets, repeatMs, clock, log } = this.#parts;
    try {
      let state = await this.#read(caseId);
      if (state.status === "none" || signal.aborted) return;
      // Asked of what was read; decided, where there is something to do, on what stands in the stream.
      const raise = { type: "RaisePages", targets, repeatMs, nowMs: clock.now() } as const;
      if (breachCase.decide(state, raise).length > 0) {
        await this.#command(caseId, raise);
        state = await this.#read(caseId);
      }
      if (state.status !== "none" && !signal.aborted) this.#delivery.start(state);
    } catch (err) {
      log.warn({ err, caseId }, "a case could not be looked at; trying again");
    }
  }

  async #read(caseId: string): Promise<CaseState> {
    const { cases, clock } = this.#parts;
    const known = this.#cases.get(caseId);
    const readMs = clock.monotonicMs();
    if (known?.state && readMs - known.readMs < readAgainMs) return known.state;
    const state = await cases.load(caseId);
    // A command that came in between has put another entry there.
    if (this.#cases.get(caseId) === known) this.#cases.set(caseId, { state, readMs });
    return state;
  }

  async #command(caseId: string, command: CaseCommand): Promise<void> {
    const { cases, outbox } = this.#parts;
    const { commit } = await cases.handle(caseId, command);
    this.#cases.set(caseId, { readMs: 0 });
    if (!commit) return;
    void outbox.relay.published(commit, 0);
    this.#wake();
  }
}

const inParallel = async <T>(items: readonly T[], act: (item: T) => Promise<void>): Promise<void> => {
  const left = [...items];
  const worker = async () => {
    for (let item = left.shift(); item !== undefined; item = left.shift()) await act(item);
  };
  await Promise.all(Array.from({ length: Math.min(atOnce, left.length) }, worker));
};
