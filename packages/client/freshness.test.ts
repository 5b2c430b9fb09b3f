import { describe, expect, test } from "vitest";
import { evolve, type Freshness, type FreshnessEvent, freshForMs, isLiveAt, neverLive } from "./freshness.ts";

const leaseMs = 5_000;
/** Both clocks at once, `ms` after the start; the wall clock may be ahead by `wallAheadMs`. */
const at = (ms: number, wallAheadMs = 0) => ({ monotonicMs: 1_000 + ms, wallMs: 1_800_000_000_000 + ms + wallAheadMs });

const after = (...events: FreshnessEvent[]): Freshness => events.reduce(evolve, neverLive);
const pinged = (sequence: number, ms: number, wallAheadMs = 0): FreshnessEvent => ({
  type: "pinged",
  sequence,
  at: at(ms, wallAheadMs),
});
const marked = (sequence: number, ms: number, grants = false, wallAheadMs = 0): FreshnessEvent => ({
  type: "marked",
  sequence,
  positions: [],
  leaseMs: grants ? leaseMs : undefined,
  at: at(ms, wallAheadMs),
});
const applied = (ordinal: number): FreshnessEvent => ({ type: "applied", ordinal });
const observed = (ms: number, wallAheadMs = 0): FreshnessEvent => ({ type: "observed", at: at(ms, wallAheadMs) });
const connected: FreshnessEvent = { type: "connected" };

/** Ping 1 brings the lease, ping 2 (sent after it arrived, at 20) the mark that counts. */
const live = [connected, pinged(1, 0), marked(1, 10, true), applied(1), pinged(2, 20), marked(2, 30), applied(2)];

const pattern = (state: Freshness, moments: readonly number[]) => moments.map((ms) => isLiveAt(state, at(ms)));

describe("becoming live", () => {
  test("nothing is known at the start", () => {
    expect(isLiveAt(neverLive, at(0))).toBe(false);
    expect(isLiveAt(after(connected, pinged(1, 0)), at(1))).toBe(false);
  });

  test("the mark that brings the first lease is not enough: its ping was sent before the lease was granted", () => {
    expect(isLiveAt(after(...live.slice(0, 4)), at(15))).toBe(false);
  });

  test("a mark that was not applied is not enough", () => {
    expect(isLiveAt(after(...live.slice(0, -1)), at(40))).toBe(false);
    expect(isLiveAt(after(...live), at(40))).toBe(true);
  });

  test("a ping sent before the grant arrived does not count, even when its mark arrives after", () => {
    const events = [connected, pinged(1, 0), pinged(2, 5), marked(1, 10, true), applied(1), marked(2, 20), applied(2)];
    expect(isLiveAt(after(...events), at(21))).toBe(false);
    expect(isLiveAt(after(...events, pinged(3, 22), marked(3, 30), applied(3)), at(31))).toBe(true);
  });

  test("without a lease no mark helps", () => {
    expect(isLiveAt(after(connected, pinged(1, 0), marked(1, 10), applied(1)), at(11))).toBe(false);
  });

  test("an answer to no ping of this stream is ignored", () => {
    expect(after(connected, pinged(1, 0), marked(7, 10, true)).lease).toBeUndefined();
    expect(after(pinged(1, 0), connected, marked(1, 10, true)).lease).toBeUndefined();
  });
});

describe("how long", () => {
  test("2 s from before the ping was sent, whenever its mark came", () => {
    expect(pattern(after(...live), [2_019, 20 + freshForMs])).toEqual([true, false]);
    const late = after(...live.slice(0, -2), marked(2, 1_900), applied(2));
    expect(pattern(late, [1_901, 2_019, 2_020])).toEqual([true, true, false]);
  });

  test("a mark that took 2 s to arrive or to be applied counts for nothing", () => {
    expect(isLiveAt(after(...live.slice(0, -2), marked(2, 2_020), applied(2)), at(2_021))).toBe(false);
    expect(isLiveAt(after(...live.slice(0, -1), observed(2_020), applied(2)), at(2_021))).toBe(false);
  });

  test("no longer than the lease, from before the ping that brought it", () => {
    const events = [3, 4, 5].flatMap((n, i) => {
      const ms = 1_500 * (i + 1);
      return [pinged(n, ms), marked(n, ms + 10), applied(n)];
    });
    expect(pattern(after(...live, ...events), [4_600, 4_999, 5_000])).toEqual([true, true, false]);
  });

  test("a renewal before the end goes on without a break", () => {
    const events = [3, 4, 5].flatMap((n, i) => {
      const ms = 1_500 * (i + 1);
      return [pinged(n, ms), marked(n, ms + 10, n === 3), applied(n)];
    });
    expect(pattern(after(...live, ...events), [5_001, 6_400, 6_499, 6_500])).toEqual([true, true, true, false]);
  });

  test("an older answer that comes late shortens nothing", () => {
    const state = after(...live, pinged(3, 500), pinged(4, 1_000), marked(4, 1_010, true), applied(4));
    const late = [marked(3, 1_020, true), applied(3)].reduce(evolve, state);
    expect(late.lease?.until).toEqual(at(1_000 + leaseMs));
    expect(pattern(late, [2_999, 3_000])).toEqual([true, false]);
  });

  test("a lost connection ends nothing at once; a new stream's pings go on from there", () => {
    const again = after(...live, connected, pinged(1, 1_000));
    expect(pattern(again, [2_019, 2_020])).toEqual([true, false]);
    expect(pattern([marked(1, 1_010), applied(3)].reduce(evolve, again), [2_999, 3_000])).toEqual([true, false]);
  });

  test("what is lost is not live until a later mark is applied", () => {
    const lost = after(...live, { type: "lost" });
    expect(isLiveAt(lost, at(40))).toBe(false);
    expect(isLiveAt([pinged(3, 50), marked(3, 60), applied(3)].reduce(evolve, lost), at(61))).toBe(true);
  });
});

