import { randomUUID } from "node:crypto";
import { once } from "node:events";
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { BreachService } from "@curfew/contracts/gen/curfew/breach/v1/breach_pb.ts";
import { Delivery } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import { IssuerService } from "@curfew/contracts/gen/curfew/issuer/v1/issuer_pb.ts";
import { RevocationService } from "@curfew/contracts/gen/curfew/revocation/v1/revocation_pb.ts";
import { freePort } from "@curfew/deploy/dev/server-process.ts";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { openCast } from "./cast.ts";
import { type Program, readEndpoints, startProgram, startSuite } from "./suite-process.ts";

let dir: string;
const programs: Program[] = [];
const closers: (() => Promise<unknown>)[] = [];
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "curfew-start-"));
});
afterEach(async () => {
  for (const close of closers.splice(0)) await close();
  for (const { child } of programs) child.kill("SIGKILL");
  await Promise.all(programs.splice(0).map(({ ended }) => ended));
  rmSync(dir, { recursive: true, force: true });
});

const data = () => join(dir, "data");
const keep = (program: Program) => {
  programs.push(program);
  return program;
};
const start = (options: Parameters<typeof startSuite>[1] = {}) => keep(startSuite(data(), options));
const startReady = async (options: Parameters<typeof startSuite>[1] = {}) => {
  const program = start(options);
  await program.until("ready");
  return program;
};
/** Starts what must not come up: code, and what it complains of. */
const refusal = async (program: Program) => {
  const { code } = await program.ended;
  expect(program.out).not.toMatch(/^ready/m);
  expect(program.err).not.toMatch(/^\s+at /m);
  return { code, err: program.err };
};
const cast = () => {
  const opened = openCast(() => readEndpoints(data()), data());
  closers.push(opened.close);
  return opened;
};
const stop = async (program: Program, ...signals: NodeJS.Signals[]) => {
  for (const signal of signals) program.child.kill(signal);
  return await program.ended;
};

const policy = `
rules:
  - { name: all, subjects: [workload/crm], scopes: [a:read], resources: [a], audiences: [invoices], purposes: [p], binding: none, delivery: [direct] }
`;
const grant = { scopes: ["a:read"], resources: ["a"], audiences: ["invoices"], purposes: ["p"] };

/**
 * Mutations answer `published: false` after a second without the relay's lease, which takes over six to run out when it has to be
 * waited for; a few tries are for a busy machine.
 */
const publishesAtOnce = async () => {
  const issuer = cast().client(IssuerService, "issuer", "workload/crm");
  for (let tries = 0; tries < 4; tries += 1)
    if ((await issuer.createToken({ requestId: randomUUID(), grant, delivery: Delivery.DIRECT })).published)
      return true;
  return false;
};

/** A token, and one whose revocation opened a case. */
const act = async () => {
  const people = cast();
  const admin = people.client(IssuerService, "issuer", "person/ada");
  await admin.publishPolicy({ requestId: randomUUID(), policy: "all", document: policy });
  const issuer = people.client(IssuerService, "issuer", "workload/crm");
  const create = async () => {
    const { token } = await issuer.createToken({ requestId: randomUUID(), grant, delivery: Delivery.DIRECT });
    return token?.tokenId as string;
  };
  const [kept, leaked] = [await create(), await create()];
  const security = people.client(RevocationService, "revocation", "person/sam");
  await security.revokeToken({ requestId: randomUUID(), tokenId: leaked, reason: 2 });
  const caseId = await vi.waitFor(async () => (await look(leaked)).caseId, patient);
  return { kept, leaked, caseId };
};
/** What is there, as somebody else sees it after a start. */
const look = async (leaked: string) => {
  const people = cast();
  const security = people.client(IssuerService, "issuer", "person/sam");
  const { tokens } = await security.listTokens({});
  const breach = people.client(BreachService, "breach-notifier", "person/dana");
  const { cases } = await breach.listCases({ tokenId: leaked });
  if (!cases[0]) throw new Error("no case yet");
  return { tokens: tokens.map(({ tokenId }) => tokenId).sort(), caseId: cases[0].caseId };
};

const patient = { timeout: 20_000, interval: 50 };

