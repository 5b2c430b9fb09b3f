import { expect, it } from "vitest";
import { checkLedger } from "./config.ts";

it("the ledger's files are served only where there are any", () => {
  const ledgerListen = { host: "localhost", port: 7605 };
  expect(() => checkLedger({ ledgerListen })).toThrow("CURFEW_LEDGER_LISTEN needs CURFEW_LEDGER_DIR");
  expect(() => checkLedger({ ledgerListen, witnessPolicyFile: {} })).toThrow("CURFEW_WITNESS_POLICY_FILE needs");
  checkLedger({ ledgerListen, witnessPolicyFile: {}, ledgerDir: "ledger" });
  expect(() => checkLedger({ ledgerDir: "ledger", tsaUrl: "https://tsa.example/" })).toThrow("come together");
  expect(() => checkLedger({ tsaUrl: "https://tsa.example/", tsaCaFile: [] })).toThrow("CURFEW_TSA_URL needs");
  checkLedger({ ledgerDir: "ledger", tsaUrl: "https://tsa.example/", tsaCaFile: [] });
  checkLedger({ ledgerListen, ledgerBucketFile: {} });
  checkLedger({});
  expect(() => checkLedger({ ledgerDir: "ledger", ledgerBucketFile: {} })).toThrow("one place");
});
