import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ConfigError } from "@curfew/runtime/config.ts";
import { afterAll, describe, expect, it } from "vitest";
import { parse } from "yaml";
import { parsePaging } from "./paging.ts";

const dir = mkdtempSync(join(tmpdir(), "curfew-paging-"));
afterAll(() => rmSync(dir, { recursive: true }));
const file = (name: string, content: string, mode = 0o600) => {
  const path = join(dir, name);
  writeFileSync(path, content);
  chmodSync(path, mode);
  return path;
};
const secretFile = file("secret", `whsec_${Buffer.alloc(32, 1).toString("base64")}\n`);
const problemsOf = (input: unknown): readonly string[] => {
  try {
    parsePaging(input);
  } catch (error) {
    if (error instanceof ConfigError) return error.problems;
    throw error;
  }
  return [];
};

describe("the paging section", () => {
  it("is read as YAML or as what YAML was parsed to", () => {
    const yaml = `
targets:
  - { name: oncall-mail, channel: smtp, host: mail.acme.example, port: 587, from: curfew@acme.example, to: oncall@acme.example }
  - { name: oncall-hook, channel: webhook, url: "https://hooks.acme.example/curfew", secret_file: ${secretFile} }
allow: ["localhost:8025"]
repeat_every: 5m
`;
    const paging = parsePaging(yaml);
    expect(paging).toMatchObject({ allow: ["localhost:8025"], repeatMs: 300_000 });
    expect(paging.targets.map((target) => [target.name, target.channel])).toEqual([
      ["oncall-mail", "smtp"],
      ["oncall-hook", "webhook"],
    ]);
    expect(parsePaging(parse(yaml))).toEqual(paging);
    expect(paging.targets[1]).toMatchObject({ secret: Buffer.alloc(32, 1) });
  });

  it("may be absent or empty: nobody is paged then", () => {
    for (const input of [undefined, null, {}, "", "targets: []", "{}"])
      expect(parsePaging(input)).toEqual({ targets: [], allow: [], repeatMs: 900_000 });
  });

  it("accepts the section of the sample configuration", () => {
    const sample = readFileSync(join(import.meta.dirname, "../../deploy/embedded/curfew.yaml"), "utf8");
    expect(parsePaging(parse(sample).paging).targets).toEqual([]);
  });

  it("tells every mistake at once, each with its place, and repeats no secret", () => {
    const problems = problemsOf({
      targets: [
        { name: "A", channel: "smtp", host: "mail", port: 0, from: "nobody", to: "x@acme.example", colour: "red" },
        {
          name: "b",
          channel: "webhook",
          url: "http://hooks.acme.example/x",
          secret_file: file("bad", "hunter2-hunter2"),
        },
        {
          name: "c",
          channel: "webhook",
          url: "https://u:p@h.example/",
          secret_file: file("open", "whsec_AAAA", 0o644),
        },
        { name: "c", channel: "pager" },
        { name: "d", channel: "smtp", host: "mail", port: 25, from: "a@b.example", to: "c@d.example", user: "only" },
        "e",
      ],
      allow: ["localhost"],
      repeat_every: "1s",
      retries: 3,
    });
    for (const place of [
      "paging.targets[0].name",
      "paging.targets[0].port",
      "paging.targets[0].from",
      "paging.targets[0].colour",
      "paging.targets[1].url",
      "paging.targets[1].secret_file",
      "paging.targets[2].url",
      "paging.targets[2].secret_file",
      "paging.targets[3].channel",
      "paging.targets[4].user",
      "paging.targets[5]",
      "paging.allow",
      "paging.repeat_every",
      "paging.retries",
    ])
      expect(problems.join("\n")).toContain(place);
    expect(problems.join("\n")).not.toContain("hunter2");
    expect(problemsOf("targets: [").join()).toContain("paging:");
    expect(problemsOf("- list").join()).toContain("an object is needed");
  });

  it("refuses the same name twice", () => {
    const target = { name: "m", channel: "smtp", host: "mail", port: 25, from: "a@b.example", to: "c@d.example" };
    expect(problemsOf({ targets: [target, target] })).toEqual(["paging.targets: m stands twice"]);
  });
});
