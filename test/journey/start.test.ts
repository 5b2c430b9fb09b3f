import { spawnSync } from "node:child_process";
import { randomUUID } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { BreachService } from "@curfew/contracts/gen/curfew/breach/v1/breach_pb.ts";
import { Delivery } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import { IssuerService } from "@curfew/contracts/gen/curfew/issuer/v1/issuer_pb.ts";
import { RevocationService } from "@curfew/contracts/gen/curfew/revocation/v1/revocation_pb.ts";
import { freePort } from "@curfew/deploy/dev/server-process.ts";
import { describe, expect, test, vi } from "vitest";
import { openCast } from "./cast.ts";
import { closers, data, dir, keep, refusal, start, startReady, stop } from "./programs.ts";
import { readEndpoints, startProgram, startSuite } from "./suite-process.ts";

const cast = () => {
  const opened = openCast(() => readEndpoints(data()), data());
  closers.push(opened.close);
  return opened;
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

  test("what it says to try next works as it stands, wherever the data is", async () => {
    const there = join(dir, "it's here, in $HOME");
    const program = keep(startSuite(there));
    await program.until("ready");
    const commands = [...program.out.matchAll(/^ {2}npx curfew (.*)$/gm)].map(([, args]) => args as string);
    const shop = join(dir, "shop");
    mkdirSync(shop);
    const root = fileURLToPath(new URL("../../", import.meta.url));
    const type = (args: string) => {
      const typed = `"$NODE" "$CURFEW" ${args.replace("deploy/embedded", join(root, "deploy/embedded"))}`;
      const env = { ...process.env, NODE: process.execPath, CURFEW: join(root, "packages/cli/main.ts") };
      const { status, stdout, stderr } = spawnSync("sh", ["-c", typed], { cwd: shop, encoding: "utf8", env });
      return { args, status, stdout, stderr };
    };
    const [seeCases, ...others] = commands.toReversed();
    // The scan says by its exit code that it found a live secret.
    for (const args of others.toReversed())
      expect(type(args)).toMatchObject({ args, status: args.startsWith("scan ") ? 1 : 0 });
    await vi.waitFor(() => expect(type(seeCases as string).stdout).toMatch(/^case\/tok_\S+ +SIGNALLED /m), patient);
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
