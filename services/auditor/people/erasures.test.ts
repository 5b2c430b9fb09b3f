import { readdirSync } from "node:fs";
import type { PersonalStore } from "@curfew/personal-data/personal-store.ts";
import { type Fault, faultyStore } from "@curfew/simulation/faulty-store.ts";
import { describe, expect, it } from "vitest";
import { anna, bert, dayMs, endEpoch, openWorld, pass, startErasures } from "../testing/erasures-rig.ts";

describe("an erasure", () => {
  it("destroys key and mapping, waits for every consumer, for the epoch's key and for the last backup; others stay", async () => {
    const world = await openWorld();
    const { clock, people, keysDir } = world;
    const [hers, his] = [await world.sealedFor(anna), await world.sealedFor(bert)];
    expect([await world.read(hers), await world.read(his)]).toEqual([anna.value, bert.value]);
    for (const _id of ["v1", "v2", "v3"]) await people.holders.insert({ _id, seenMs: 1 });
    const auditor = await startErasures(world);
    await auditor.erase(hers.pseudonym);
    await pass(clock, 3_000);
    expect(await auditor.statusOf(hers.pseudonym)).toBe("destroyed");
    expect(await world.read(hers)).toBeUndefined();
    expect((await world.sealedFor(anna)).pseudonym).not.toBe(hers.pseudonym);

    await world.acknowledge(hers.pseudonym, "v1");
    await people.holders.delete("v2"); // ended in order
    await pass(clock, 3_000);
    expect(await auditor.statusOf(hers.pseudonym)).toBe("destroyed");
    await pass(clock, 350_000); // v3 says that it lives, until it does so no more
    await people.holders.set("v3", { seenMs: 2 });
    await pass(clock, 3_000);
    await pass(clock, 350_000);
    expect(await auditor.statusOf(hers.pseudonym)).toBe("destroyed");
    await pass(clock, 20_000);
    expect(await auditor.statusOf(hers.pseudonym)).toBe("propagated");

    await pass(clock, 8 * dayMs);
    expect(readdirSync(keysDir)).toContain("epoch-1.key");
    await pass(clock, dayMs);
    for (const ms of [20_000, 40_000]) await pass(clock, ms);
    expect(readdirSync(keysDir)).toContain("epoch-1.key");
    await pass(clock, 30_000);
    expect(readdirSync(keysDir)).not.toContain("epoch-1.key");
    expect(await world.read(his)).toBe(bert.value);
    expect(await auditor.statusOf(hers.pseudonym)).toBe("propagated");
    await pass(clock, 5 * dayMs);
    expect(await auditor.statusOf(hers.pseudonym)).toBe("completed");
    expect(await world.read(his)).toBe(bert.value);
    await auditor.close();
    expect(await world.events()).toEqual([
      "ErasureRequested",
      "DataSubjectErased",
      "ErasurePropagated",
      "EpochKeyDestroyed",
      "ErasureCompleted",
    ]);
  });

  it("is done again to a store that was restored, before anything else, and new people are left alone", async () => {
    const world = await openWorld();
    const { people, clock } = world;
    const hers = await world.sealedFor(anna);
    const backup = {
      identities: await people.identities.find({ limit: 10 }),
      persons: await people.persons.find({ limit: 10 }),
    };
    const auditor = await startErasures(world);
    await auditor.erase(hers.pseudonym);
    await pass(clock, 3_000);
    await auditor.close();
    for (const name of ["identities", "persons"] as const) {
      const rows = people[name] as PersonalStore["identities"];
      for (const { _id } of await rows.find({ limit: 10 })) await rows.delete(_id);
      for (const row of backup[name]) await rows.insert(row as never);
    }
    // The control: the backup has her.
    expect(await world.read(hers)).toBe(anna.value);
    const his = await world.sealedFor(bert);
    const again = await startErasures(world);
    await pass(clock, 1_000);
    await again.erasures.replayed;
    expect(await world.read(hers)).toBeUndefined();
    expect(await world.read(his)).toBe(bert.value);
    expect((await world.sealedFor(anna)).pseudonym).not.toBe(hers.pseudonym);
    await again.close();
  });

  it("is not undone by a store from before the epoch: what it has cannot be read, and is removed", async () => {
    const world = await openWorld();
    const { people, clock } = world;
    const his = await world.sealedFor(bert);
    const rows = {
      identities: await people.identities.find({ limit: 9 }),
      persons: await people.persons.find({ limit: 9 }),
    };
    const auditor = await startErasures(world);
    await endEpoch(clock);
    expect(await world.read(his)).toBe(bert.value);
    await auditor.close();
    for (const mark of await people.marks.find({ from: "rotated/", limit: 9 })) await people.marks.delete(mark._id);
    for (const name of ["identities", "persons"] as const) {
      const collection = people[name] as PersonalStore["identities"];
      for (const row of rows[name]) {
        await collection.delete(row._id);
        await collection.insert(row as never);
      }
    }
    await expect(world.sealedFor(bert)).rejects.toThrow("no key that is left");
    const again = await startErasures(world);
    await pass(clock, 1_000);
    await again.erasures.replayed;
    expect(await world.read(his)).toBeUndefined();
    const back = await world.sealedFor(bert);
    expect(back.pseudonym).not.toBe(his.pseudonym);
    expect(await world.read(back)).toBe(bert.value);
    expect((await people.marks.find({ from: "rotated/", limit: 9 })).length).toBe(1);
    await again.close();
  });
});

