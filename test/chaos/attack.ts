import { setTimeout as sleep } from "node:timers/promises";
import { AuditorService } from "@curfew/contracts/gen/curfew/auditor/v1/auditor_pb.ts";
import { seededRandom } from "@curfew/simulation/seeded-random.ts";
import { expect } from "vitest";
import type { Cast } from "../journey/cast.ts";
import type { Evidence } from "./evidence.ts";
import { type Kind, kinds, type Load, openLoad } from "./load.ts";

/** One kill under load: who is killed, how, and how it comes back. */
export interface Attack {
  readonly victim: string;
  readonly seed: number;
  /** See `openLoad`. */
  readonly pace: number;
  readonly cast: Cast;
  readonly evidence: Evidence;
  /** A kill counts only while one of these is under way; default: any. */
  readonly relevant?: readonly Kind[];
  /** SIGKILL, sent before this returns. */
  readonly kill: () => Promise<void>;
  readonly restart: () => Promise<void>;
}

const workLimitMs = 75_000;
const settleLimitMs = 75_000;
const maxDelayMs = 1_200;

const until = async (what: string, limitMs: number, isSo: () => Promise<boolean> | boolean, detail: () => string) => {
  const endMs = performance.now() + limitMs;
  while (!(await isSo())) {
    if (performance.now() > endMs) throw new Error(`${what}: not within ${limitMs} ms: ${detail()}`);
    await sleep(20);
  }
};

/** Every kind of operation is acknowledged once more than now. */
const untilAllWork = (load: Load, when: string) => {
  const from = new Map(kinds.map((kind) => [kind, load.acknowledged(kind)]));
  const idle = () => kinds.filter((kind) => load.acknowledged(kind) <= (from.get(kind) ?? 0));
  const detail = () => `${idle().join(", ")}; errors: ${JSON.stringify([...load.errors])}`;
  return until(`every operation is acknowledged ${when}`, workLimitMs, () => idle().length === 0, detail);
};

const summary = (inFlight: readonly { kind: Kind; ms: number }[]) =>
  inFlight.map(({ kind, ms }) => `${kind} (${ms} ms)`).join(", ");

/**
 * Runs the load, kills the victim at a random instant with operations in flight, brings it back, and holds the system to its promise:
 * every acknowledged command and use is on its topic and, each event once, in the ledger; streams and chains are whole.
 */
export const survive = async (attack: Attack): Promise<void> => {
  const { victim, seed, pace, cast, relevant = kinds } = attack;
  const random = seededRandom(seed);
  const load = openLoad(cast, random, pace);
  let stopped = false;
  try {
    await untilAllWork(load, "before the kill");
    await sleep(random.below(maxDelayMs));
    // The instant is random, and moved on where it would find nothing under way that the victim has to do with.
    const isCaught = () => load.inFlight().some(({ kind }) => relevant.includes(kind));
    await until("something is in flight", workLimitMs, isCaught, () => relevant.join());
    const caught = load.inFlight();
    const killed = attack.kill();
    console.log(`seed ${seed}: killed ${victim} with ${caught.length} in flight: ${summary(caught)}`);
    expect(caught.length).toBeGreaterThan(0);
    await killed;
    await sleep(random.below(maxDelayMs));
    await attack.restart();
    await untilAllWork(load, `after ${victim} came back`);
    await load.stop();
    stopped = true;
  } finally {
    if (!stopped) await load.stop().catch(() => undefined);
  }
  await settle(attack, load);
};

const settle = async ({ victim, seed, cast, evidence }: Attack, load: Load): Promise<void> => {
  const missing = () => [...load.owed].filter(([mark]) => !evidence.has(mark)).map((entry) => entry.join(" of "));
  const isAllThere = async () => {
    await evidence.catchUp();
    return missing().length === 0;
  };
  await until("everything acknowledged is on the topics", settleLimitMs, isAllThere, () => missing().join("\n"));
  expect(evidence.problems).toEqual([]);
  const auditor = cast.client(AuditorService, "auditor", "person/dana");
  expect(await evidence.missingInLedger(auditor, settleLimitMs)).toEqual([]);
  const errors = [...load.errors].reduce((sum, [, count]) => sum + count, 0);
  console.log(
    `seed ${seed}: after the kill of ${victim} ${load.owed.size} acknowledged facts are on the log, ${evidence.events.length} records in all; ${errors} refusals meanwhile`,
  );
};
