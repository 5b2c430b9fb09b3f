import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { parsePaging } from "@curfew/breach-notifier/paging.ts";
import { configFileOf, openSuite, type Suite } from "@curfew/deploy/embedded/suite.ts";
import { readSuiteConfig } from "@curfew/deploy/embedded/suite-config.ts";
import { openLog } from "@curfew/runtime/log.ts";
import { mintSecret } from "@curfew/token-format/secret.ts";
import { secretVariants } from "@curfew/token-format/variants.ts";
import { afterAll, beforeAll, describe, expect, it } from "vitest";

/** The `curfew` command as people run it: a process of its own against a running suite. */
const root = fileURLToPath(new URL("../../", import.meta.url));
const main = join(root, "packages/cli/main.ts");
let dir: string;
let dataDir: string;
let suite: Suite;
/** Where pages go. */
const receiver = createServer((request, response) => {
  request.resume().on("end", () => response.writeHead(204).end());
});
/** Everything that any command printed. */
const printed: string[] = [];
const secrets: string[] = [];

interface Ran {
  readonly code: number;
  readonly out: string;
  readonly err: string;
}

const run = async (command: string, args: readonly string[], input = "", env: NodeJS.ProcessEnv = {}): Promise<Ran> => {
  const child = spawn(command, args, { cwd: dir, env: { ...process.env, CURFEW_DATA_DIR: dataDir, ...env } });
  child.stdin.on("error", () => undefined); // it need not read what it is given
  child.stdin.end(input);
  const texts = [child.stdout, child.stderr].map(async (stream) =>
    Buffer.concat(await stream.toArray()).toString("utf8"),
  );
  const [code] = (await once(child, "close")) as [number];
  const [out = "", err = ""] = await Promise.all(texts);
  printed.push(out, err);
  return { code, out, err };
};
const curfew = (...args: string[]) => run(process.execPath, [main, ...args]);
const json = async (...args: string[]) => {
  const { code, out, err } = await curfew(...args, "-o", "json");
  expect({ code, err: code === 0 ? "" : err }).toEqual({ code: 0, err: "" });
  return JSON.parse(out);
};
const at = (name: string) => join(dir, name);
const secretIn = (name: string) => {
  const secret = readFileSync(at(name), "utf8").trim();
  secrets.push(secret);
  return secret;
};
const until = async <T>(what: string, ask: () => Promise<T | undefined>): Promise<T> => {
  for (let n = 0; n < 100; n += 1) {
    const answer = await ask();
    if (answer !== undefined) return answer;
    await sleep(50);
  }
  throw new Error(`${what}: not there`);
};

const grant = [
  ["--scope", "invoices:read"],
  ["--resource", "invoices/**"],
  ["--audience", "invoices"],
  ["--purpose", "billing"],
  ["--category", "financial"],
].flat();
const use = ["--scope", "invoices:read", "--resource", "invoices/1", "--purpose", "billing", "--controller", "acme"];
const create = async (file: string) => {
  const { token } = await json("token", "create", "--as", "workload/shop", ...grant, "--secret-file", at(file));
  return { token: token as string, secret: secretIn(file) };
};
const verify = (file: string) =>
  curfew("verify-token", "--as", "workload/invoices", ...use, "--category", "financial", "--secret-file", at(file));
const stateOf = async (token: string) => (await json("token", "show", token, "--as", "person/sam")).state;

