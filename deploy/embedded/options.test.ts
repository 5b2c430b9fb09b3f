import { expect, it } from "vitest";
import { readOptions } from "./options.ts";

it("takes the first of as many ports as there are services, and one for the ledger's files", () => {
  const problemsOf = (port: string) => readOptions(["--port", port], {}).problems;
  expect(problemsOf("65530")).toEqual([]);
  expect(problemsOf("0")).toEqual([]);
  for (const port of ["65531", "65536", "-1", "1e3"])
    expect(problemsOf(port)).toEqual([expect.stringContaining("or the first of six, 1 to 65530")]);
});