describe("killed at its nth write", () => {
  it.each([
    ["the personal store", "lost"],
    ["the personal store", "unacknowledged"],
    ["its own streams", "lost"],
    ["its own streams", "unacknowledged"],
  ] as [string, Fault][])("to %s, which is %s, it goes on where it was, whatever n", async (where, fault) => {
    const ofStreams = where === "its own streams";
    for (let n = 1; ; n += 1) {
      const world = await openWorld();
      const { clock } = world;
      const [hers, his] = [await world.sealedFor(anna), await world.sealedFor(bert)];
      let hit = false;
      let at = 0;
      const dying = faultyStore(ofStreams ? world.store : world.personal, ({ kind, collection }) => {
        if (kind !== "write" || (ofStreams && collection !== "commits")) return undefined;
        at += 1;
        if (at < n) return undefined;
        hit = true;
        // Dead from here on: every later write of this process is lost, too.
        return at === n ? fault : "lost";
      });
      const first = await (ofStreams
        ? startErasures(world, world.people, dying)
        : startErasures(world, await world.open(dying)));
      // One that was not accepted is asked for again.
      const asking = first.erase(hers.pseudonym).catch(() => undefined);
      await pass(clock, 3_000);
      await asking;
      await endEpoch(clock);
      await first.close();
      const second = await startErasures(world);
      await second.erase(hers.pseudonym);
      // The one that died may have begun an epoch: then the next one is the one to end.
      for (let epoch = 1; epoch <= 2; epoch += 1) await endEpoch(clock);
      for (const ms of [6 * dayMs, 3_000, 3_000]) await pass(clock, ms);
      expect(await second.statusOf(hers.pseudonym), `write ${n}`).toBe("completed");
      expect(await world.read(hers)).toBeUndefined();
      expect(await world.read(his)).toBe(bert.value);
      expect(await world.people.persons.get(hers.pseudonym)).toMatchObject({
        erased: true,
        known: true,
        destroyed: true,
      });
      const left = Object.keys((await world.people.persons.get(hers.pseudonym)) ?? {});
      expect(left.filter((name) => name.startsWith("w"))).toEqual([]);
      await second.close();
      const events = await world.events();
      expect(events.filter((name) => name === "DataSubjectErased")).toHaveLength(1);
      expect(events.filter((name) => name === "ErasureCompleted")).toHaveLength(1);
      if (!hit) {
        expect(n).toBeGreaterThan(ofStreams ? 4 : 10);
        return;
      }
    }
  });
});
