import { execFileSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { chmodSync, mkdirSync, mkdtempSync, renameSync, rmSync, symlinkSync, unlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { mintSecret } from "@curfew/token-format/secret.ts";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { type Sighting, scanPath } from "./scan-sources.ts";

let dir: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "curfew-scan-"));
});
afterEach(() => {
  vi.unstubAllEnvs();
  execFileSync("rm", ["-rf", dir]); // paths too long for rmSync
});

const newSecret = () => mintSecret("s", (n) => randomBytes(n));
const at = (path: string) => join(dir, path);
const write = (path: string, content: string | Buffer) => {
  mkdirSync(dirname(at(path)), { recursive: true });
  writeFileSync(at(path), content);
};
const gitIn = (folder: string, ...args: string[]) =>
  execFileSync(
    "git",
    ["-c", "user.name=T", "-c", "user.email=t@t.example", "-c", "protocol.file.allow=always", ...args],
    {
      cwd: folder,
      encoding: "utf8",
      stdio: ["ignore", "pipe", "ignore"],
    },
  ).trim();
const git = (...args: string[]) => gitIn(dir, ...args);
const commit = (message: string) => {
  git("add", "-A");
  git("commit", "-qm", message);
  return git("rev-parse", "--short=12", "HEAD");
};

const scanned = async (path: string, isOurs: (secret: string) => boolean = () => true) => {
  const found: Sighting[] = [];
  const problems: string[] = [];
  let binaries = 0;
  const options = {
    isOurs: async (secret: string) => isOurs(secret),
    problem: (text: string) => problems.push(text),
    binary: () => {
      binaries += 1;
    },
    progress: () => undefined,
    nowMs: Date.now(),
  };
  for await (const sighting of scanPath(path, options)) found.push(sighting);
  const of = (secret: string) => found.filter((s) => s.secret === secret).map((s) => s.location.replaceAll(dir, "DIR"));
  return { found, problems, binaries, of };
};

describe("files and folders", () => {
  it("names the line of each secret, across the borders of chunks too", async () => {
    const [first, second] = [newSecret(), newSecret()];
    const lines = `a\n${first}\n${"x\n".repeat(500_000)}`;
    const text = `${lines}${"y".repeat((1 << 20) - 20 - lines.length)}${second}\n`;
    expect(text.indexOf(second)).toBeLessThan(1 << 20);
    expect(text.indexOf(second) + second.length).toBeGreaterThan(1 << 20);
    write("plain/big.txt", text);
    const { of } = await scanned(at("plain"));
    expect(of(first)).toEqual(["DIR/plain/big.txt:2"]);
    expect(of(second)).toEqual(["DIR/plain/big.txt:500003"]);
  });

  it("reads UTF-16, passes over binary files and searches them when they are named", async () => {
    const [wide, hidden] = [newSecret(), newSecret()];
    write("f/wide.ps1", Buffer.from(`\ufeffa\n$t = "${wide}"\n`, "utf16le"));
    write("f/tool.bin", Buffer.concat([Buffer.from([0x7f, 0x45, 0, 1]), Buffer.from(hidden)]));
    const folder = await scanned(at("f"));
    expect(folder.of(wide)).toEqual(["DIR/f/wide.ps1:2"]);
    expect(folder.of(hidden)).toEqual([]);
    expect(folder.binaries).toBe(1);
    expect((await scanned(at("f/tool.bin"))).of(hidden)).toEqual(["DIR/f/tool.bin:1"]);
  });

  it("follows no link, waits for no pipe, and survives deep trees and names that are no text", async () => {
    const secret = newSecret();
    write("out/side.txt", secret);
    const deep = `t/${"d/".repeat(300)}`;
    write(`${deep}end.txt`, secret);
    symlinkSync(at("out"), at("t/link"));
    symlinkSync(at("out/side.txt"), at("t/link.txt"));
    symlinkSync(at("t"), at("t/loop"));
    execFileSync("mkfifo", [at("t/pipe")]);
    writeFileSync(Buffer.concat([Buffer.from(`${at("t")}/`), Buffer.from([0xff, 0xfe, 0x1b, 0x0a])]), secret);
    const { of, problems } = await scanned(at("t"));
    expect(problems).toEqual([]);
    expect(of(secret)).toHaveLength(2);
    expect(of(secret).join("")).toContain("\\u001b\\n:1");
    expect(of(secret).join("")).not.toMatch(/\p{Cc}/u);
  });

  it("shows no secret that is part of a file's name", async () => {
    const secret = newSecret();
    write(`n/${secret}.txt`, secret);
    expect((await scanned(at("n"))).of(secret)).toEqual(["DIR/n/cfws_[masked].txt:1"]);
  });

  it("says which folders lie too deep to be read, and searches the others", async () => {
    const secret = newSecret();
    write("p/z.txt", secret);
    const chain = Array(12).fill("d".repeat(200)).join("/");
    mkdirSync(at(`p/${chain}`), { recursive: true });
    mkdirSync(at(`q/${chain}`), { recursive: true });
    renameSync(at("q"), at(`p/${chain}/q`)); // together longer than a path may be
    const { of, problems } = await scanned(at("p"));
    expect(of(secret)).toEqual(["DIR/p/z.txt:1"]);
    expect(problems.join()).toContain("ENAMETOOLONG");
  });

  it("goes on when a file vanishes meanwhile", async () => {
    const secret = newSecret();
    write("v/a.txt", secret);
    write("v/b.txt", secret);
    write("v/c.txt", secret);
    const options = {
      isOurs: async () => true,
      problem: vi.fn(),
      binary: vi.fn(),
      progress: vi.fn(),
      nowMs: Date.now(),
    };
    const found: string[] = [];
    for await (const { location } of scanPath(at("v"), options)) {
      found.push(location);
      rmSync(at("v/b.txt"), { force: true });
    }
    expect(found).toEqual([`${at("v/a.txt")}:1`, `${at("v/c.txt")}:1`]);
    expect(options.problem).not.toHaveBeenCalled();
  });
});

