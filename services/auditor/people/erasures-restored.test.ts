import { chmodSync, cpSync, readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import type { PersonalStore } from "@curfew/personal-data/personal-store.ts";
import { describe, expect, it } from "vitest";
import { anna, bert, dayMs, endEpoch, openWorld, pass, settings, startErasures } from "../testing/erasures-rig.ts";

describe("a keys directory from before an epoch's end", () => {
  const restored = async (how: "beside the newer key" | "with the store") => {
    const world = await openWorld();
    const { people, clock, keysDir, dir } = world;
    const [hers, his] = [await world.sealedFor(anna), await world.sealedFor(bert)];
    const rows = {
      identities: await people.identities.find({ limit: 9 }),
      persons: await people.persons.find({ limit: 9 }),
    };
    cpSync(keysDir, join(dir, "backup"), { recursive: true });
    const auditor = await startErasures(world);
    await auditor.erase(hers.pseudonym);
    await pass(clock, 3_000);
    await endEpoch(clock);
    await auditor.close();
    if (how === "with the store") {
      rmSync(keysDir, { recursive: true });
      for (const name of ["identities", "persons", "marks"] as const) {
        const collection = people[name] as PersonalStore["identities"];
        for (const { _id } of await collection.find({ limit: 99 })) await collection.delete(_id);
        if (name !== "marks") for (const row of rows[name]) await collection.insert(row as never);
      }
    }
    cpSync(join(dir, "backup"), keysDir, { recursive: true });
    chmodSync(keysDir, 0o700);
    clock.jump(1_000);
    const restoredAtMs = clock.now();
    const again = await startErasures(world, await world.open(world.personal));
    await clock.advance(20_000);
    await again.erasures.replayed;
    return { ...world, again, hers, his, restoredAtMs };
  };

  it.each(["beside the newer key", "with the store"] as const)(
    "that came back %s: the key is destroyed again before anything is served, and its date is the later one",
    async (how) => {
      const { again, clock, keysDir, hers, his, restoredAtMs, people, read, events } = await restored(how);
      const epochs = people.epochs.live().map(({ number }) => number);
      expect(epochs).toEqual(how === "with the store" ? [3] : [2]);
      expect(readdirSync(keysDir)).not.toContain("epoch-1.key");
      expect(again.erasures.keyDestroyedMs(1)).toBeGreaterThanOrEqual(restoredAtMs);
      expect(await read(hers)).toBeUndefined();
      expect(Object.keys((await people.persons.get(hers.pseudonym)) ?? {}).filter((n) => n.startsWith("w"))).toEqual(
        [],
      );
      expect(await read(his)).toBe(bert.value);
      // Who is erased now waits for the end of an epoch that is not over.
      await again.erase(his.pseudonym);
      await pass(clock, 3_000);
      await pass(clock, 6 * dayMs);
      expect(await again.statusOf(his.pseudonym)).toBe("propagated");
      await again.close();
      expect(await events()).toContain("EpochKeyDestroyed");
    },
  );
});

describe("dates", () => {
  it("are never in the past while the key is there, and count the days for which backups are kept now", async () => {
    const world = await openWorld();
    const { clock } = world;
    const hers = await world.sealedFor(anna);
    clock.jump(40 * dayMs); // nobody was there to end the epoch
    const askedMs = clock.now();
    const auditor = await startErasures(world);
    await auditor.erase(hers.pseudonym);
    await pass(clock, 3_000);
    const { erasure } = await auditor.stateOf(hers.pseudonym);
    expect(erasure).toMatchObject({ status: "propagated" });
    expect("keyGoneByMs" in erasure && erasure.keyGoneByMs).toBeGreaterThan(askedMs + settings.settleMs);
    for (const ms of [20_000, 70_000, 70_000]) await pass(clock, ms);
    await endEpoch(clock);
    await auditor.close();
    const longer = await startErasures(world, world.people, world.store, { ...settings, backupDays: 60 });
    await pass(clock, 30 * dayMs);
    expect(await longer.statusOf(hers.pseudonym)).toBe("propagated");
    await pass(clock, 31 * dayMs);
    expect(await longer.statusOf(hers.pseudonym)).toBe("completed");
    await longer.close();
  });
});
