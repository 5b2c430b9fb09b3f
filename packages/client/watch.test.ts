import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { EndedToken } from "@curfew/contracts/gen/curfew/revocation/v1/revocation_pb.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { silentLog } from "./silent-log.ts";
import {
  type FakeRevocation,
  type FakeSuite,
  openFakeRevocation,
  openFakeSuite,
  openJumpyClock,
} from "./testing/fake-suite.ts";
import { openWatcher, type Watcher, type WatcherOptions } from "./watch.ts";

let suite: FakeSuite;
let revocation: FakeRevocation;
let address: string;
let stop: () => Promise<void>;
let time: ReturnType<typeof openJumpyClock>;
let ended: EndedToken[];

beforeEach(async () => {
  suite = await openFakeSuite();
  revocation = openFakeRevocation();
  ({ address, stop } = await suite.serve("revocation", revocation.service()));
  time = openJumpyClock();
  ended = [];
});
afterEach(() => suite.close());

const watch = async (options: Partial<WatcherOptions> = {}): Promise<Watcher> => {
  const watcher = openWatcher({
    channels: [await suite.channel(address, "revocation")],
    instance: "test-1",
    reportsUses: true,
    clock: time.clock,
    random: systemRandom,
    log: silentLog,
    onEnded: (tokens) => void ended.push(...tokens),
    ...options,
  });
  suite.closers.push(() => watcher.close());
  return watcher;
};
const live = (watcher: Watcher) => watcher.whenLive(AbortSignal.timeout(10_000));
const until = (what: () => unknown) => expect.poll(what, { timeout: 10_000, interval: 10 });
const revoked = (n: number) => ({ tokenId: `tok_${n}`, revocationEventId: `event-${n}` });

