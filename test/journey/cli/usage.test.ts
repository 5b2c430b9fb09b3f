import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { at, curfew, dataDir, main, use } from "./rig.ts";

describe("a wrong command line", () => {
  it("wrong usage does nothing and says what is wrong", async () => {
    const wrong: [string[], RegExp][] = [
      [["revoke", "--as", "person/sam"], /name a token/],
      [["tokn", "list"], /did you mean `token`\? \(curfew --help lists them\)/],
      [["x".repeat(100_000)], /^.{1000}… \(curfew --help lists them\)\n$/],
      [["token", "list", "--as", "x".repeat(100_000)], /^.{1000}…\n$/],
      [["scan", "--as", "person/sam", "--", "--help"], /--help cannot be searched/],
      [["token", "list", "--outptu", "json", "--as", "person/sam"], /did you mean --output/],
      [["token", "list", "-o", "xml", "--as", "person/sam"], /xml/],
      [["token", "create", "--secretfile", "x", "--as", "workload/shop"], /did you mean --secret-file\?/],
      [["token", "list"], /--as.*CURFEW_AS/],
      [["token", "list", "--as", "sam"], /person\/<pseudonym>/],
      [["token", "list", "--as", "person/stranger"], /identity create person\/stranger/],
      [["audit", "list", "--limit", "-1", "--as", "person/dana"], /limit/],
      [["audit", "list", "--from", "yesterday", "--as", "person/dana"], /offset/],
      [["case", "decide", "case/x/1", "--aware-at", "2026-02-29T12:00:00Z", "--as", "person/dana"], /no such day/],
      [["token", "collect", "tok_1", "--secret-file", "-", "--as", "workload/shop"], /to a file only/],
      [["keys", "list", "--keys", main], /there is no directory \S+main.ts/],
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

  it("curfew help is --help, of a command too", async () => {
    expect(await curfew("help")).toEqual(await curfew("--help"));
    const help = await curfew("help", "token", "create");
    expect(help).toMatchObject({ code: 0, err: "", out: expect.stringContaining("--secret-file") });
    expect(help).toEqual(await curfew("token", "create", "--help"));
  });

  it("an argument that no service takes is a wrong command line, said once", async () => {
    const { code, err } = await curfew("revoke", "tok_1", "--as", "person/sam");
    expect(code).toBe(2);
    expect(err.match(/token_id/g)).toHaveLength(1);
    expect((await curfew("token", "rotate", "tok_1", "--overlap", "99d", "--as", "workload/shop")).code).toBe(2);
  });

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

describe("without a suite", () => {
  it("exit 4 where nothing runs, or nothing answers any more", async () => {
    expect(await curfew("token", "list", "--as", "person/sam", "--data", at("nothing"))).toMatchObject({
      code: 4,
      out: "",
    });
    const stale = at("stale");
    mkdirSync(stale);
    const endpoints = JSON.parse(readFileSync(join(dataDir, "endpoints.json"), "utf8"));
    writeFileSync(join(stale, "endpoints.json"), JSON.stringify({ ...endpoints, services: { issuer: "localhost:1" } }));
    expect(await curfew("token", "list", "--as", "person/sam", "--data", stale)).toMatchObject({
      code: 4,
      err: expect.stringContaining("does the suite run? If it was killed, start it again"),
    });
    expect((await curfew("audit", "list", "--as", "person/dana", "--data", stale)).code).toBe(4);
    writeFileSync(join(stale, "endpoints.json"), "{}");
    expect((await curfew("token", "list", "--as", "person/sam", "--data", stale)).code).toBe(2);
  });
});