describe("git repositories", () => {
  beforeEach(() => {
    git("init", "-q", "-b", "main");
  });

  it("a removed secret is found with the commit that brought it in, and its date", async () => {
    const secret = newSecret();
    write("deploy.env", `A=1\nTOKEN=${secret}\n`);
    const brought = commit("Settings");
    const committedMs = Number(git("log", "-1", "--format=%ct")) * 1_000;
    write("deploy.env", `A=2\nTOKEN=${secret}\n`);
    commit("More settings");
    write("deploy.env", "A=2\n");
    commit("Remove token");
    const { found, problems } = await scanned(dir);
    expect(problems).toEqual([]);
    expect(found).toEqual([
      { kind: "git", location: `${dir}@${brought}:deploy.env:2`, secret, exposedSince: new Date(committedMs) },
    ]);
  });

  it("branches, tags, stashes, merges, renames, messages, notes of tags and amended commits count", async () => {
    const names = ["branch", "tagged", "stashed", "merged", "message", "tagText", "amended", "staged"] as const;
    const s = Object.fromEntries(names.map((name) => [name, newSecret()])) as Record<(typeof names)[number], string>;
    write("base.txt", "base\n");
    commit("Base");
    git("checkout", "-qb", "side");
    write("branch.txt", s.branch);
    write("base.txt", "side\n");
    commit("Side");
    git("checkout", "-q", "main");
    write("base.txt", "main\n");
    commit("Main");
    expect(() => git("merge", "-q", "side")).toThrow();
    write("base.txt", `${s.merged}\n`);
    commit("Merge");
    write("base.txt", "clean\n");
    commit("Clean");
    git("checkout", "-q", "--detach");
    write("old name.txt", s.tagged);
    commit("Old");
    renameSync(at("old name.txt"), at("new name.txt"));
    commit("New");
    git("tag", "-a", "v1", "-m", `notes ${s.tagText}`);
    git("checkout", "-q", "main");
    git("commit", "-q", "--allow-empty", "-m", `deploy with ${s.message}`);
    write("amend.txt", s.amended);
    commit("Oops");
    write("amend.txt", "gone\n");
    git("commit", "-qa", "--amend", "-m", "Fine");
    write("base.txt", s.stashed);
    git("stash", "-q");
    write("staged.txt", s.staged);
    git("add", "staged.txt");
    unlinkSync(at("staged.txt"));
    const { of, problems } = await scanned(dir);
    expect(problems).toEqual([]);
    const forms = (name: (typeof names)[number]) => of(s[name]).map((l) => l.replace(/@[0-9a-f]{12}:/, "@C:"));
    expect(forms("branch")).toEqual(["DIR/branch.txt:1", "DIR@C:branch.txt:1"]);
    expect(forms("merged")).toEqual(["DIR@C:base.txt:1"]);
    expect(forms("tagged").toSorted()).toEqual(["DIR@C:new name.txt:1", "DIR@C:old name.txt:1"]);
    expect(forms("message")[0]).toMatch(/^DIR@C:\(message\):\d+$/);
    expect(forms("tagText")[0]).toMatch(/^DIR@C:\(in no commit\):\d+$/);
    expect(forms("amended")).toEqual(["DIR@C:amend.txt:1"]);
    expect(forms("stashed")).toEqual(["DIR@C:base.txt:1"]);
    expect(forms("staged")).toEqual(["DIR@C:(in no commit):1"]);
  });

  it("attributes, replaced objects and odd dates hide nothing", async () => {
    const [binary, replaced] = [newSecret(), newSecret()];
    write(".gitattributes", "*.env binary -diff\n");
    write("a.env", binary);
    write("b.txt", replaced);
    git("add", "-A");
    execFileSync("git", ["-c", "user.name=T", "-c", "user.email=t@t", "commit", "-qm", "x"], {
      cwd: dir,
      env: { ...process.env, GIT_COMMITTER_DATE: "2095-01-01T00:00:00Z" },
    });
    const blob = git("rev-parse", "HEAD:b.txt");
    write("harmless", "nothing");
    git("replace", blob, git("hash-object", "-w", "harmless"));
    rmSync(at("a.env"));
    rmSync(at("b.txt"));
    const { of, found } = await scanned(dir);
    expect([...of(binary), ...of(replaced)]).toHaveLength(2);
    expect(found.every((s) => s.exposedSince === undefined)).toBe(true);
  });

  it("honours .gitignore, and searches what is ignored when it is named", async () => {
    const secret = newSecret();
    write(".gitignore", "build/\n");
    write("build/out/a.txt", secret);
    commit("x");
    expect((await scanned(dir)).of(secret)).toEqual([]);
    expect((await scanned(at("build"))).of(secret)).toEqual(["DIR/build/out/a.txt:1"]);
  });

  it("a folder in a repository is searched with its own part of the history", async () => {
    const [inside, outside] = [newSecret(), newSecret()];
    write("in/a.txt", inside);
    write("out/b.txt", outside);
    commit("x");
    write("in/a.txt", "");
    write("out/b.txt", "");
    commit("y");
    const { of } = await scanned(at("in"));
    expect(of(inside)).toHaveLength(1);
    expect(of(outside)).toEqual([]);
  });

  it("searches submodules, repositories below plain folders, and bare ones", async () => {
    const secret = newSecret();
    rmSync(at(".git"), { recursive: true });
    write("lib/x.txt", secret);
    gitIn(at("lib"), "init", "-q");
    gitIn(at("lib"), "add", "-A");
    gitIn(at("lib"), "commit", "-qm", "x");
    write("lib/x.txt", "");
    gitIn(at("lib"), "commit", "-qam", "y");
    mkdirSync(at("plain/deep"), { recursive: true });
    git("clone", "-q", "--bare", at("lib"), at("plain/deep/bare"));
    git("clone", "-q", at("lib"), at("plain/deep/clone"));
    mkdirSync(at("top"));
    gitIn(at("top"), "init", "-q");
    gitIn(at("top"), "submodule", "--quiet", "add", at("lib"), "sub");
    const commitOf = gitIn(at("lib"), "rev-parse", "--short=12", "HEAD~1");
    expect((await scanned(at("plain"))).of(secret)).toEqual([
      `DIR/plain/deep/bare@${commitOf}:x.txt:1`,
      `DIR/plain/deep/clone@${commitOf}:x.txt:1`,
    ]);
    expect((await scanned(at("top"))).of(secret)).toEqual([`DIR/top/sub@${commitOf}:x.txt:1`]);
    expect((await scanned(at("lib/.git"))).of(secret)).toEqual([`DIR/lib/.git@${commitOf}:x.txt:1`]);
  });

  it("an empty repository is no problem, and what is not ours is not looked for in the commits", async () => {
    expect(await scanned(dir)).toMatchObject({ found: [], problems: [] });
    write("a.txt", newSecret());
    commit("x");
    rmSync(at("a.txt"));
    expect((await scanned(dir, () => false)).found).toEqual([]);
  });

  it("runs no program that a repository's configuration names, and its claims hide nothing", async () => {
    const secret = newSecret();
    const trap = at("trap.sh");
    write("trap.sh", `#!/bin/sh\ntouch "${at("sprung")}"\nexec cat\n`);
    chmodSync(trap, 0o755);
    write(".gitattributes", "*.txt filter=evil diff=evil\n");
    write("a.txt", secret);
    commit("x");
    write("a.txt", `${secret}\n`);
    mkdirSync(at("hooks"));
    for (const hook of ["post-index-change", "post-checkout", "reference-transaction"])
      symlinkSync(trap, at(`hooks/${hook}`));
    const traps = {
      "core.fsmonitor": trap,
      "core.hooksPath": at("hooks"),
      "core.pager": trap,
      "pager.log": trap,
      "pager.ls-files": trap,
      "core.sshCommand": trap,
      "core.alternateRefsCommand": trap,
      "gpg.program": trap,
      "log.showSignature": "true",
      "log.showRoot": "false",
      "log.diffMerges": "off",
      "diff.external": trap,
      "diff.evil.textconv": trap,
      "diff.evil.command": trap,
      "filter.evil.clean": trap,
      "filter.evil.smudge": trap,
      "filter.evil.process": trap,
      "remote.origin.url": "ext::sh -c true",
      "remote.origin.promisor": "true",
      "remote.origin.uploadpack": trap,
      "extensions.partialClone": "origin",
      "protocol.allow": "always",
      "core.repositoryFormatVersion": "1",
    };
    for (const [name, value] of Object.entries(traps)) git("config", name, value);
    rmSync(at("sprung"), { force: true });
    vi.stubEnv("GIT_DIR", at("elsewhere"));
    vi.stubEnv("GIT_EXTERNAL_DIFF", trap);
    const { of, problems } = await scanned(dir);
    expect(problems).toEqual([]);
    expect(of(secret).map((l) => l.replace(/@[0-9a-f]{12}:/, "@C:"))).toEqual(["DIR/a.txt:1", "DIR@C:a.txt:1"]);
    expect(() => rmSync(at("sprung"))).toThrow("ENOENT");
  });

  it("a work tree that the configuration puts elsewhere, and a claim to be bare, hide nothing", async () => {
    const secret = newSecret();
    write("repo/a.txt", secret);
    gitIn(at("repo"), "init", "-q");
    gitIn(at("repo"), "add", "-A");
    gitIn(at("repo"), "commit", "-qm", "x");
    for (const [name, value] of [
      ["core.worktree", tmpdir()],
      ["core.bare", "true"],
    ] as const) {
      gitIn(at("repo"), "config", name, value);
      const locations = (await scanned(at("repo"))).of(secret);
      expect(
        locations.map((l) => l.replace(/@[0-9a-f]{12}:/, "@C:")),
        name,
      ).toEqual(["DIR/repo/a.txt:1", "DIR/repo@C:a.txt:1"]);
      gitIn(at("repo"), "config", "--unset", name);
    }
  });

  it("says so when git cannot read a repository, or is not there, and searches the files all the same", async () => {
    const secret = newSecret();
    write("a.txt", secret);
    commit("x");
    const path = process.env.PATH;
    vi.stubEnv("PATH", at("nowhere"));
    const without = await scanned(dir);
    expect(without.of(secret)).toEqual(["DIR/a.txt:1"]);
    expect(without.problems.join()).toMatch(/history was not searched: git cannot be run/);
    vi.stubEnv("PATH", path);
    writeFileSync(at(".git/config"), "[core\n");
    const broken = await scanned(dir);
    expect(broken.of(secret)).toEqual(["DIR/a.txt:1"]);
    expect(broken.problems.join()).toMatch(/history was not searched: fatal: bad config/);
  });

  it("says so when objects are damaged", async () => {
    write("a.txt", newSecret());
    commit("x");
    const blob = git("rev-parse", "HEAD:a.txt");
    const file = at(`.git/objects/${blob.slice(0, 2)}/${blob.slice(2)}`);
    chmodSync(file, 0o644);
    writeFileSync(file, "damaged");
    rmSync(at("a.txt"));
    expect((await scanned(dir)).problems.join()).toMatch(/a damaged object, [0-9a-f]{40} missing/);
  });
});
