import { systemClock } from "@curfew/runtime/clock.ts";
import { describe, expect, it, vi } from "vitest";
import { sharedByKey } from "./shared.ts";

/** Work that ends when it is told to, and how often it began. */
const openWork = () => {
  const begun: { readonly key: string; readonly end: PromiseWithResolvers<number> }[] = [];
  const ask = sharedByKey((key: string) => {
    const end = Promise.withResolvers<number>();
    begun.push({ key, end });
    return end.promise;
  }, systemClock);
  return { begun, ask };
};
const turn = () => new Promise((resolve) => setImmediate(resolve));

describe("shared work", () => {
  it("that hangs does not hold back those who ask after it", async () => {
    const { begun, ask } = openWork();
    const hung = ask("a");
    await turn();
    const late = ask("a");
    await vi.waitFor(() => expect(begun).toHaveLength(2), { timeout: 5_000 });
    begun[1]?.end.resolve(2);
    expect(await late).toBe(2);
    begun[0]?.end.resolve(1);
    expect(await hung).toBe(1);
  });

  it("is done once for all who ask in a turn, and once more, begun afterwards, for all who ask while it is done", async () => {
    const { begun, ask } = openWork();
    const early = [ask("a"), ask("a")];
    await turn();
    const late = [ask("a"), ask("a")];
    await turn();
    expect(begun).toHaveLength(1);
    begun[0]?.end.resolve(1);
    expect(await Promise.all(early)).toEqual([1, 1]);
    await turn();
    expect(begun).toHaveLength(2);
    begun[1]?.end.resolve(2);
    expect(await Promise.all(late)).toEqual([2, 2]);
  });

  it("of one key does not wait for that of another", async () => {
    const { begun, ask } = openWork();
    const asked = [ask("a"), ask("b")];
    await turn();
    expect(begun.map(({ key }) => key)).toEqual(["a", "b"]);
    for (const { end } of begun) end.resolve(1);
    expect(await Promise.all(asked)).toEqual([1, 1]);
  });

  it("that fails fails those who shared it, and nobody after them", async () => {
    const { begun, ask } = openWork();
    const failing = [ask("a"), ask("a")].map((each) => each.catch((error: Error) => error.message));
    await turn();
    const next = ask("a");
    begun[0]?.end.reject(new Error("out"));
    expect(await Promise.all(failing)).toEqual(["out", "out"]);
    await turn();
    begun[1]?.end.resolve(2);
    expect(await next).toBe(2);
  });
});
