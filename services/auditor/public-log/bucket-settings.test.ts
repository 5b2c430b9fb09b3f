import { chmodSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, it } from "vitest";
import { ledgerBucketFile } from "./bucket-settings.ts";

const dir = mkdtempSync(join(tmpdir(), "curfew-bucket-"));
afterAll(() => rmSync(dir, { recursive: true, force: true }));

const fileOf = (text: string, mode = 0o600) => {
  const file = join(dir, "bucket.yaml");
  writeFileSync(file, text);
  chmodSync(file, mode);
  return file;
};
const whole = "url: https://s3.example/evidence/2026\naccessKeyId: key\nsecretAccessKey: hidden-4711\n";

it("a bucket is read from a file", () => {
  expect(ledgerBucketFile.parse(fileOf(whole))).toEqual({
    url: "https://s3.example/evidence/2026",
    region: "us-east-1",
    credentials: { accessKeyId: "key", secretAccessKey: "hidden-4711" },
    retainMs: 3_650 * 86_400_000,
    allow: [],
  });
  writeFileSync(join(dir, "ca.pem"), "pem");
  const more = `${whole}region: eu-central-1\nretainDays: 1\nallow: ["10.0.0.1:9000"]\ncaFile: ${join(dir, "ca.pem")}\n`;
  expect(ledgerBucketFile.parse(fileOf(more))).toMatchObject({
    region: "eu-central-1",
    retainMs: 86_400_000,
    allow: ["10.0.0.1:9000"],
    ca: "pem",
  });
});

it.each([
  ["url: https://s3.example/b", /accessKeyId is required.*secretAccessKey is required/],
  [whole.replace("https:", "http:"), /url \(in the file\) must be such a URL/],
  [whole.replace("/evidence/2026", ""), /url \(in the file\) must be such a URL/],
  [whole.replace("evidence", "a b"), /url \(in the file\) must be such a URL/],
  [whole.replace("2026", "2026/"), /url \(in the file\) must be such a URL/],
  [`${whole}retainDays: 0`, /retainDays \(in the file\) must be/],
  [`${whole}secret: x`, /secret \(in the file\) is not a setting/],
  ["[]", /must be a mapping/],
])("a wrong one is refused with what is wrong, and without its secret: %j", (text, why) => {
  const parse = () => ledgerBucketFile.parse(fileOf(text));
  expect(parse).toThrow(why);
  expect(parse).not.toThrow("hidden-4711");
});

it("a file that others may read is refused", () => {
  expect(() => ledgerBucketFile.parse(fileOf(whole, 0o640))).toThrow("readable by its owner alone");
});
