import { chmodSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, expect, test } from "vitest";
import * as config from "./config.ts";

const dirs: string[] = [];
const tempDir = () => {
  const dir = mkdtempSync(join(tmpdir(), "curfew-config-"));
  dirs.push(dir);
  return dir;
};
afterEach(() => {
  for (const dir of dirs.splice(0)) rmSync(dir, { recursive: true });
});

const problemsOf = (fn: () => unknown): readonly string[] => {
  try {
    fn();
  } catch (e) {
    if (e instanceof config.ConfigError) return e.problems;
    throw e;
  }
  return [];
};

const spec = {
  listen: config.address({ about: "where to serve", loopback: true, anyPort: true }),
  graceMs: config.durationMs({ about: "time to drain", minMs: 0, maxMs: 60_000, default: 5000 }),
  replicas: config.integer({ about: "how many", min: 1, max: 5, default: 1 }),
  mode: config.oneOf({ about: "which backend", values: ["embedded", "live"], default: "embedded" }),
  brokers: config.list(config.address({ about: "a broker" }), { about: "the brokers", default: [] }),
  webhookUrl: config.optional(config.url({ about: "where pages go", schemes: ["https"] })),
  verbose: config.boolean({ about: "more lines", default: false }),
  trustDomain: config.string({
    about: "SPIFFE domain",
    pattern: /^[a-z.]+$/,
    expect: "a lower-case name",
    default: "local",
  }),
};

test("environment wins over file, the file over defaults, and the result is typed and frozen throughout", () => {
  const c = config.readConfig(
    { CURFEW_LISTEN: "localhost:0", CURFEW_GRACE_MS: "2s", CURFEW_BROKERS: "a:9092, [::1]:9093", PATH: "/bin" },
    spec,
    { file: { graceMs: "9s", replicas: 3, verbose: true } },
  );
  const grace: number = c.graceMs;
  expect(c).toEqual({
    listen: { host: "localhost", port: 0 },
    graceMs: grace,
    replicas: 3,
    mode: "embedded",
    brokers: [
      { host: "a", port: 9092 },
      { host: "::1", port: 9093 },
    ],
    webhookUrl: undefined,
    verbose: true,
    trustDomain: "local",
  });
  expect(grace).toBe(2000);
  expect(() => Object.assign(c.listen, { port: 1 })).toThrow(TypeError);
  expect(() => Object.assign(c, { mode: "live" })).toThrow(TypeError);
});

test("all mistakes are reported at once, none with its value", () => {
  const hunter2 = "hunter2-in-the-wrong-place";
  const env = {
    CURFEW_GRACE_MS: hunter2,
    CURFEW_REPLICAS: "6",
    CURFEW_MODE: hunter2,
    CURFEW_BROKERS: `a:1,${hunter2}`,
    CURFEW_WEBHOOK_URL: `https://user:${hunter2}@example.test/`,
    CURFEW_VERBOSE: "yes",
    CURFEW_TRUST_DOMAIN: "UPPER",
    CURFEW_GRACEMS: hunter2,
    CURFEW_XYZZY_FROTZ: hunter2,
  };
  const problems = problemsOf(() => config.readConfig(env, spec, { file: { replicsa: 2 } }));
  const text = problems.join("\n");
  expect(problems).toHaveLength(11);
  for (const expected of [
    "CURFEW_LISTEN is required: where to serve",
    "CURFEW_GRACE_MS must be a duration",
    "CURFEW_REPLICAS must be a whole number from 1 to 5: how many",
    "CURFEW_MODE must be one of embedded, live",
    "CURFEW_BROKERS entry 2 must be host:port",
    "CURFEW_WEBHOOK_URL must not contain a user name or password",
    "CURFEW_VERBOSE must be true or false",
    "CURFEW_TRUST_DOMAIN must be a lower-case name",
    "CURFEW_GRACEMS is not a setting; did you mean CURFEW_GRACE_MS?",
    "CURFEW_XYZZY_FROTZ is not a setting",
    "replicsa (in the file) is not a setting; did you mean replicas?",
  ])
    expect(text).toContain(expected);
  expect(text).not.toContain(hunter2);
});

test("variables of another reader are known only when they are named", () => {
  const one = { a: config.string({ about: "a", default: "x" }) };
  const env = { CURFEW_DATA_DIR: "/x" };
  expect(problemsOf(() => config.readConfig(env, one))).toHaveLength(1);
  expect(config.readConfig(env, one, { alsoKnown: ["CURFEW_DATA_DIR"] })).toEqual({ a: "x" });
});

test.each([
  ["250ms", 250],
  ["5s", 5000],
  ["2m", 120_000],
  ["1h", 3_600_000],
  ["30d", 2_592_000_000],
  ["1500", 1500],
])("duration %s is %d ms", (text, ms) => {
  const one = { d: config.durationMs({ about: "d", minMs: 1, maxMs: 2_592_000_000 }) };
  expect(config.readConfig({ CURFEW_D: text }, one).d).toBe(ms);
});

