import { measureFoldMemory } from "@curfew/verifier/testing/fold-memory.ts";
import { bytes, exponent, type Figure, perSecond } from "./figures.ts";

/** What a verifier keeps of each live token, as many as there may be. */
export const memory = async ({ quick }: { readonly quick: boolean }): Promise<Figure[]> => {
  const measured = [10_000, 100_000, ...(quick ? [] : [1_000_000])].map(measureFoldMemory);
  const figures: Figure[] = measured.map(({ tokens, bytesPerToken, appliedPerSecond, lookUpNs }) => ({
    what: `verifier memory per live token at ${tokens}`,
    value: bytesPerToken,
    show: bytes,
    ...(tokens === 1_000_000 && { target: { most: 800 } }),
    notes: [`applied ${perSecond(appliedPerSecond)}; one look-up ${Math.round(lookUpNs)} ns`],
  }));
  const show = (value: number) => value.toFixed(2);
  const growth = (of: "bytesPerToken" | "lookUpNs") => exponent(measured.map((m) => ({ x: m.tokens, y: m[of] })));
  return [
    ...figures,
    { what: "    growth of the bytes of a token with the tokens, exponent", value: growth("bytesPerToken"), show },
    { what: "    growth of a look-up with the tokens, exponent", value: growth("lookUpNs"), show },
  ];
};
