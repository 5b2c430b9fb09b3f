import { glob } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import type { DescFile } from "@bufbuild/protobuf";
import { expect, test } from "vitest";
import { allowedCallers, allows, authorization, type CallerRule, type Directory, type Role } from "./authorization.ts";
import type { Caller } from "./identity.ts";
import { methodName } from "./service-definition.ts";

const gen = fileURLToPath(new URL("../contracts/gen/", import.meta.url));

const allMethods = async (): Promise<string[]> => {
  const methods: string[] = [];
  for await (const path of glob("**/*_pb.ts", { cwd: gen })) {
    const module = (await import(gen + path)) as Record<string, { kind?: string }>;
    for (const value of Object.values(module)) {
      if (value.kind !== "file") continue;
      for (const service of (value as DescFile).services) methods.push(...service.methods.map(methodName));
    }
  }
  return methods;
};

test("every method of every service in the contracts has a row with at least one rule, and there is no other row", async () => {
  const methods = await allMethods();
  expect(methods).toContain("curfew.verifier.v1.VerifierService/VerifyToken");
  expect(new Set(Object.keys(authorization))).toEqual(new Set(methods));
  for (const [method, rules] of Object.entries(authorization)) expect(rules.length, method).toBeGreaterThan(0);
});

const caller = (kind: Caller["kind"], name: string): Caller => ({ kind, name, uri: `spiffe://t/${kind}/${name}` });
const roles: Record<string, Role[]> = { alice: ["security"], dora: ["dpo", "oncall"] };
const self = caller("service", "issuer");
const directory: Directory = {
  rolesOf: (name) => new Set(roles[name]),
  isAudience: (name) => name === "billing-db",
};

const matrix: [CallerRule, string[]][] = [
  [{ kind: "any" }, ["alice", "dora", "billing-db", "batch", "verifier", "issuer", "stranger"]],
  [{ kind: "workload" }, ["billing-db", "batch"]],
  [{ kind: "audience" }, ["billing-db"]],
  [{ kind: "person", role: "security" }, ["alice"]],
  [{ kind: "person", role: "dpo" }, ["dora"]],
  [{ kind: "person", role: "admin" }, []],
  [{ kind: "service", name: "verifier" }, ["verifier"]],
  [{ kind: "replica" }, ["issuer"]],
];
const callers = [
  caller("person", "alice"),
  caller("person", "dora"),
  caller("person", "stranger"),
  caller("workload", "billing-db"),
  caller("workload", "batch"),
  caller("service", "verifier"),
  caller("service", "issuer"),
];

test.each(matrix)("the rule %j lets in exactly %j", (rule, names) => {
  const allowed = callers.filter((each) => allows([rule], each, directory, self)).map((each) => each.name);
  expect(new Set(allowed)).toEqual(new Set(names));
});

test("a name is worth nothing under another kind: a workload called verifier, a person called billing-db, a workload called alice", () => {
  expect(allows([{ kind: "service", name: "verifier" }], caller("workload", "verifier"), directory, self)).toBe(false);
  expect(allows([{ kind: "audience" }], caller("person", "billing-db"), directory, self)).toBe(false);
  expect(allows([{ kind: "replica" }], caller("workload", "issuer"), directory, self)).toBe(false);
  expect(allows([{ kind: "person", role: "security" }], caller("workload", "alice"), directory, self)).toBe(false);
});

test("no rules let nobody in", () => {
  for (const each of callers) {
    expect(allows([], each, directory, self)).toBe(false);
    expect(allows(undefined, each, directory, self)).toBe(false);
  }
});

test("whom a method is for, in words", () => {
  expect(allowedCallers(matrix.map(([rule]) => rule)).split(", ")).toEqual([
    "everybody",
    "workloads",
    "workloads that are resource services",
    "people with the role security",
    "people with the role dpo",
    "people with the role admin",
    "service/verifier",
    "replicas of the service",
  ]);
  expect(allowedCallers([])).toBe("nobody");
});
