import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type DescMessage, equals, fromBinary, toBinary, toJson } from "@bufbuild/protobuf";
import { eventTypes } from "@curfew/event-log/event-types.ts";
import { describe, expect, it } from "vitest";
import { sampleOf } from "./sample.ts";

/**
 * One file per event type, one line of hex per shape it ever had, oldest first: bytes on topics stay readable for ever. After a field was
 * added, `WRITE_GOLDEN=1 npx vitest run test/wire` appends the new shape; a line that is there is never changed.
 */
const folder = join(import.meta.dirname, "golden");
const fileOf = (type: string) => join(folder, `${type}.hex`);
const linesOf = (type: string) =>
  existsSync(fileOf(type))
    ? readFileSync(fileOf(type), "utf8")
        .split("\n")
        .filter((line) => line !== "")
    : [];
const bytesOf = (hex: string) => Uint8Array.from(Buffer.from(hex, "hex"));

if (process.env.WRITE_GOLDEN) {
  mkdirSync(folder, { recursive: true });
  for (const { desc, type } of eventTypes) {
    const now = Buffer.from(toBinary(desc, sampleOf(desc))).toString("hex");
    const lines = linesOf(type);
    if (lines.at(-1) !== now) writeFileSync(fileOf(type), [...lines, now, ""].join("\n"));
  }
}

/** Names of the fields, at any depth, that a message has kept as bytes it does not know. */
const unknownFields = (desc: DescMessage, bytes: Uint8Array) => {
  const unknown: string[] = [];
  JSON.stringify(fromBinary(desc, bytes), (key, value: unknown) => {
    if (key === "$unknown") unknown.push(key);
    return typeof value === "bigint" ? String(value) : value;
  });
  return unknown;
};

describe.each(eventTypes)("golden bytes of $type", ({ desc, type }) => {
  const lines = linesOf(type);

  it("are there, the last ones with every field of today", () => {
    const now = Buffer.from(toBinary(desc, sampleOf(desc))).toString("hex");
    expect(lines.at(-1), "add the new shape: WRITE_GOLDEN=1 npx vitest run test/wire").toBe(now);
    const message = fromBinary(desc, bytesOf(lines.at(-1) ?? ""));
    expect(equals(desc, message, sampleOf(desc))).toBe(true);
    expect(Object.keys(toJson(desc, message) as object)).toHaveLength(desc.fields.length);
  });

  it("decode, each shape there ever was, with no field unknown, and encode to the same bytes", () => {
    expect(lines.length).toBeGreaterThan(0);
    for (const line of lines) {
      const bytes = bytesOf(line);
      expect(unknownFields(desc, bytes)).toEqual([]);
      expect(Buffer.from(toBinary(desc, fromBinary(desc, bytes))).toString("hex")).toBe(line);
    }
  });
});

it("golden bytes are kept of no type that is gone", () => {
  expect(readdirSync(folder).sort()).toEqual(eventTypes.map(({ type }) => `${type}.hex`).sort());
});
