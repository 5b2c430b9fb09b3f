import { chmodSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { at, leaking, main, printed, root, run, secretIn, secrets } from "./rig.ts";

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
      `"${process.execPath}" "${main}" audit list --limit 1000 --as person/dana | true`,
    ]);
    expect(err).toBe("");
  });

  it("an answer that cannot be written is no answer: not the exit code of a no, and no stack", async () => {
    const toFull = `"${process.execPath}" "${main}" audit list --as person/dana > /dev/full`;
    const { code, err } = await run("sh", ["-c", toFull]);
    expect({ code, err }).toEqual({
      code: 2,
      err: expect.stringMatching(/^curfew: standard output cannot be written: ENOSPC.*\n$/),
    });
    expect((await run("sh", ["-c", `${toFull} 2>&1`])).code).toBe(2);
  });

  it("no form of a secret was printed by any of it", () => {
    expect(printed.length).toBeGreaterThan(10);
    expect(leaking(printed)).toEqual([]);
    expect(leaking([`control ${secrets[0]}`])).toHaveLength(1);
  });
});
