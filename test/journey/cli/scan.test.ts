import { execFileSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { mintSecret } from "@curfew/token-format/secret.ts";
import { describe, expect, it } from "vitest";
import { at, create, curfew, json, main, run, secrets, stateOf, until } from "./rig.ts";

describe("scan", () => {
  const git = (folder: string, ...args: string[]) =>
    execFileSync("git", ["-c", "user.name=T", "-c", "user.email=t@t.example", ...args], { cwd: folder });
  /** A repository whose only secret was removed in its last commit. */
  const leak = (name: string, secret: string) => {
    const repository = at(name);
    mkdirSync(repository);
    git(repository, "init", "-q");
    writeFileSync(join(repository, "a.env"), `T=${secret}\n`);
    git(repository, "add", ".");
    git(repository, "commit", "-qm", "x");
    git(repository, "rm", "-q", "a.env");
    git(repository, "commit", "-qm", "y");
    return repository;
  };

  const reportsOf = async (token: string, atLeast: number) =>
    await until("the reports", async () => {
      const ofLeaks = ["--type", "curfew.leak.reported.v1", "--limit", "1000"];
      const events = await json("audit", "list", "--token", token, ...ofLeaks, "--as", "person/dana");
      return events.length >= atLeast ? events : undefined;
    });

  it("finds a removed secret in the history, exit 1, and --report ends its token; then only dead ones are left, exit 0", async () => {
    const { token, secret } = await create("g.secret");
    const repository = leak("leaked", secret);
    const scanned = ["scan", repository, "--as", "person/sam", "-o", "json"];
    const found = await curfew(...scanned);
    expect(found.code).toBe(1);
    const location = expect.stringMatching(/leaked@[0-9a-f]{12}:a\.env:1$/);
    expect(JSON.parse(found.out)).toEqual([{ location, token, generation: 1, state: "live" }]);
    expect(await stateOf(token)).toBe("live");
    const reported = await curfew(...scanned, "--report", "--public");
    expect(reported.code).toBe(1);
    expect(JSON.parse(reported.out)).toEqual([{ location, token, generation: 1, state: "revoked" }]);
    expect(await stateOf(token)).toBe("revoked");
    const after = await curfew(...scanned, "--report", "--public");
    expect(after.code).toBe(0);
    expect(JSON.parse(after.out)).toEqual([{ location, token, generation: 1, state: "dead" }]);
    const leaks = await reportsOf(token, 1);
    expect(leaks).toHaveLength(1); // the second report was the first one again
    const { body } = await json("audit", "show", leaks[0].event, "--as", "person/dana");
    expect(body.sighting).toMatchObject({ kind: "git", public: true, exposedSince: expect.any(String) });
  }, 60_000);

  it("lists and reports at most 100 places of a secret", async () => {
    const { token, secret } = await create("m.secret");
    const { code, out, err } = await run(
      process.execPath,
      [main, "scan", "-", "--report", "--as", "person/sam", "-o", "json"],
      `${secret}\n`.repeat(1_000),
    );
    expect(code).toBe(1);
    expect(JSON.parse(out)).toHaveLength(100);
    expect(err).toContain("900 more places");
    const leaks = await reportsOf(token, 100);
    expect(leaks).toHaveLength(100);
  }, 60_000);

  it("names that would steer a terminal are escaped, and strangers' secrets are nobody's business", async () => {
    const { secret } = await create("n.secret");
    mkdirSync(at("names"));
    writeFileSync(at("names/\x1b[2J\n\u202ex\u009b.txt"), secret);
    const foreign = mintSecret("s", (n) => Buffer.alloc(n, 7));
    writeFileSync(at("names/foreign.txt"), foreign);
    const scanned = ["scan", at("names"), "--as", "person/sam"];
    const table = await curfew(...scanned);
    expect(table.out).toContain("\\u001b[2J\\n\\u202ex\\u009b.txt:1");
    expect(table.out).not.toMatch(/[^\P{Cc}\n]|\u202e/u);
    expect(JSON.parse((await curfew(...scanned, "-o", "json")).out)).toHaveLength(1);
    secrets.push(foreign);
  });

  it("what could not be searched is said, exit 2", async () => {
    const repository = leak("broken", "nothing");
    writeFileSync(join(repository, ".git/config"), "[core\n");
    const { code, err } = await curfew("scan", repository, "--as", "person/sam");
    expect(code).toBe(2);
    expect(err).toContain("its history was not searched");
  });

  it("a command line with a secret on it is answered without it", async () => {
    const { secret } = await create("l.secret");
    expect((await curfew(secret)).code).toBe(2);
    expect((await curfew("token", "show", secret, "--as", "person/sam")).code).toBe(2);
    expect((await curfew("scan", secret, "--as", "person/sam")).code).toBe(2);
  });
});