beforeAll(async () => {
  dir = mkdtempSync(join(tmpdir(), "curfew-cli-"));
  dataDir = join(dir, "data");
  receiver.listen(0, "127.0.0.1");
  await once(receiver, "listening");
  const address = `127.0.0.1:${(receiver.address() as AddressInfo).port}`;
  writeFileSync(at("webhook"), `whsec_${Buffer.alloc(32, 1).toString("base64")}\n`, { mode: 0o600 });
  const target = `{ name: hook, channel: webhook, url: "http://${address}/", secret_file: ${at("webhook")} }`;
  const sample = readFileSync(join(root, "deploy/embedded/curfew.yaml"), "utf8").replace(/^paging:[\s\S]*/m, "");
  const withPaging = () => `${sample}\npaging: { allow: ["${address}"], targets: [${target}] }\n`;
  const config = readSuiteConfig(configFileOf(dataDir, withPaging), parsePaging);
  const log = openLog({ service: "test", level: "error", write: (line) => printed.push(line) });
  suite = await openSuite({ dataDir, config, port: 0, reflection: false, log });
  const policy = readFileSync(join(root, "deploy/embedded/policy.yaml"), "utf8");
  writeFileSync(at("policy.yaml"), policy.replace("[workload/billing]", "[workload/billing, workload/shop]"));
}, 60_000);
afterAll(async () => {
  await suite.close();
  receiver.closeAllConnections();
  receiver.close();
  rmSync(dir, { recursive: true, force: true });
});

describe("identities and policies", () => {
  it("an identity is made once, and that it was made is on the log", async () => {
    const made = await json("identity", "create", "workload/shop");
    expect(made).toEqual({
      identity: "workload/shop",
      directory: join(dataDir, "identity/workload/shop"),
      until: expect.stringMatching(/^\d{4}-.*Z$/),
    });
    expect(statSync(join(made.directory, "key.pem")).mode & 0o777).toBe(0o600);
    await until("IdentityCreated of workload/shop", async () => {
      const events = await json("audit", "list", "--as", "person/dana", "--type", "curfew.identity.created.v1");
      for (const { event } of events.toReversed()) {
        const { body } = await json("audit", "show", event, "--as", "person/dana");
        if (body.spiffeId === "spiffe://curfew.example/workload/shop") return event;
      }
      return undefined;
    });
    const again = await curfew("identity", "create", "workload/shop");
    expect(again).toMatchObject({ code: 2, out: "" });
    expect(again.err).toContain("--renew");
    expect((await curfew("identity", "create", "--renew", "workload/shop")).code).toBe(0);
    expect((await curfew("identity", "create", "service/issuer")).code).toBe(2);
  }, 60_000);

  it("a directory without the authority's key gets no new authority", async () => {
    const copy = at("copy");
    mkdirSync(join(copy, "ca"), { recursive: true });
    writeFileSync(join(copy, "ca/ca.pem"), readFileSync(join(dataDir, "ca/ca.pem")));
    expect(await curfew("identity", "create", "workload/x", "--data", copy)).toMatchObject({ code: 2, out: "" });
    expect(existsSync(join(copy, "ca/authority.pem"))).toBe(false);
  });

  it("a policy is published by who may, from a file of sensible size", async () => {
    expect(await json("policy", "publish", "default", at("policy.yaml"), "--as", "person/ada")).toEqual({
      policy: "default",
      version: 1,
      onTheLog: true,
    });
    const refused = await curfew("policy", "publish", "default", at("policy.yaml"), "--as", "person/sam");
    expect(refused).toMatchObject({ code: 3, out: "" });
    expect(refused.err).toContain("PERMISSION_DENIED");
    expect((await curfew("policy", "publish", "default", "/dev/zero", "--as", "person/ada")).code).toBe(2);
    expect((await curfew("policy", "publish", "default", at("none.yaml"), "--as", "person/ada")).code).toBe(2);
  });
});

