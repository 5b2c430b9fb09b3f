import { systemRandom } from "@curfew/runtime/random.ts";
import { mintSecret } from "@curfew/token-format/secret.ts";
import { afterAll, describe, expect, test } from "vitest";
import { playJourney } from "../journey/demo.ts";
import { everyPlace, plantEverywhere, plantedPlaces } from "../journey/planting.ts";
import { openStage, type Stage } from "../journey/stage.ts";

describe("the main job on a real broker and a real database", () => {
  let stage: Stage | undefined;
  afterAll(() => stage?.close());

  test("runs as the embedded one does; no secret stands anywhere but where it leaked; a planted one is found in each place", async () => {
    stage = await openStage({ live: true });
    const { result, found, canary } = await playJourney(stage, () => undefined);
    expect(result.people).toMatchObject({ lower: 60, best: 90 });
    expect(result.pages).toBeGreaterThanOrEqual(2);
    expect(found).toEqual([]);
    for (const kind of ["key", "header", "record", "row", "file", "mail", "webhook", "printed"])
      expect(canary.read, kind).toHaveProperty(
        [kind],
        expect.toSatisfy((n) => n > 0),
      );

    const planted = mintSecret("s", systemRandom);
    // The spans of other processes are not in our hands: the embedded run looks at them.
    await plantEverywhere(stage, planted, { spans: false });
    expect(plantedPlaces((await stage.inspect([planted])).found)).toEqual({ ...everyPlace, span: false });
  });
});
