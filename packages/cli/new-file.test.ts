import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, it } from "vitest";
import { exitCode } from "./exit.ts";
import { writeNewFile } from "./new-file.ts";

const dir = mkdtempSync(join(tmpdir(), "curfew-new-file-"));
afterAll(() => rmSync(dir, { recursive: true, force: true }));

async function* pieces(fail = false) {
  yield Buffer.from("one ");
  if (fail) throw new Error("no more comes");
  yield Buffer.from("two");
}

it("is whole, once, or not there", async () => {
  const file = join(dir, "file");
  await expect(writeNewFile(file, pieces(true))).rejects.toThrow("no more comes");
  expect(readdirSync(dir)).toEqual([]);
  expect(await writeNewFile(file, pieces())).toBe(7);
  await expect(writeNewFile(file, pieces())).rejects.toThrow("nothing is overwritten");
  expect(readdirSync(dir)).toEqual(["file"]);
  expect(readFileSync(file, "utf8")).toBe("one two");
});

it("in a folder that cannot be written to is a mistake that names the file as it was given", async () => {
  const folder = join(dir, "none");
  await expect(writeNewFile(join(folder, "file"), pieces())).rejects.toMatchObject({
    code: exitCode.usage,
    message: `${folder}/file cannot be written: no file can be made in ${folder} (ENOENT)`,
  });
});
