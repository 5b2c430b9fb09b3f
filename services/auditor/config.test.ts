import { expect, it } from "vitest";
import { checkLedger } from "./config.ts";

it("the ledger's files are served only where there are any", () => {
  const ledgerListen = { host: "localhost", port: 7605 };
  expect(() => checkLedger({ ledgerListen })).toThrow("CURFEW_LEDGER_LISTEN needs CURFEW_LEDGER_DIR");
  checkLedger({ ledgerListen, ledgerDir: "ledger" });
  checkLedger({});
});