describe("npm start", { timeout: 120_000 }, () => {
  test("says where everything is and that nobody is paged, and leaves nothing behind at a stop", async () => {
    const program = await startReady();
    const endpoints = readEndpoints(data());
    expect(statSync(join(data(), "endpoints.json")).mode & 0o777).toBe(0o600);
    expect(Object.keys(endpoints.services).sort()).toEqual([
      "auditor",
      "breach-notifier",
      "issuer",
      "revocation",
      "verifier",
    ]);
    for (const address of Object.values(endpoints.services)) expect(program.out).toContain(address);
    const year = new Date().getUTCFullYear();
    const checkpoint = await fetch(new URL(`${year}/checkpoint`, endpoints.ledger)).then((answer) => answer.text());
    expect(checkpoint).toBe(readFileSync(join(data(), "ledger", String(year), "checkpoint"), "utf8"));
    const files = [endpoints.ca, ...Object.values(endpoints.identities).flatMap(({ cert, key }) => [cert, key])];
    for (const file of files) expect(existsSync(file), file).toBe(true);
    for (const { key } of Object.values(endpoints.identities)) expect(statSync(key).mode & 0o077).toBe(0);
    for (const text of [endpoints.ca, "person/dana", join(data(), "curfew.yaml"), "Try next", "NOBODY IS BEING PAGED"])
      expect(program.out).toContain(text);
    expect(program.out.indexOf("NOBODY IS BEING PAGED")).toBeLessThan(program.out.lastIndexOf("\nready"));
    // As npm delivers Ctrl-C: from the terminal and from itself. The program's own limit for stopping is 5 s: past it, it ends with 1.
    expect(await stop(program, "SIGINT", "SIGINT")).toEqual({ code: 0, signal: null });
    expect(existsSync(join(data(), "endpoints.json"))).toBe(false);
    expect(program.err).not.toMatch(/"level":"error"|^\s+at /m);
  });

  test("a second start has everything, after SIGTERM and after kill -9, at once", async () => {
    const first = await startReady();
    const { kept, leaked, caseId } = await act();
    const held = { tokens: [kept, leaked].sort(), caseId };
    await Promise.all(closers.splice(0).map((close) => close()));
    expect(await stop(first, "SIGTERM")).toEqual({ code: 0, signal: null });

    const second = await startReady();
    await vi.waitFor(async () => expect(await look(leaked)).toEqual(held), patient);
    await Promise.all(closers.splice(0).map((close) => close()));
    expect(await stop(second, "SIGKILL")).toEqual({ code: null, signal: "SIGKILL" });
    expect(existsSync(join(data(), "endpoints.json"))).toBe(true);

    await startReady();
    await vi.waitFor(async () => expect(await look(leaked)).toEqual(held), patient);
    expect(await publishesAtOnce()).toBe(true);
    expect((await act()).kept).toMatch(/^tok_/);
  });

  test("a second instance on the same directory is refused, and the first goes on", async () => {
    const first = await startReady();
    const { code, err } = await refusal(start());
    expect(code).toBe(2);
    expect(err).toContain(`another instance is using ${data()}`);
    expect(Object.keys(readEndpoints(data()).services)).toHaveLength(5);
    await act();
    expect(await stop(first, "SIGTERM")).toEqual({ code: 0, signal: null });
  });

  test("takes directory, configuration, keys and port from the command line or the environment", async () => {
    const config = join(dir, "mine.yaml");
    const sample = readFileSync(new URL("../../deploy/embedded/curfew.yaml", import.meta.url), "utf8");
    const hook = `paging:\n  targets:\n    - { name: hook, channel: webhook, url: "https://hooks.acme.example/x", secret_file: ${join(dir, "hook")} }\n`;
    writeFileSync(join(dir, "hook"), `whsec_${Buffer.alloc(32, 1).toString("base64")}\n`, { mode: 0o600 });
    writeFileSync(config, sample.replace("curfew.example", "mine.example").replace(/^paging:[\s\S]*/m, hook));
    const port = await freePort();
    const env = {
      CURFEW_DATA_DIR: data(),
      CURFEW_PORT: String(port),
      CURFEW_CONFIG: config,
      CURFEW_KEYS_DIR: join(dir, "keys"),
      CURFEW_AS: "person/ada",
    };
    const program = keep(startProgram("deploy/embedded/main.ts", [], { env, cwd: dir }));
    await program.until("ready");
    const { trustDomain, services } = readEndpoints(data());
    expect({ trustDomain, issuer: services.issuer }).toEqual({
      trustDomain: "mine.example",
      issuer: `localhost:${port}`,
    });
    expect(existsSync(join(dir, "keys"))).toBe(true);
    expect(existsSync(join(data(), "keys"))).toBe(false);
    expect(existsSync(join(data(), "curfew.yaml"))).toBe(false);
    expect(program.out).not.toContain("NOBODY IS BEING PAGED");
  });

  test("--help says how", async () => {
    const program = keep(startProgram("deploy/embedded/main.ts", ["--help"]));
    expect(await program.ended).toEqual({ code: 0, signal: null });
    for (const text of ["--data", "--port", "--config", "--keys", "CURFEW_DATA_DIR"])
      expect(program.out).toContain(text);
  });
});

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
    expect(err).toContain(`cannot listen on localhost:${port}: the port is taken`);
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
