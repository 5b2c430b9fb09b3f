import { expect, it } from "vitest";
import { ledgerProblems } from "./config.ts";

it("the ledger's files are served only where there are any", () => {
  const ledgerListen = { host: "localhost", port: 7605 };
  const tsaUrl = "https://tsa.example/";
  expect(ledgerProblems({ ledgerListen, witnessPolicyFile: {}, rebuild: "files" })).toEqual([
    expect.stringContaining("CURFEW_LEDGER_LISTEN needs CURFEW_LEDGER_DIR"),
    expect.stringContaining("CURFEW_WITNESS_POLICY_FILE needs"),
    expect.stringContaining("CURFEW_REBUILD=files needs"),
  ]);
  expect(ledgerProblems({ ledgerDir: "ledger", tsaUrl })).toEqual([expect.stringContaining("come together")]);
  expect(ledgerProblems({ tsaUrl, tsaCaFile: [] })).toEqual([expect.stringContaining("CURFEW_TSA_URL needs")]);
  const both = { ledgerDir: "ledger", ledgerBucketFile: {} };
  expect(ledgerProblems(both)).toEqual([expect.stringContaining("one place")]);
  expect(ledgerProblems({ ledgerListen, witnessPolicyFile: {}, ledgerDir: "ledger" })).toEqual([]);
  expect(ledgerProblems({ ledgerDir: "ledger", tsaUrl, tsaCaFile: [] })).toEqual([]);
  expect(ledgerProblems({ ledgerListen, ledgerBucketFile: {} })).toEqual([]);
  expect(ledgerProblems({})).toEqual([]);
});
