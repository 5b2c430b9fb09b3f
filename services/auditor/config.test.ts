import { expect, it } from "vitest";
import { ledgerProblems } from "./config.ts";

/** As settings are read: what is not given is undefined, what could not be read is absent. */
const notGiven = { ledgerDir: undefined, ledgerBucketFile: undefined, tsaUrl: undefined, tsaCaFile: undefined };
const problems = (given: Parameters<typeof ledgerProblems>[0]) => ledgerProblems({ ...notGiven, ...given });
const ledgerListen = { host: "localhost", port: 7605 };
const tsaUrl = "https://tsa.example/";

it("the ledger's files are served only where there are any", () => {
  expect(problems({ ledgerListen, witnessPolicyFile: {}, rebuild: "files" })).toEqual([
    expect.stringContaining("CURFEW_LEDGER_LISTEN needs CURFEW_LEDGER_DIR"),
    expect.stringContaining("CURFEW_WITNESS_POLICY_FILE needs"),
    expect.stringContaining("CURFEW_REBUILD=files needs"),
  ]);
  expect(problems({ ledgerDir: "ledger", tsaUrl })).toEqual([expect.stringContaining("come together")]);
  expect(problems({ tsaUrl, tsaCaFile: [] })).toEqual([expect.stringContaining("CURFEW_TSA_URL needs")]);
  const both = { ledgerDir: "ledger", ledgerBucketFile: {} };
  expect(problems(both)).toEqual([expect.stringContaining("one place")]);
  expect(problems({ ledgerListen, witnessPolicyFile: {}, ledgerDir: "ledger" })).toEqual([]);
  expect(problems({ ledgerDir: "ledger", tsaUrl, tsaCaFile: [] })).toEqual([]);
  expect(problems({ ledgerListen, ledgerBucketFile: {} })).toEqual([]);
  expect(problems({})).toEqual([]);
});

it("what was given and could not be read is wrong by itself: nothing else is asked for in its place", () => {
  const { tsaCaFile, ledgerBucketFile, ...rest } = notGiven;
  expect(ledgerProblems({ ...rest, ledgerBucketFile, ledgerDir: "ledger", tsaUrl })).toEqual([]);
  expect(ledgerProblems({ ...rest, tsaCaFile, ledgerListen })).toEqual([]);
});
