import { existsSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { at, create, curfew, json, main, root, run, until } from "./rig.ts";

/** The case that a token's leak opened. */
const caseOf = async (token: string) =>
  await until("the case", async () => {
    const cases: { case: string; token: string }[] = await json("case", "list", "--as", "person/dana");
    return cases.find((each) => each.token === token);
  });

describe("cases", () => {
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
});

describe("evidence bundles", () => {
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