describe("tokens", () => {
  it("are created with their secret in a new file, and listed and shown without it", async () => {
    const { token } = await create("a.secret");
    expect(statSync(at("a.secret")).mode & 0o777).toBe(0o600);
    const shown = await json("token", "show", token, "--as", "workload/shop");
    expect(shown).toMatchObject({
      token,
      subject: "spiffe://curfew.example/workload/shop",
      state: "live",
      generation: 1,
      scopes: ["invoices:read"],
      policy: "default 1",
    });
    const listed = await curfew("token", "list", "--as", "workload/shop");
    expect(listed.out.split("\n")[0]).toMatch(/^TOKEN +SUBJECT +STATE +GENERATION +EXPIRES +SCOPES$/);
    expect(listed.out).toContain(token);
    expect(listed.out).not.toMatch(/[^\P{Cc}\n]/u);
  });

  it("without a file the secret waits, and is collected once; no file is overwritten, none left behind empty", async () => {
    const made = await curfew("token", "create", "--as", "workload/shop", ...grant, "-o", "json");
    const { token } = JSON.parse(made.out);
    expect(made.err).toContain(`curfew token collect ${token}`);
    const into = (file: string) =>
      curfew("token", "collect", token, "--as", "workload/shop", "--secret-file", at(file));
    writeFileSync(at("taken"), "mine");
    expect(await into("taken")).toMatchObject({ code: 2, out: "" });
    expect(readFileSync(at("taken"), "utf8")).toBe("mine");
    expect(await into("b.secret")).toMatchObject({ code: 0, out: "" });
    expect((await curfew("revoke", "--as", "workload/shop", "--secret-file", at("b.secret"))).code).toBe(0);
    secretIn("b.secret");
    expect(await stateOf(token)).toBe("revoked");
    expect((await into("c.secret")).code).toBe(3);
    expect(existsSync(at("c.secret"))).toBe(false);
  });

  it("rotation ends the generation before", async () => {
    const { token, secret } = await create("d1.secret");
    const rotate = ["rotate", token, "--overlap", "0s", "--secret-file", at("d2.secret"), "--as", "workload/shop"];
    expect(await json("token", ...rotate)).toMatchObject({ token, generation: 2 });
    expect(secretIn("d2.secret")).not.toBe(secret);
    await until("the old generation's end", async () => ((await verify("d1.secret")).code === 1 ? true : undefined));
    expect(await verify("d2.secret")).toMatchObject({ code: 0 });
  });

  it("an argument that no service takes is a wrong command line, said once", async () => {
    const { code, err } = await curfew("revoke", "tok_1", "--as", "person/sam");
    expect(code).toBe(2);
    expect(err.match(/token_id/g)).toHaveLength(1);
    expect((await curfew("token", "rotate", "tok_1", "--overlap", "99d", "--as", "workload/shop")).code).toBe(2);
  });

  it("what the policy does not grant is refused, with the rule", async () => {
    const wide = grant.map((word) => (word === "invoices:read" ? "invoices:write" : word));
    const { code, err } = await curfew("token", "create", "--as", "workload/shop", ...wide, "--secret-file", at("w"));
    expect(code).toBe(3);
    expect(err).toContain("billing-reads-invoices");
    expect(existsSync(at("w"))).toBe(false);
  });
});

