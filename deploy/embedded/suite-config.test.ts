import { generateKeyPairSync } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { auditorSpec } from "@curfew/auditor/config.ts";
import { erasureSettings } from "@curfew/auditor/people/erasure-settings.ts";
import { verifierKeyText } from "@curfew/ledger/note-key.ts";
import { formatPolicy } from "@curfew/ledger/policy.ts";
import { readConfig } from "@curfew/runtime/config.ts";
import { afterAll, beforeAll, expect, it } from "vitest";
import { openTsa, type Tsa } from "../../test/tools/tsa.ts";
import { readSuiteConfig } from "./suite-config.ts";

const dir = mkdtempSync(join(tmpdir(), "curfew-config-"));
let tsa: Tsa;
beforeAll(async () => {
  tsa = await openTsa();
});
afterAll(() => {
  tsa.close();
  rmSync(dir, { recursive: true, force: true });
});

const sample = readFileSync(new URL("curfew.yaml", import.meta.url), "utf8");
const read = (more: string, start = sample) => {
  const file = join(dir, "curfew.yaml");
  writeFileSync(file, start + more);
  return readSuiteConfig(file, () => undefined);
};
const asProcess = (config: ReturnType<typeof read>) => readConfig(config.auditorEnvironment, auditorSpec);

it("tells an auditor that is a process of its own what it tells the suite of one process", () => {
  const policy = join(dir, "policy");
  const key = verifierKeyText("test.example/ledger", generateKeyPairSync("ed25519").publicKey);
  writeFileSync(policy, `log ${key}\nquorum none\n`);
  const config = read(
    `witnesses: { policy_file: ${policy}, allow: ["127.0.0.1:7610", "[::1]:7611"] }
timestamps: { url: "https://tsa.example/", ca_file: ${tsa.caFile}, allow: ["127.0.0.1:7612"] }
`,
    sample.replace("{ epoch_days: 30, backup_days: 35 }", "{ epoch_days: 7, backup_days: 0 }"),
  );
  const told = asProcess(config);
  expect(told.witnessAllow).toEqual(["127.0.0.1:7610", "[::1]:7611"]);
  expect(told.witnessAllow).toEqual(config.witnessing?.allow);
  for (const each of [told.witnessPolicyFile, config.witnessing?.policy])
    expect(each && formatPolicy(each)).toContain(`log ${key}\n`);
  expect({ url: told.tsaUrl, authorities: told.tsaCaFile, allow: told.tsaAllow }).toEqual(config.timestamping);
  expect(told.epochDays).toBe(7);
  expect(erasureSettings(told)).toEqual(config.personalData);
});

it("tells it nothing about what is left out", () => {
  const config = read("", sample.replace(/^personal_data:.*$/m, ""));
  expect(config.auditorEnvironment).toEqual({});
  expect(erasureSettings(asProcess(config))).toEqual(config.personalData);
});
