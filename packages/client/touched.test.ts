import { Outcome } from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import { describe, expect, test } from "vitest";
import { InvalidRequest } from "./access-request.ts";
import type { Use } from "./open-use.ts";
import { openSdk, request, until, verifier } from "./testing/sdk.ts";

describe("what accesses touch", () => {
  const person = (n: number) => ({ identifierType: "customer-id", value: `c-${n}` });

  test("adds up to one completion", async () => {
    const sdk = await openSdk();
    const useId = await sdk.authorize(verifier.token().secret, request, async (use) => {
      use.touched({ records: 2, people: [person(1)] });
      use.touched({ records: 3, people: [person(2)], unnamedPeople: 4 });
      return use.useId;
    });
    await until(() => verifier.completedOf(useId).length).toBe(1);
    expect(verifier.completedOf(useId)[0]).toMatchObject({
      outcome: Outcome.COMPLETED,
      records: 5n,
      unnamedPeople: 4n,
      part: 1,
      parts: 1,
    });
    expect(verifier.completedOf(useId)[0]?.people).toMatchObject(
      [1, 2].map((n) => ({ controller: "acme", ...person(n) })),
    );
  });

  test("counts even when the access fails, and the access's own error comes through", async () => {
    const sdk = await openSdk();
    let useId = "";
    const failing = sdk.authorize(verifier.token().secret, request, (use) => {
      ({ useId } = use);
      use.touched({ records: 2 });
      throw new RangeError("disk");
    });
    await expect(failing).rejects.toThrow(new RangeError("disk"));
    await until(() => verifier.completedOf(useId)[0]).toMatchObject({ outcome: Outcome.FAILED, records: 2n });
  });

  test("goes in parts of at most 1,000 people, the last of which names their number", async () => {
    const sdk = await openSdk();
    const useId = await sdk.authorize(verifier.token().secret, { ...request, maxPeople: 2_500 }, (use) => {
      use.touched({ records: 9, people: Array.from({ length: 2_500 }, (_, i) => person(i)) });
      return use.useId;
    });
    await until(() => verifier.completedOf(useId).length).toBe(3);
    const parts = verifier.completedOf(useId).sort((a, b) => a.part - b.part);
    expect(parts.map(({ people, part, parts }) => [people.length, part, parts])).toEqual([
      [1_000, 1, 0],
      [1_000, 2, 0],
      [500, 3, 3],
    ]);
    expect(parts.reduce((sum, { records }) => sum + records, 0n)).toBe(9n);
  });

  test("is counted only, where over 100,000 people were declared", async () => {
    const sdk = await openSdk();
    const useId = await sdk.authorize(verifier.token().secret, { ...request, maxPeople: 100_001 }, (use) => {
      use.touched({ people: [person(1), person(2)] });
      return use.useId;
    });
    await until(() => verifier.completedOf(useId)[0]).toMatchObject({ people: [], unnamedPeople: 2n });
  });

  test("must be right, and told before the access ends", async () => {
    const sdk = await openSdk();
    let kept: Use | undefined;
    await sdk.authorize(verifier.token().secret, request, (use) => {
      kept = use;
      const wrong = [
        { records: -1 },
        { records: 1.5 },
        { people: [{ identifierType: "Customer Id", value: "x" }] },
        { people: [{ identifierType: "email", value: "" }] },
        { people: [{ identifierType: "email", value: "\ud800" }] },
        { people: [{ identifierType: "email", value: "x".repeat(513) }] },
      ];
      for (const what of wrong) expect(() => use.touched({ unnamedPeople: 1, ...what })).toThrow(InvalidRequest);
    });
    expect(() => kept?.touched({ records: 1 })).toThrow("has ended");
    await until(() => [...verifier.completed.values()][0]).toMatchObject({ records: 0n, unnamedPeople: 0n });
  });
});