describe("verify-token and revoke", () => {
  it("exit 0 for a good token, 1 for one that is not, from a file or standard input", async () => {
    const { token, secret } = await create("v.secret");
    const asked = ["verify-token", "--as", "workload/invoices", ...use, "--secret-file", "-", "-o", "json"];
    const good = await run(process.execPath, [main, ...asked, "--category", "financial"], `${secret}\n`);
    expect(good.code).toBe(0);
    expect(JSON.parse(good.out)).toMatchObject({ allowed: true, reason: "OK", token });
    const revoked = await json("revoke", token, "--reason", "offboarded", "--as", "person/sam");
    expect(revoked).toMatchObject({ token, revokedAt: expect.stringMatching(/Z$/) });
    const dead = await until("the refusal", async () => {
      const answer = await verify("v.secret");
      return answer.code === 1 ? answer : undefined;
    });
    expect(dead.out).toMatch(/reason: +REVOKED/);
  });

  it("wrong usage does nothing and says what is wrong", async () => {
    const wrong: [string[], RegExp][] = [
      [["revoke", "--as", "person/sam"], /name a token/],
      [["tokn", "list"], /did you mean `token`/],
      [["token", "list", "--outptu", "json", "--as", "person/sam"], /did you mean --output/],
      [["token", "list", "-o", "xml", "--as", "person/sam"], /xml/],
      [["token", "create", "--secretfile", "x", "--as", "workload/shop"], /did you mean --secret-file\?/],
      [["token", "list"], /--as.*CURFEW_AS/],
      [["token", "list", "--as", "sam"], /person\/<pseudonym>/],
      [["token", "list", "--as", "person/stranger"], /identity create person\/stranger/],
      [["audit", "list", "--limit", "-1", "--as", "person/dana"], /limit/],
      [["audit", "list", "--from", "yesterday", "--as", "person/dana"], /offset/],
      [["token", "rotate", "tok_1", "--overlap", "soon", "--as", "workload/shop"], /duration/],
      [["verify-token", "--as", "workload/invoices", ...use, "--secret-file", at("none")], /cannot be read/],
      [["verify-token", "--as", "workload/invoices", ...use, "--secret-file", "/dev/zero"], /longer than/],
      [["scan", at("none"), "--as", "person/sam"], /cannot be searched/],
      [["scan", "--as", "person/sam"], /PATH/],
    ];
    for (const [args, says] of wrong) {
      const { code, out, err } = await curfew(...args);
      expect({ args, code, out }).toEqual({ args, code: 2, out: "" });
      expect(err).toMatch(says);
    }
  }, 60_000);

  it("exit 4 where nothing runs, or nothing answers any more", async () => {
    expect(await curfew("token", "list", "--as", "person/sam", "--data", at("nothing"))).toMatchObject({
      code: 4,
      out: "",
    });
    const stale = at("stale");
    mkdirSync(stale);
    const endpoints = JSON.parse(readFileSync(join(dataDir, "endpoints.json"), "utf8"));
    writeFileSync(join(stale, "endpoints.json"), JSON.stringify({ ...endpoints, services: { issuer: "localhost:1" } }));
    expect((await curfew("token", "list", "--as", "person/sam", "--data", stale)).code).toBe(4);
    expect((await curfew("audit", "list", "--as", "person/dana", "--data", stale)).code).toBe(4);
    writeFileSync(join(stale, "endpoints.json"), "{}");
    expect((await curfew("token", "list", "--as", "person/sam", "--data", stale)).code).toBe(2);
  });
});

describe("subject", () => {
  it("what is no pseudonym is told how one looks, and is not repeated: it may be who somebody is", async () => {
    const hold = ["--ground", "legal-claims", "--reference", "claim/7"];
    const dana = ["--as", "person/dana"];
    const of = (given: string) => [
      ["subject", "status", given, ...dana],
      ["subject", "erase", given, ...dana],
      ["subject", "hold", given, ...hold, ...dana],
      ["subject", "release", given, "--hold", "h1", ...dana],
      ["subject", "export", given, "-o", at("somebody"), ...dana],
    ];
    const wrong = ["ada@acme.example", "psn_", `psn_${"A".repeat(32)}`, `psn_${"0".repeat(33)}`];
    for (const args of [...of(wrong[0] as string), ...wrong.slice(1).map((given) => of(given)[0] as string[])])
      expect(await curfew(...args)).toEqual({
        code: 2,
        out: "",
        err: "curfew: PSEUDONYM is psn_ and 32 hexadecimal digits (0-9, a-f), as events have it; for an identifier: --identity CONTROLLER/TYPE\n",
      });
    expect(await curfew("subject", "status", `psn_${"0".repeat(32)}`, ...dana)).toMatchObject({ code: 0 });
  });
});

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
    const leaks = await until("LeakReported", async () => {
      const events = await json(
        "audit",
        "list",
        "--token",
        token,
        "--type",
        "curfew.leak.reported.v1",
        "--as",
        "person/dana",
      );
      return events.length > 0 ? events : undefined;
    });
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
    const leaks = await until("the reports", async () => {
      const events = await json(
        "audit",
        "list",
        "--limit",
        "1000",
        "--token",
        token,
        "--type",
        "curfew.leak.reported.v1",
        "--as",
        "person/dana",
      );
      return events.length >= 100 ? events : undefined;
    });
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

