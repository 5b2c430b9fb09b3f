import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, it } from "vitest";
import { verifierKey } from "../testing/rig.ts";
import { parseWitnesses } from "./witness-settings.ts";

const dir = mkdtempSync(join(tmpdir(), "curfew-witnesses-"));
afterAll(() => rmSync(dir, { recursive: true }));
const fileOf = (text: string) => {
  writeFileSync(join(dir, "policy"), text);
  return join(dir, "policy");
};
const good = `log ${verifierKey}\nquorum none\n`;

it("the witnesses of curfew.yaml are a policy file and exceptions for outbound calls, or nobody", () => {
  expect(parseWitnesses(undefined)).toBeUndefined();
  expect(parseWitnesses({})).toBeUndefined();
  const policy_file = fileOf(good);
  expect(parseWitnesses({ policy_file })).toMatchObject({ policy: { quorum: "none" }, allow: [] });
  expect(parseWitnesses({ policy_file, allow: ["127.0.0.1:7610", "[::1]:1"] })?.allow).toHaveLength(2);
});

it.each([
  [[], "a mapping of settings is needed"],
  ["witnesses", "a mapping of settings is needed"],
  [{ policy: "x" }, "witnesses.policy: there is no such setting"],
  [{ allow: ["127.0.0.1:7610"] }, "witnesses.policy_file is required"],
  [{ allow: ["http://127.0.0.1:7610"] }, "witnesses.allow entry 1 must be host:port"],
  [{ policy_file: "/nowhere/policy" }, "witnesses.policy_file must be the path of an existing file"],
])("%j is refused: %s", (section, problem) => expect(() => parseWitnesses(section)).toThrow(problem));

it("a policy that is wrong is refused by its line", () => {
  const refusal = (text: string) => {
    const policy_file = fileOf(text);
    return () => parseWitnesses({ policy_file });
  };
  expect(refusal(`log ${verifierKey}\n`)).toThrow("line 2: the policy ends without a quorum line");
  expect(refusal(`log ${verifierKey}x\nquorum none\n`)).toThrow("line 1:");
  expect(refusal(`${good}${"#".repeat(300_000)}\n`)).toThrow("at most 262144 bytes");
});