test.each([
  "0.0.0.0:1",
  "evil.test:80",
  "[::]:80",
  "127.0.0.1.evil.test:80",
  "localhost",
  "localhost:65536",
  "localhost:-1",
])("%s is not a loopback address", (text) => {
  expect(problemsOf(() => config.readConfig({ CURFEW_LISTEN: text }, spec))).toHaveLength(1);
});

test("paths are made absolute, must exist where asked, and must be private where asked", () => {
  const dir = tempDir();
  const file = join(dir, "key.pem");
  writeFileSync(file, "x", { mode: 0o600 });
  const one = { keyFile: config.path({ about: "the key", existing: "file", private: true }) };
  expect(config.readConfig({ CURFEW_KEY_FILE: file }, one).keyFile).toBe(file);
  chmodSync(file, 0o640);
  expect(problemsOf(() => config.readConfig({ CURFEW_KEY_FILE: file }, one))[0]).toContain("its owner alone");
  expect(problemsOf(() => config.readConfig({ CURFEW_KEY_FILE: dir }, one))[0]).toContain("existing file");
  expect(problemsOf(() => config.readConfig({ CURFEW_KEY_FILE: "x".repeat(300) }, one))[0]).toContain("ENAMETOOLONG");
  const keys = { keysDir: config.path({ about: "the keys", existing: "directory", private: true }) };
  chmodSync(dir, 0o700);
  expect(problemsOf(() => config.readConfig({ CURFEW_KEYS_DIR: dir }, keys))).toEqual([
    `CURFEW_KEYS_DIR must be a directory that can be used (keys must be private: ${file} is open wider than 0600 (chmod 0600 it)): the keys`,
  ]);
  chmodSync(file, 0o600);
  expect(config.readConfig({ CURFEW_KEYS_DIR: dir }, keys).keysDir).toBe(dir);
  expect(problemsOf(() => config.readConfig({ CURFEW_KEY_FILE: `${file}\u0000` }, one))[0]).toContain(
    "control characters",
  );
});

test("a file is YAML or JSON; a broken, missing or huge one is a mistake that names a line, never content", () => {
  const dir = tempDir();
  const file = join(dir, "curfew.yaml");
  writeFileSync(file, "graceMs: 3s\nlisten: localhost:1\n");
  expect(config.readConfig({}, spec, { file: config.readConfigFile(file) }).graceMs).toBe(3000);
  writeFileSync(file, '{"listen": "localhost:2"}');
  expect(config.readConfig({}, spec, { file: config.readConfigFile(file) }).listen.port).toBe(2);
  writeFileSync(file, "a: 1\nb: [hunter2\n");
  const [broken] = problemsOf(() => config.readConfigFile(file));
  expect(broken).toMatch(/not valid YAML or JSON near line \d/);
  expect(broken).not.toContain("hunter2");
  writeFileSync(file, "- a\n");
  expect(problemsOf(() => config.readConfigFile(file))[0]).toContain("must be a mapping");
  writeFileSync(file, "#".repeat(1024 * 1024 + 1));
  expect(problemsOf(() => config.readConfigFile(file))[0]).toContain("larger than 1 MB");
  expect(problemsOf(() => config.readConfigFile(join(dir, "absent")))[0]).toContain("ENOENT");
  expect(problemsOf(() => config.readConfigFile("/dev/zero"))).toEqual(["/dev/zero is larger than 1 MB"]);
  expect(problemsOf(() => config.readConfigFile(dir))).toEqual([`${dir} cannot be read: EISDIR`]);
});

test("how settings go together is looked at in what could be read, and its mistakes join the others", () => {
  const two = { a: config.integer({ about: "", min: 0, max: 9 }), b: config.integer({ about: "", min: 0, max: 9 }) };
  const check = (given: { readonly a?: number; readonly b?: number }) =>
    (given.a ?? 0) > (given.b ?? 9) ? ["CURFEW_A must not be above CURFEW_B"] : [];
  const together = (a: string, b: string) => () => config.readConfig({ CURFEW_A: a, CURFEW_B: b }, two, { check });
  expect(together("1", "2")()).toEqual({ a: 1, b: 2 });
  expect(problemsOf(together("2", "1"))).toEqual(["CURFEW_A must not be above CURFEW_B"]);
  expect(problemsOf(together("2", "x"))).toEqual([expect.stringContaining("CURFEW_B must be")]);
  expect(problemsOf(() => config.readConfig({ CURFEW_A: "x" }, two, { check: () => ["together"] }))).toHaveLength(3);
});

test("structured values come from the file only, and their mistakes join the others", () => {
  const one = {
    controllers: config.structure<readonly string[]>({
      about: "whose data it is",
      parse: (raw) => {
        if (!Array.isArray(raw)) throw new config.Mistake("must be a sequence");
        return raw.map(String);
      },
    }),
  };
  expect(config.readConfig({}, one, { file: { controllers: ["acme"] } }).controllers).toEqual(["acme"]);
  expect(problemsOf(() => config.readConfig({}, one, { file: { controllers: 1 } }))[0]).toContain("must be a sequence");
  expect(problemsOf(() => config.readConfig({ CURFEW_CONTROLLERS: "[]" }, one))[0]).toContain("only be given in the");
  expect(config.describeConfig(one)).toEqual(["CURFEW_CONTROLLERS  whose data it is (required)"]);
});
