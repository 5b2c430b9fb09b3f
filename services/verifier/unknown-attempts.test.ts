import { Reason } from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import { parseAddress } from "@curfew/personal-data/address.ts";
import { openLog } from "@curfew/runtime/log.ts";
import { describe, expect, it } from "vitest";
import { type Attempts, maxNetworks, openUnknownAttempts } from "./unknown-attempts.ts";

const log = openLog({ service: "test", level: "error", write: () => undefined });

/** Sleeps end when the test says so. */
const openManual = (publish: (attempts: readonly Attempts[]) => Promise<void>) => {
  const sleeping: (() => void)[] = [];
  const clock = {
    now: () => 0,
    monotonicMs: () => 0,
    sleep: (_ms: number, signal?: AbortSignal) =>
      new Promise<void>((resolve) => {
        sleeping.push(resolve);
        signal?.addEventListener("abort", () => resolve());
      }),
  };
  const attempts = openUnknownAttempts({ clock, log, publish });
  const tick = async () => {
    for (const wake of sleeping.splice(0)) wake();
    await new Promise((resolve) => setImmediate(resolve));
  };
  return { attempts, tick, sleeping: () => sleeping.length };
};

describe("attempts that name no token", () => {
  it("are merged per resource service, reason and network until the window ends", async () => {
    const published: Attempts[] = [];
    const { attempts, tick, sleeping } = openManual(async (rows) => void published.push(...rows));
    attempts.add("crm", Reason.UNKNOWN, "a", 5);
    attempts.add("crm", Reason.UNKNOWN, "a", 9);
    attempts.add("crm", Reason.MALFORMED, "a", 6);
    attempts.add("shop", Reason.UNKNOWN, "a", 7);
    expect(published).toEqual([]);
    await tick();
    expect(published).toMatchObject([
      { resourceService: "crm", reason: Reason.UNKNOWN, network: "a", count: 2, firstMs: 5, lastMs: 9 },
      { resourceService: "crm", reason: Reason.MALFORMED, count: 1 },
      { resourceService: "shop", reason: Reason.UNKNOWN, count: 1 },
    ]);
    expect(sleeping()).toBe(0);
    attempts.add("crm", Reason.UNKNOWN, "a", 20);
    await tick();
    expect(published.at(-1)).toMatchObject({ count: 1, firstMs: 20 });
  });

  it("past the first thousand networks become one row, and none is lost from the count", async () => {
    const published: Attempts[] = [];
    const { attempts, tick } = openManual(async (rows) => void published.push(...rows));
    for (let i = 0; i < 5000; i += 1) attempts.add("crm", Reason.UNKNOWN, `network ${i}`, i);
    attempts.add("crm", Reason.UNKNOWN, "network 0", 5000);
    await tick();
    expect(published).toHaveLength(maxNetworks + 1);
    expect(published.find(({ network }) => network === "more")).toMatchObject({ count: 4000, lastMs: 4999 });
    expect(published.reduce((sum, { count }) => sum + count, 0)).toBe(5001);
  });

  it("stay counted when they cannot be published, and go out at the end", async () => {
    let down: boolean = true;
    const published: Attempts[] = [];
    const { attempts, tick } = openManual(async (rows) => {
      if (down) throw new Error("down");
      published.push(...rows);
    });
    attempts.add("crm", Reason.UNKNOWN, "a", 1);
    await tick();
    attempts.add("crm", Reason.UNKNOWN, "a", 2);
    down = false;
    await attempts.close();
    expect(published).toMatchObject([{ count: 2, firstMs: 1, lastMs: 2 }]);
  });
});

describe("an address", () => {
  it.each([
    ["192.0.2.7", "192.0.2.7", "192.0.2.0/24"],
    ["::ffff:192.0.2.7", "192.0.2.7", "192.0.2.0/24"],
    ["::FFFF:c000:207", "192.0.2.7", "192.0.2.0/24"],
    ["2001:DB8::1", "2001:db8:0:0:0:0:0:1", "2001:db8:0::/48"],
    ["2001:db8:0:0:0:0:0:1", "2001:db8:0:0:0:0:0:1", "2001:db8:0::/48"],
    ["::", "0:0:0:0:0:0:0:0", "0:0:0::/48"],
    ["64:ff9b::192.0.2.33", "64:ff9b:0:0:0:0:c000:221", "64:ff9b:0::/48"],
  ])("%s is written %s in %s", (text, canonical, network) => {
    expect(parseAddress(text)).toEqual({ text: canonical, network });
  });

  it.each(["", "anna", "1.2.3", "1.2.3.4:80", "fe80::1%eth0", "01.2.3.4", "[::1]", " 1.2.3.4"])(
    "%j is none",
    (text) => {
      expect(parseAddress(text)).toBeUndefined();
    },
  );
});