describe("cases and the ledger", () => {
  const caseOf = async (token: string) =>
    await until("the case", async () => {
      const cases: { case: string; token: string }[] = await json("case", "list", "--as", "person/dana");
      return cases.find((each) => each.token === token);
    });

  it("a leak's case is listed, shown, decided, drafted and its page acknowledged", async () => {
    const { token } = await create("c1.secret");
    expect((await curfew("scan", at("c1.secret"), "--report", "--as", "person/sam")).code).toBe(1);
    const listed = await caseOf(token);
    expect(listed).toMatchObject({ firstSignal: expect.stringMatching(/Z$/), people: { lower: 0 } });
    const id = listed.case;
    expect((await curfew("case", "list", "--as", "person/dana")).out).toContain(id);
    expect(await json("case", "show", id, "--as", "person/dana")).toMatchObject({
      case: id,
      provisional: true,
      window: { from: expect.stringMatching(/Z$/) },
    });
    await until("the page", async () => {
      const { pages } = await json("case", "show", id, "--as", "person/dana");
      return pages.length > 0 ? pages : undefined;
    });
    const shown = await curfew("case", "show", id, "--as", "person/dana");
    expect(shown.out).toMatch(/people: +at least 0, probably 0, at most /);
    expect(shown.out).toMatch(/awareAt: +\S+Z \(provisional: nobody has decided\)/);
    const awareAt = new Date().toISOString();
    const decide = ["case", "decide", id, "--aware-at", awareAt, "--reason", "It was read then."];
    expect(await curfew(...decide, "--as", "person/sam")).toMatchObject({ code: 3, out: "" });
    expect(await json(...decide, "--as", "person/dana")).toMatchObject({ case: id, awareAt });
    const draft = await json("case", "draft", id, "--as", "person/dana");
    expect(draft).toMatchObject({ caseId: id, missing: expect.any(Array) });
    const table = await curfew("case", "draft", id, "--as", "person/dana");
    expect(table.out).toContain("MISSING");
    expect((await curfew("ack", id, "opened", "--as", "person/sam")).code).toBe(0);
    expect((await curfew("ack", id, "lunch", "--as", "person/sam")).code).toBe(2);
    expect((await curfew("case", "show", "case/none/1", "--as", "person/dana")).code).toBe(3);
  }, 60_000);

  it("events are listed by token, type, time and number, and shown with their proof; the checkpoint is as signed", async () => {
    const { token } = await create("e1.secret");
    const list = ["audit", "list", "--as", "person/dana"];
    const [issued] = await until("TokenIssued", async () => {
      const events = await json(...list, "--token", token, "--type", "curfew.token.issued.v1");
      return events.length > 0 ? events : undefined;
    });
    expect(await curfew(...list, "--token", token, "--limit", "1")).toMatchObject({
      code: 0,
      err: expect.stringContaining("these are the first 1, there may be more"),
    });
    expect(await curfew(...list, "--type", "token.issued")).toMatchObject({
      code: 0,
      err: "no sealed event is like that\n",
    });
    expect(issued).toEqual({
      index: expect.any(Number),
      time: expect.stringMatching(/Z$/),
      type: "curfew.token.issued.v1",
      token,
      event: expect.any(String),
    });
    expect(await json(...list, "--limit", "3")).toHaveLength(3);
    expect(await json(...list, "--from", "2999-01-01T00:00:00Z")).toEqual([]);
    for (const which of [issued.event, String(issued.index)])
      expect(await json("audit", "show", which, "--as", "person/dana")).toMatchObject({
        ...issued,
        body: { tokenId: token },
        proof: expect.stringMatching(/^holds in the signed tree of \d+ entries$/),
      });
    expect((await curfew("audit", "show", "999999", "--as", "person/dana")).code).toBe(3);
    const note = await curfew("audit", "checkpoint", "--as", "person/dana");
    expect(note.out).toMatch(/^\S+\n\d+\n\S+\n\n— /);
    expect(await json("audit", "checkpoint", "--as", "person/dana")).toMatchObject({
      size: expect.any(Number),
      verifierKey: expect.any(String),
    });
  });

  it("a case's evidence bundle is written once, verified offline by us and by its own script, and refused when changed", async () => {
    const { token } = await create("b1.secret");
    expect((await curfew("scan", at("b1.secret"), "--report", "--as", "person/sam")).code).toBe(1);
    const id = (await caseOf(token)).case;
    const draft = await run(process.execPath, [main, "case", "draft", id, "--as", "person/dana", "-o", "json"]);
    const args = ["audit", "export", "--case", id, "--as", "person/dana"];
    const made = await curfew(...args, "-o", at("b1.zip"));
    expect(made).toMatchObject({ code: 0, out: expect.stringMatching(/drafts: +1\n/) });
    expect(statSync(at("b1.zip")).mode & 0o777).toBe(0o600);
    expect(await curfew(...args, "-o", at("b1.zip"))).toMatchObject({
      code: 2,
      err: expect.stringContaining("overwritten"),
    });

    const { verifierKey } = await json("audit", "checkpoint", "--as", "person/dana");
    const offline = { CURFEW_DATA_DIR: at("nowhere") };
    const verify = (file: string, ...more: string[]) =>
      run(process.execPath, [main, "verify", at(file), ...more], "", offline);
    const sound = await verify("b1.zip", "--key", verifierKey, "-o", "json");
    expect(sound).toMatchObject({ code: 0, err: "" });
    const verdict = JSON.parse(sound.out);
    expect(verdict).toMatchObject({
      kind: "bundle",
      selection: { case: id, token },
      integrity: { holds: true },
      completeness: { verdict: "partly", missing: [], notProved: expect.arrayContaining([expect.any(String)]) },
    });
    // Its files are stored as they are.
    const bytes = readFileSync(at("b1.zip"));
    expect(bytes.includes(draft.out.trimEnd())).toBe(true);
    for (const type of ["token.issued", "leak.reported", "token.revoked", "case.opened", "notification.drafted"])
      expect(bytes.includes(`"curfew.${type}.v1"`), type).toBe(true);
    const table = await verify("b1.zip", "--key", verifierKey);
    expect(table.out).toMatch(/^integrity: +holds: /m);
    expect(table.out).toMatch(/^not proved: /m);

    // In a file of it: of a header between two, Python reads less than we do.
    const changed = readFileSync(at("b1.zip"));
    changed.write("X", changed.indexOf('"curfew.leak.reported.v1"') + 1);
    writeFileSync(at("changed.zip"), changed);
    expect(await verify("changed.zip", "--key", verifierKey)).toMatchObject({
      code: 1,
      out: expect.stringMatching(/^integrity: +BROKEN: \S+/),
    });
    writeFileSync(at("none.zip"), "no bundle");
    expect((await verify("none.zip", "--key", verifierKey)).code).toBe(4);
    expect((await verify("b1.zip")).code).toBe(2);
    expect((await verify("b1.zip", "--key", verifierKey.replace("+", "x+"))).code).toBe(2);
    const exports = await until("the record of the export", async () => {
      const events = await json("audit", "list", "--type", "curfew.evidence.exported.v1", "--as", "person/dana");
      return events.length > 0 ? events : undefined;
    });
    expect(exports).toHaveLength(1);
    const { body } = await json("audit", "show", exports[0].event, "--as", "person/dana");
    expect(body).toMatchObject({ caseId: id, exportedBy: { spiffeId: expect.stringMatching(/person\/dana$/) } });
  }, 60_000);

  it.skipIf(/python3|openssl/.test(process.env.ABSENT_PROGRAMS ?? ""))(
    "the script of packages/bundle accepts that bundle, and not the changed one (needs python3)",
    async () => {
      const { verifierKey } = await json("audit", "checkpoint", "--as", "person/dana");
      const script = (file: string) =>
        run("python3", [join(root, "packages/bundle/verify.py"), at(file), verifierKey as string]);
      expect(await script("b1.zip")).toMatchObject({ code: 0, out: expect.stringContaining("integrity holds") });
      expect(await script("changed.zip")).toMatchObject({ code: 1, err: expect.stringContaining("NOT VERIFIED") });
    },
  );

  it("all that was sealed in a time is complete in its bundle, leaf for leaf", async () => {
    const from = new Date().toISOString();
    await create("b2.secret");
    const to = new Date(Date.now() + 60_000).toISOString();
    const { verifierKey } = await json("audit", "checkpoint", "--as", "person/dana");
    const bundle = await until("what was sealed", async () => {
      const { code } = await curfew(
        "audit",
        "export",
        "--from",
        from,
        "--to",
        to,
        "--as",
        "person/dana",
        "-o",
        at("b2.zip"),
      );
      return code === 0 ? at("b2.zip") : undefined;
    });
    const verdict = await json("verify", bundle, "--key", verifierKey);
    expect(verdict).toMatchObject({
      completeness: { verdict: "holds" },
      entries: verdict.range.end - verdict.range.first,
    });
    for (const wrong of [[], ["--case", "a", "--token", "b"], ["--from", to, "--to", from]])
      expect((await curfew("audit", "export", ...wrong, "--as", "person/dana", "-o", at("b3.zip"))).code).toBe(2);
    for (const none of [
      ["--case", "case/none/1"],
      ["--token", "tok_none"],
    ])
      expect((await curfew("audit", "export", ...none, "--as", "person/dana", "-o", at("b3.zip"))).code).toBe(3);
    expect(existsSync(at("b3.zip"))).toBe(false);
  }, 60_000);
});

