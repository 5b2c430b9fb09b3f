import { randomBytes } from "node:crypto";
import { mkdtempSync, readdirSync, rmSync, statSync, utimesSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { logFilesContract } from "./contract.ts";
import { openDirectory } from "./directory.ts";

const machine = { clock: Date, random: randomBytes };
let dir = "";
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "curfew-ledger-"));
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

const bytes = (text: string) => Buffer.from(text);
const names = () => readdirSync(dir, { recursive: true, encoding: "utf8" }).sort();

logFilesContract("a directory", async () => {
  const place = join(dir, "contract");
  const again = () => openDirectory(place, machine);
  return { files: again(), again };
});

it("keeps files under their paths, replaces them whole, and lets nobody else read them", async () => {
  const files = openDirectory(join(dir, "new", "ledger"), machine);
  expect(await files.read("checkpoint")).toBeUndefined();
  await files.write([{ path: "tile/0/x001/000.p/3", bytes: bytes("abc") }]);
  await files.write([{ path: "checkpoint", bytes: bytes("one") }]);
  await files.write([{ path: "checkpoint", bytes: bytes("two") }]);
  expect(await files.read("checkpoint")).toEqual(bytes("two"));
  expect(await openDirectory(join(dir, "new", "ledger"), machine).read("tile/0/x001/000.p/3")).toEqual(bytes("abc"));
  expect(names().filter((name) => name.includes(".new-"))).toEqual([]);
  for (const name of names()) expect(statSync(join(dir, name)).mode & 0o077).toBe(0);
});

it.each(["../secret", "tile/0/../../secret", "tile/0/001.p/256", "/etc/passwd", "seal", ""])(
  "%j is no file of a log: it is neither read nor written",
  async (path) => {
    writeFileSync(join(dir, "secret"), "x");
    const files = openDirectory(join(dir, "ledger"), machine);
    await expect(files.read(path)).rejects.toThrow(/a (partial )?tile/);
    await expect(files.write([{ path, bytes: bytes("y") }])).rejects.toThrow(/a (partial )?tile/);
    expect(names()).toEqual(["secret"]);
  },
);

it("drafts that a kill left behind are removed at the first write, those of another writer are not", async () => {
  for (const name of [".new-old", ".new-young"]) writeFileSync(join(dir, name), "x");
  utimesSync(join(dir, ".new-old"), new Date(0), new Date(0));
  await openDirectory(dir, machine).write([{ path: "checkpoint", bytes: bytes("one") }]);
  expect(names()).toEqual([".new-young", "checkpoint"]);
});

it("what cannot be written leaves nothing behind, and what was there stays", async () => {
  const files = openDirectory(dir, machine);
  await files.write([{ path: "checkpoint", bytes: bytes("one") }]);
  const broken = [
    {
      path: "checkpoint",
      get bytes(): Uint8Array {
        throw new Error("no bytes");
      },
    },
  ];
  await expect(files.write(broken)).rejects.toThrow("no bytes");
  expect(names()).toEqual(["checkpoint"]);
  expect(await files.read("checkpoint")).toEqual(bytes("one"));
});
