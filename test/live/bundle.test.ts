import { execFileSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { allOf, bytesOf, partsOf, sampleLog, sampleRecords } from "@curfew/bundle/testing/sample.ts";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { builtTools, tlogcheck } from "../tools/tools.ts";

const dir = mkdtempSync(join(tmpdir(), "curfew-bundle-"));
const read = (name: string) => readFileSync(join(dir, name));
beforeAll(async () => {
  await builtTools("verify");
  const log = sampleLog(sampleRecords(300));
  writeFileSync(join(dir, "bundle.zip"), await bytesOf(partsOf(log, allOf(log))));
  execFileSync("unzip", ["-q", "bundle.zip"], { cwd: dir });
});
afterAll(() => rmSync(dir, { recursive: true, force: true }));

describe("an unpacked evidence bundle, with tools of others", () => {
  it("proves its entries to torchwood under the policy in it, and no other entry", async () => {
    const policy = read("policy").toString();
    const names = readdirSync(join(dir, "entries")).filter((name) => name.endsWith(".bin"));
    expect(names).toHaveLength(302);
    for (const name of [names[0], names[1], names[255], names[256], names[301]] as string[]) {
      const proof = read(`entries/${name.replace(".bin", ".tlog-proof")}`);
      expect(await tlogcheck.proof(proof, policy, read(`entries/${name}`))).toMatchObject({ sound: true });
      expect(await tlogcheck.proof(proof, policy, read(`entries/${names[2]}`))).toMatchObject({ sound: false });
    }
  });

  it("has the files that its manifest lists, by sha256sum", () => {
    const { files } = JSON.parse(read("manifest.json").toString()) as { files: { name: string; sha256: string }[] };
    const sums = files.map(({ name, sha256 }) => `${sha256}  ${name}\n`).join("");
    execFileSync("sha256sum", ["--check", "--strict", "--quiet"], { cwd: dir, input: sums });
    expect(files).toHaveLength(302 * 3 + 11);
  });
});