describe("the health of the evidence", () => {
  const dana = ["--as", "person/dana"];
  /** Runs until it has printed enough, and then presses ^C. */
  const watch = async (command: string, args: readonly string[], isEnough: (out: string) => boolean) => {
    const child = spawn(command, args, { cwd: dir, env: { ...process.env, CURFEW_DATA_DIR: dataDir } });
    let out = "";
    for await (const chunk of child.stdout.setEncoding("utf8")) {
      out += chunk;
      if (!isEnough(out)) continue;
      // A terminal makes a signal of this character.
      if (child.stdin.writable) child.stdin.end("\x03");
      child.kill("SIGINT");
    }
    if (child.exitCode === null) await once(child, "close");
    printed.push(out);
    return { out, code: child.exitCode };
  };

  it("is shown as two verdicts, and a proof is made between any trees", async () => {
    const row = await until("all of it compared once", async () => {
      const { code, out } = await curfew("audit", "health", ...dana, "-o", "json");
      const health = JSON.parse(out);
      return code === 0 && health.integrity.state === "holds" ? health : undefined;
    });
    expect(row).toMatchObject({ completeness: { state: "holds" }, drift: { state: "holds", findings: [] } });
    expect((await curfew("audit", "health", ...dana)).out).toMatch(/^integrity +holds +as of .* entries looked at$/m);
    expect((await curfew("audit", "health", "--as", "person/sam")).code).toBe(3);
    const { size, proof } = await json("audit", "prove", "--index", "0", ...dana);
    expect(proof.length).toBe(Math.ceil(Math.log2(size)));
    expect(await json("audit", "prove", "--from", "1", "--size", "2", ...dana)).toMatchObject({ from: 1, size: 2 });
    expect((await curfew("audit", "prove", ...dana)).code).toBe(2);
    expect((await curfew("audit", "prove", "--index", "9", "--size", "9", ...dana)).code).toBe(2);
  });

  it("is watched until ^C: an object a change, in plain lines, or in place on a terminal", async () => {
    const command = [main, "audit", "watch", ...dana];
    const objects = await watch(process.execPath, [...command, "-o", "json"], (out) => out.endsWith("\n"));
    expect(objects.code).toBe(0);
    const [first = ""] = objects.out.split("\n");
    expect(JSON.parse(first)).toMatchObject({ turned: [], integrity: {}, size: expect.any(Number) });
    const lines = await watch(process.execPath, command, (out) => out.endsWith("\n\n"));
    expect(lines.code).toBe(0);
    expect(lines.out).not.toContain("\x1b");
    expect(lines.out.match(/^integrity /gm)?.length).toBe(1);
    const quoted = [process.execPath, ...command].map((word) => `'${word}'`).join(" ");
    const screens = (out: string) => out.split("\x1b[J").slice(1);
    const terminal = ["-qec", `stty cols 60; ${quoted}`, "/dev/null"];
    const { out } = await watch("script", terminal, (text) => screens(text).length > 3);
    const [one = "", two = ""] = screens(out);
    const drawn = one.split("\n").length - 1;
    // Back to where the screen begins, and over it.
    expect(one.endsWith(`\x1b[${drawn}A\r`)).toBe(true);
    for (const screen of [one, two]) {
      expect(screen.match(/^integrity /gm)?.length).toBe(1);
      expect(Math.max(...screen.split(/\r?\n/).map((line) => line.length))).toBeLessThan(60);
    }
  });
});

