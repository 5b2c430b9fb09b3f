import { existsSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { at, create, curfew, grant, json, main, run, secretIn, stateOf, until, use } from "./rig.ts";

const verify = (file: string) =>
  curfew("verify-token", "--as", "workload/invoices", ...use, "--category", "financial", "--secret-file", at(file));

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
});
