import { once } from "node:events";
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { freePort } from "@curfew/deploy/dev/server-process.ts";
import { describe, expect, test } from "vitest";
import { closers, data, dir, keep, refusal, start, startReady, stop } from "./programs.ts";
import { startProgram } from "./suite-process.ts";

describe("a bad configuration", { timeout: 60_000 }, () => {
  // Root may read and write anything, unless it gives up what makes it so.
  const prefix = process.getuid?.() === 0 ? ["setpriv", "--inh-caps=-all", "--bounding-set=-all"] : [];
  const write = (name: string, text: string) => {
    const file = join(dir, name);
    writeFileSync(file, text);
    return file;
  };

  test("all mistakes of options, environment and file are told at once", async () => {
    const config = join(dir, "bad.yaml");
    writeFileSync(
      config,
      `trust_domain: Not A Domain
colour: red
organisation:
  controllers: [{ id: acme, role: boss }]
  people: [{ name: Ada, roles: [king] }]
paging: { targets: [{ name: x, channel: pigeon }] }
`,
    );
    const args = ["--prot", "1", "--port", "99999999", "stray", "--config", config];
    const program = startProgram("deploy/embedded/main.ts", ["--data", data(), ...args], {
      env: { CURFEW_DATA_DIRECTORY: "x", CURFEW_LOG_LEVEL: "loud" },
    });
    const { code, err } = await refusal(keep(program));
    expect(code).toBe(2);
    const mistakes = ["--prot", '"stray"', "--port", "CURFEW_DATA_DIRECTORY", "CURFEW_LOG_LEVEL"];
    const inFile = ["trust_domain", "colour", "controllers[0].role", "people[0].name", "people[0].roles", "targets[0]"];
    for (const mistake of [...mistakes, ...inFile]) expect(err).toContain(mistake);
    expect(existsSync(join(data(), "endpoints.json"))).toBe(false);
    expect(existsSync(join(data(), "bus.db"))).toBe(false);
  });

  test.each([
    ["is not there", () => "/nowhere/curfew.yaml", /curfew\.yaml cannot be read/],
    ["is a directory", () => dir, /cannot be read/],
    ["has no end", () => "/dev/zero", /\/dev\/zero is larger than 1 MB/],
    ["is no YAML", () => write("no.yaml", "a: [1\nb: }"), /no\.yaml/],
    ["holds no settings", () => write("list.yaml", "- 1\n"), /list\.yaml/],
  ])("a configuration file that %s", async (_, file, complaint) => {
    const { code, err } = await refusal(start({ args: ["--config", file()] }));
    expect(code).toBe(2);
    expect(err).toMatch(complaint);
  });

  test.each([
    ["others can read", 0o755, "is open wider than 0700"],
    ["nobody can read", 0o300, "cannot be read (EACCES)"],
  ])("keys that %s", async (_, mode, complaint) => {
    const keys = join(dir, "keys");
    mkdirSync(keys);
    chmodSync(keys, mode);
    const { code, err } = await refusal(start({ args: ["--keys", keys], prefix }));
    expect(code).toBe(2);
    expect(err).toContain(`${keys} ${complaint}`);
  });

  test("keys that are damaged, all of them, told with what else is wrong", async () => {
    await stop(await startReady(), "SIGTERM");
    const keys = join(data(), "keys");
    const files = readdirSync(keys);
    expect(files.length).toBeGreaterThan(2);
    for (const file of files) writeFileSync(join(keys, file), "no key\n");
    const { code, err } = await refusal(start({ args: ["--prot", "1"] }));
    expect(code).toBe(2);
    for (const file of files) expect(err).toContain(`${keys}: ${file}: damaged key file: restore it`);
    expect(err).toContain("--prot");
    for (const file of files) expect(readFileSync(join(keys, file), "utf8")).toBe("no key\n");
  });

  test.each([
    ["issuer", ["pepper-1.key", "secret-challenges.key"]],
    ["verifier", ["epoch-1.key", "pepper-1.key", "secret-identifiers.key"]],
    ["revocation", ["pepper-1.key"]],
    ["auditor", ["epoch-1.key", "secret-identifiers.key", "signing-x%2Fledger.key"]],
    ["breach-notifier", []],
  ])("%s as a process of its own names the damaged keys that it uses, and no others", async (service, its) => {
    const keys = join(dir, "keys");
    mkdirSync(keys, { mode: 0o700 });
    const all = ["epoch-1", "pepper-1", "secret-challenges", "secret-identifiers", "signing-x%2Fledger"];
    for (const name of all) writeFileSync(join(keys, `${name}.key`), "no key\n", { mode: 0o600 });
    const env = { CURFEW_KEYS_DIR: keys };
    const { code, err } = await refusal(keep(startProgram(`services/${service}/main.ts`, [], { env })));
    expect(code).toBe(2);
    expect(err.match(/\S+(?=: damaged key file)/g) ?? []).toEqual(its);
  });

  test("a port that is taken", async () => {
    const port = await freePort();
    const other = createServer().listen(port, "localhost");
    closers.push(async () => other.close());
    await once(other, "listening");
    const program = startProgram("deploy/embedded/main.ts", ["--data", data(), "--port", String(port)]);
    const { code, err } = await refusal(keep(program));
    expect(code).toBe(2);
    expect(err).toContain(`cannot listen on localhost:${port}: the port is taken: end what listens there, or choose`);
    expect(existsSync(join(data(), "endpoints.json"))).toBe(false);
    await startReady(); // and nothing of the failed start stands in the way
  });

  test("a data directory that is a file, told with what is wrong in the configuration", async () => {
    writeFileSync(data(), "");
    const { code, err } = await refusal(start({ args: ["--config", write("red.yaml", "colour: red\n")] }));
    expect(code).toBe(2);
    for (const mistake of [data(), "colour", "trust_domain"]) expect(err).toContain(mistake);
    expect((await refusal(start())).code).toBe(2);
  });

  test("a data directory that everybody may write to", async () => {
    mkdirSync(data());
    chmodSync(data(), 0o777);
    const { code, err } = await refusal(start());
    expect({ code, err }).toEqual({ code: 2, err: expect.stringContaining(`${data()}: chmod o-w it`) });
  });

  test("a data directory that was used before, with files that are damaged or gone, each named", {
    timeout: 120_000,
  }, async () => {
    await stop(await startReady(), "SIGTERM");
    const spoil = async (file: string, content: string | undefined) => {
      const path = join(data(), file);
      const good = readFileSync(path);
      if (content === undefined) rmSync(path);
      else writeFileSync(path, content);
      const { code, err } = await refusal(start());
      expect({ file, code, err }).toEqual({ file, code: 2, err: expect.stringContaining(`\n  ${path} `) });
      expect(err).not.toContain('"stack"');
      writeFileSync(path, good, { mode: 0o600 });
    };
    const noDatabase = "no database".repeat(1_000);
    for (const file of ["bus.db", "store/issuer.db", "lock.db"]) await spoil(file, noDatabase);
    for (const content of ["", undefined]) await spoil("ca/authority.pem", content);
    // Certificates are made anew.
    for (const file of ["service/issuer/cert.pem", "person/ada/key.pem"])
      writeFileSync(join(data(), "identity", file), "no PEM");
    await startReady();
  });

  test("the trust domain of a data directory that has certificates of another", async () => {
    await stop(await startReady(), "SIGTERM");
    const file = join(data(), "curfew.yaml");
    writeFileSync(
      file,
      readFileSync(file, "utf8").replace("trust_domain: curfew.example", "trust_domain: mine.example"),
    );
    const { code, err } = await refusal(start());
    expect(code).toBe(2);
    expect(err).toContain("is not of trust domain mine.example");
  });

  test.each(["", "used before"])("a data directory that cannot be written to %s", async (used) => {
    if (used) await stop(await startReady(), "SIGTERM");
    else mkdirSync(data());
    chmodSync(data(), 0o500);
    closers.push(async () => chmodSync(data(), 0o700));
    const { code, err } = await refusal(start({ prefix }));
    expect(code).toBe(2);
    expect(err).toContain(`${data()} cannot be written to (EACCES)`);
  });

  test.each(["issuer", "verifier", "revocation", "auditor", "breach-notifier"])(
    "%s as a process of its own names every mistake, and needs neither broker nor database for that",
    async (service) => {
      const keys = join(dir, "keys");
      mkdirSync(keys);
      chmodSync(keys, 0o755);
      const env = {
        CURFEW_MONGO_URL: "postgres://x",
        CURFEW_LISTEN: "nowhere",
        CURFEW_LOG_LEVEL: "loud",
        CURFEW_COLOUR: "red",
        CURFEW_CA_FILE: write("ca.pem", "no PEM"),
        CURFEW_IDENTITY_DIR: dir,
        CURFEW_KEYS_DIR: keys,
      };
      // How settings go together is told with the rest.
      const together = { CURFEW_TSA_URL: "https://tsa.example/", CURFEW_REBUILD: "files" };
      const personal = join(dir, "personal");
      mkdirSync(personal);
      chmodSync(personal, service === "auditor" ? 0o755 : 0o700);
      writeFileSync(join(personal, "epoch-1.key"), "no key\n", { mode: 0o600 });
      const given = {
        ...env,
        ...(service === "auditor" && together),
        ...(["verifier", "auditor"].includes(service) && { CURFEW_PERSONAL_KEYS_DIR: personal }),
      };
      const { code, err } = await refusal(keep(startProgram(`services/${service}/main.ts`, [], { env: given })));
      expect(code).toBe(2);
      for (const name of [
        ...Object.keys(given),
        "CURFEW_KAFKA_BROKERS is required",
        "CURFEW_TRUST_DOMAIN is required",
        "CURFEW_IDENTITY_DIR must hold key.pem",
        `${keys} is open wider than 0700`,
      ])
        expect(err).toContain(name);
      if (service === "verifier")
        expect(err).toContain("CURFEW_PERSONAL_KEYS_DIR must hold keys that can be used (epoch-1.key: damaged");
      if (service === "auditor") expect(err).toContain(`${personal} is open wider than 0700`);
      if (service === "auditor") expect(err).toContain("CURFEW_TSA_URL and CURFEW_TSA_CA_FILE come together");
      expect(err).not.toContain("postgres");
    },
  );

  test.each([
    ["npm run live", "deploy/dev/live.ts"],
    ["the preparation of containers", "deploy/prepare.ts"],
  ])("%s says what is wrong, without a stack", async (_, file) => {
    const args = ["--data", data(), "--config", write("red.yaml", "colour: red\n")];
    const { code, err } = await refusal(keep(startProgram(file, args)));
    expect(code).toBe(2);
    for (const mistake of ["colour", "trust_domain"]) expect(err).toContain(mistake);
    const mistyped = await refusal(keep(startProgram(file, ["--data", data(), "--prot", "1"])));
    expect(mistyped.code).toBe(2);
    expect(mistyped.err).toContain("--prot");
  });
});