describe("at a shell", () => {
  it("the README's example runs, line by line", async () => {
    mkdirSync(at("bin"));
    writeFileSync(at("bin/curfew"), `#!/bin/sh\nexec "${process.execPath}" "${main}" "$@"\n`);
    chmodSync(at("bin/curfew"), 0o755);
    mkdirSync(at("readme"));
    symlinkSync(join(root, "deploy"), at("readme/deploy"));
    const readme = readFileSync(join(root, "packages/cli/README.md"), "utf8");
    const script = /```sh\n([\s\S]*?)```/.exec(readme)?.[1] as string;
    const git = {
      GIT_AUTHOR_NAME: "T",
      GIT_AUTHOR_EMAIL: "t@t.example",
      GIT_COMMITTER_NAME: "T",
      GIT_COMMITTER_EMAIL: "t@t.example",
    };
    const { code, out, err } = await run("sh", ["-euc", `cd readme\n${script}`], "", {
      ...git,
      PATH: `${at("bin")}:${process.env.PATH}`,
    });
    secretIn("readme/billing.secret");
    expect({ code, err: code === 0 ? "" : err }).toEqual({ code: 0, err: "" });
    expect(out).toMatch(/shop@[0-9a-f]{12}:deploy\.env:1 .*revoked/);
    expect(out).toMatch(/curfew\.token\.revoked\.v1/);
  }, 60_000);

  it("npx finds the command, help names the exit codes, and the shell completes", async () => {
    const help = await run("sh", ["-c", `cd "${root}" && exec npx --no-install curfew --help`]);
    expect(help.code).toBe(0);
    const readme = readFileSync(join(root, "packages/cli/README.md"), "utf8");
    for (const [, code, meaning] of readme.matchAll(/^\| (\d) \| (.*?) \|$/gm))
      expect(help.out).toContain(`${code}  ${meaning}`);
    const names = [...help.out.matchAll(/^ {2}([a-z-]+) {2,}/gm)].map((m) => m[1]);
    expect(names.length).toBeGreaterThan(8);
    const completing = await run("bash", [
      "-c",
      `curfew() { "${process.execPath}" "${main}" "$@"; }; eval "$(curfew completion bash)"; COMP_WORDS=(curfew token co); COMP_CWORD=2; _curfew; echo "$COMPREPLY"`,
    ]);
    expect(completing.out).toBe("collect\n");
  });

  it("a reader that goes away ends nothing with a stack", async () => {
    const { err } = await run("sh", [
      "-c",
      `"${process.execPath}" "${main}" audit list --limit 1000 --as person/dana | head -n 1`,
    ]);
    expect(err).toBe("");
  });

  it("no form of a secret was printed by any of it", () => {
    expect(secrets.length).toBeGreaterThan(8);
    expect(printed.length).toBeGreaterThan(100);
    const forms = secrets.flatMap((secret) => secretVariants(secret));
    const leaking = (texts: readonly string[]) =>
      texts.filter((text) => forms.some(({ bytes }) => Buffer.from(text).includes(bytes)));
    expect(leaking(printed)).toEqual([]);
    expect(leaking([`control ${secrets[0]}`])).toHaveLength(1);
  });
});