describe("a lapse", () => {
  const lapsed = after(...live, observed(5_000));

  test("needs a new grant, and after it the mark of a ping sent since", () => {
    const granted = [pinged(3, 5_100), marked(3, 5_110, true), applied(3)].reduce(evolve, lapsed);
    expect(isLiveAt(granted, at(5_111))).toBe(false);
    expect(isLiveAt([pinged(4, 5_120), marked(4, 5_130), applied(4)].reduce(evolve, granted), at(5_131))).toBe(true);
  });

  test("is noticed when the next grant arrives, if nobody looked before", () => {
    const granted = [pinged(3, 4_000), marked(3, 5_000, true), applied(3)].reduce(evolve, after(...live));
    expect(granted.lease?.fromOrdinal).toBe(4);
    expect(isLiveAt(granted, at(5_001))).toBe(false);
  });

  test("a grant that has ended when it arrives is none", () => {
    expect(evolve(evolve(lapsed, pinged(3, 6_000)), marked(3, 11_000, true)).lease).toBeUndefined();
  });
});

describe("clocks", () => {
  test("a process stopped and resumed is not live, and its waiting marks do not help: SIGSTOP", () => {
    // Stopped at 100 for 10 s; the mark of the ping at 90 waits in the socket.
    const stopped = after(...live, pinged(3, 90));
    expect(isLiveAt(stopped, at(10_100))).toBe(false);
    const resumed = [marked(3, 10_101, true), applied(3)].reduce(evolve, stopped);
    expect(isLiveAt(resumed, at(10_102))).toBe(false);
    expect(resumed.lease).toBeUndefined();
  });

  test("a suspended machine, whose monotonic clock stood still, is not live", () => {
    expect(isLiveAt(after(...live), at(50, 2_000))).toBe(false);
  });

  test("a wall clock set back lengthens nothing", () => {
    const state = after(...live);
    expect(isLiveAt(state, at(2_019, -3_600_000))).toBe(true);
    expect(isLiveAt(state, at(2_020, -3_600_000))).toBe(false);
  });

  test("a wall clock set forward ends it, and setting it back again does not bring it back", () => {
    const forward = after(...live, observed(50, 3_600_000));
    expect(isLiveAt(forward, at(51))).toBe(false);
    expect(forward.lease).toBeUndefined();
  });

  test("pings sent after the wall clock was set count from there", () => {
    const events = [pinged(3, 60, -3_600_000), marked(3, 70, true, -3_600_000), applied(3)];
    const state = events.reduce(evolve, after(...live));
    expect(isLiveAt(state, at(2_059, -3_600_000))).toBe(true);
    expect(isLiveAt(state, at(2_060, -3_600_000))).toBe(false);
  });
});

test("unanswered pings are forgotten beyond a bound", () => {
  const state = after(...Array.from({ length: 1_000 }, (_, i) => pinged(i + 1, i)));
  expect(state.outstanding.length).toBeLessThan(20);
});

test("over any history, live means a fresh mark and a lease: never later than 2 s after the newest ping", () => {
  // A small deterministic walk over interleavings of pings, marks in any order, grants, lapses and clock jumps.
  let seed = 7;
  const draw = (n: number) => {
    seed = (seed * 1_103_515_245 + 12_345) % 2 ** 31;
    return seed % n;
  };
  for (let run = 0; run < 300; run += 1) {
    let state = neverLive;
    let ms = 0;
    let sequence = 0;
    let newestPingMs = Number.NEGATIVE_INFINITY;
    const sent: { sequence: number; ms: number; ordinal: number }[] = [];
    let newestGrant = Number.NEGATIVE_INFINITY;
    for (let step = 0; step < 60; step += 1) {
      ms += draw(10) === 0 ? draw(9_000) : draw(300);
      const kind = draw(3);
      if (kind === 0) {
        sequence += 1;
        sent.push({ sequence, ms, ordinal: state.nextOrdinal });
        state = evolve(state, pinged(sequence, ms));
        newestPingMs = ms;
      } else if (kind === 1 && sent.length > 0) {
        const ping = sent.splice(draw(sent.length), 1)[0];
        if (!ping) continue;
        const grants = draw(2) === 0;
        if (grants) newestGrant = Math.max(newestGrant, ping.ms);
        state = evolve(evolve(state, marked(ping.sequence, ms, grants)), applied(ping.ordinal));
      } else if (isLiveAt(state, at(ms))) {
        expect(ms - newestPingMs).toBeLessThan(freshForMs);
        expect(ms - newestGrant).toBeLessThan(leaseMs);
      } else state = evolve(state, observed(ms));
    }
  }
});
