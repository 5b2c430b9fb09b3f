import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, expect, test } from "vitest";

let dir: string | undefined;
afterEach(() => {
  if (dir) rmSync(dir, { recursive: true });
  dir = undefined;
});
const run = (env: Record<string, string>, ...args: string[]) =>
  spawnSync(process.execPath, [join(import.meta.dirname, "main.ts"), ...args], {
    env,
    encoding: "utf8",
    timeout: 20_000,
  });

test("a process with a bad configuration names all mistakes at once and ends with 2, without repeating a value", () => {
  dir = mkdtempSync(join(tmpdir(), "curfew-main-"));
  const organisation = join(dir, "organisation.yaml");
  writeFileSync(organisation, "people: [{ name: Ada, roles: [boss] }]\ncolour: red\n");
  const { status, stderr, stdout } = run({
    CURFEW_MONGO_URL: "mongodb://user:hunter2@localhost:1",
    CURFEW_KAFKA_BROKERS: "localhost",
    CURFEW_ORGANISATION_FILE: organisation,
    CURFEW_LISTEN: "localhost:0",
    CURFEW_IDENTITYS_DIR: dir,
  });
  expect(status).toBe(2);
  expect(stdout).toBe("");
  for (const part of [
    "CURFEW_MONGO_URL",
    "CURFEW_KAFKA_BROKERS",
    "people[0].name",
    "people[0].roles",
    "colour",
    "CURFEW_KEYS_DIR is required",
    "CURFEW_IDENTITY_DIR is required",
    "CURFEW_CA_FILE is required",
    "CURFEW_TRUST_DOMAIN is required",
    "CURFEW_IDENTITYS_DIR is not a setting; did you mean CURFEW_IDENTITY_DIR?",
  ])
    expect(stderr).toContain(part);
  expect(stderr).not.toContain("hunter2");
  expect(stderr).not.toMatch(/^\s+at /m);
});

test("certificate, key and authority that do not fit are told before anything is opened", () => {
  dir = mkdtempSync(join(tmpdir(), "curfew-main-"));
  for (const name of ["cert.pem", "key.pem", "ca.pem"]) writeFileSync(join(dir, name), "nothing of the kind");
  writeFileSync(join(dir, "organisation.yaml"), "people: []");
  const { status, stderr } = run({
    CURFEW_MONGO_URL: "mongodb://localhost:1",
    CURFEW_KAFKA_BROKERS: "localhost:1",
    CURFEW_ORGANISATION_FILE: join(dir, "organisation.yaml"),
    CURFEW_LISTEN: "localhost:0",
    CURFEW_KEYS_DIR: dir,
    CURFEW_IDENTITY_DIR: dir,
    CURFEW_CA_FILE: join(dir, "ca.pem"),
    CURFEW_TRUST_DOMAIN: "test.example",
  });
  expect(status).toBe(2);
  expect(stderr).toContain("cert.pem of spiffe://test.example/service/issuer");
  expect(stderr).toContain("key.pem, the key of cert.pem");
  expect(stderr).toContain("CURFEW_CA_FILE must hold the PEM");
});

test("--help lists every setting", () => {
  const { status, stdout } = run({}, "--help");
  expect(status).toBe(0);
  for (const name of ["CURFEW_MONGO_URL", "CURFEW_LISTEN", "CURFEW_IDENTITIES_DIR"]) expect(stdout).toContain(name);
});