describe("a watcher", () => {
  test("says who it is, then pings by number; it is live with the mark of a ping sent after its lease arrived", async () => {
    const watcher = await watch();
    expect(watcher.isLive()).toBe(false);
    await live(watcher);
    expect(revocation.received[0]).toMatchObject({ case: "hello", value: { instance: "test-1", reportsUses: true } });
    expect(
      revocation
        .pings()
        .slice(0, 2)
        .map(({ sequence }) => sequence),
    ).toEqual([1n, 2n]);
  });

  test("without leases is never live, with them it is", async () => {
    revocation.leases = false;
    const watcher = await watch();
    await until(() => revocation.pings().length).toBeGreaterThanOrEqual(3);
    expect(watcher.isLive()).toBe(false);
    revocation.leases = true;
    await live(watcher);
  });

  test("acknowledges what was pushed, once it is applied, at most 1,000 ids a message; a rotation needs none", async () => {
    const watcher = await watch();
    await live(watcher);
    revocation.push(...Array.from({ length: 1_500 }, (_, i) => revoked(i)), { tokenId: "tok_r", upToGeneration: 1 });
    await until(() => revocation.acknowledged().length).toBe(1_500);
    expect(ended.map(({ tokenId }) => tokenId)).toContain("tok_r");
    expect(new Set(revocation.acknowledged()).size).toBe(1_500);
    const sizes = revocation.received.flatMap((kind) =>
      kind.case === "acknowledge" ? [kind.value.revocationEventIds.length] : [],
    );
    expect(Math.max(...sizes)).toBeLessThanOrEqual(1_000);
  });

  test("what cannot be applied is not acknowledged and ends its being live; a new stream tries again", async () => {
    let broken: boolean = true;
    const watcher = await watch({
      onEnded: (tokens) => {
        if (broken) throw new Error("cannot be applied");
        ended.push(...tokens);
      },
    });
    await live(watcher);
    revocation.recent = [revoked(1)];
    revocation.push(revoked(1));
    await until(() => watcher.isLive()).toBe(false);
    expect(revocation.acknowledged()).toEqual([]);
    broken = false;
    await until(() => revocation.acknowledged()).toEqual(["event-1"]);
    await live(watcher);
    expect(revocation.hellos().map(({ instance }) => instance)).toContain("test-1");
  });

  test("stopped and resumed it is not live, whatever waited for it meanwhile, and then is again", async () => {
    const watcher = await watch();
    await live(watcher);
    time.stopFor(10_000);
    expect(watcher.isLive()).toBe(false);
    await live(watcher);
  });

  test("without marks it is not live after 2 s, and is again when they come", async () => {
    const watcher = await watch();
    await live(watcher);
    revocation.marks = false;
    time.stopFor(2_000);
    expect(watcher.isLive()).toBe(false);
    const pings = revocation.pings().length;
    await until(() => revocation.pings().length).toBeGreaterThan(pings + 1);
    expect(watcher.isLive()).toBe(false);
    revocation.marks = true;
    await live(watcher);
  });

  test("a wall clock set forward ends it until the next lease", async () => {
    const watcher = await watch();
    await live(watcher);
    time.setWall(3_600_000);
    expect(watcher.isLive()).toBe(false);
    time.setWall(-3_600_000);
    expect(watcher.isLive()).toBe(false);
    await live(watcher);
  });

  test("with feeds of its own it waits until they have reached the mark", async () => {
    let applied = false;
    const asked: bigint[] = [];
    const watcher = await watch({
      positionsApplied: (positions) => {
        asked.push(...positions.map(({ offset }) => offset));
        return applied;
      },
    });
    await until(() => revocation.pings().length).toBeGreaterThanOrEqual(3);
    expect(watcher.isLive()).toBe(false);
    applied = true;
    await live(watcher);
    expect(asked).toContain(10n);
  });

  test("goes on at another address under the same instance when one is gone", async () => {
    const other = openFakeRevocation();
    const second = await suite.serve("revocation", other.service());
    const channels = [await suite.channel(address, "revocation"), await suite.channel(second.address, "revocation")];
    const watcher = await watch({ channels });
    await live(watcher);
    await stop();
    await until(() => other.pings().length).toBeGreaterThan(0);
    await live(watcher);
    expect(other.hellos().at(-1)?.instance).toBe("test-1");
    expect(other.pings()[0]?.sequence).toBe(1n);
  });

  test("a refusal, a stranger's server and no server at all are waited out", async () => {
    const nobody = await suite.channel("localhost:1", "revocation");
    const stranger = await suite.channel(address, "verifier");
    const forbidden = await suite.channel(address, "revocation", "/workload/billing");
    const right = await suite.channel(address, "revocation");
    const watcher = await watch({ channels: [nobody, stranger, forbidden, right] });
    await live(watcher);
  });

  test("pings carry what was reported; closing ends it at once and says goodbye last", async () => {
    let sequence = 0;
    let oldestOpenMs: number | undefined = 1_000;
    const watcher = await watch({ reported: () => ({ sequence, allReported: sequence > 0, oldestOpenMs }) });
    await live(watcher);
    const reportedUntil = timestampFromMs(1_000);
    expect(revocation.pings()[0]).toMatchObject({ reportedSequence: 0n, allReported: false, reportedUntil });
    oldestOpenMs = undefined;
    sequence = 7;
    const closing = watcher.close();
    expect(watcher.isLive()).toBe(false);
    await expect(watcher.whenLive()).rejects.toThrow("closed");
    await closing;
    const last = revocation.pings().at(-1);
    expect(last).toMatchObject({ reportedSequence: 7n, allReported: true, goodbye: true, reportedUntil: last?.sentAt });
    await watcher.close();
  });

  test("writes nothing after its goodbye, however long the answer takes: not the next ping, no acknowledgement of what comes now", async () => {
    revocation.lingersMs = 700;
    const watcher = await watch();
    await live(watcher);
    const closing = watcher.close();
    revocation.push(revoked(1));
    await closing;
    expect(revocation.received.at(-1)).toMatchObject({ case: "ping", value: { goodbye: true } });
    await until(() => revocation.streams.size).toBe(0);
    expect(revocation.brokenOff).toBe(0);
  });
});
