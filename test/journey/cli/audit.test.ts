import { spawn } from "node:child_process";
import { once } from "node:events";
import { describe, expect, it } from "vitest";
import { create, curfew, dataDir, dir, json, main, printed, until } from "./rig.ts";

describe("the ledger", () => {
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
