import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { systemClock } from "@curfew/runtime/clock.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { openIdentityFiles, personCertificateMs } from "./identity-files.ts";

let dir: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "curfew-identity-"));
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));
const open = (clock = systemClock) =>
  openIdentityFiles({ dir, trustDomain: "curfew.example", clock, random: systemRandom });

describe("identity files", () => {
  it("keep one authority for ever, also when opened twice at once", async () => {
    const [a, b] = await Promise.all([open(), open()]);
    expect(a.caPem).toBe(b.caPem);
    expect((await open()).caPem).toBe(a.caPem);
  });

  it("note every certificate that was made, for the log", async () => {
    const files = await open();
    await files.create("workload/billing", { validMs: personCertificateMs });
    const [note] = readdirSync(files.createdDir);
    expect(JSON.parse(readFileSync(join(files.createdDir, note as string), "utf8"))).toMatchObject({
      spiffeId: "spiffe://curfew.example/workload/billing",
    });
    expect(files.list()).toEqual(["workload/billing"]);
  });

  it("are private", async () => {
    const files = await open();
    await files.create("person/dana", { validMs: personCertificateMs });
    expect(statSync(join(files.dir("person/dana"), "key.pem")).mode & 0o777).toBe(0o600);
    expect(statSync(join(dir, "ca", "authority.pem")).mode & 0o777).toBe(0o600);
  });

  it("make a new certificate when the old one ends soon, and keep it otherwise", async () => {
    const files = await open();
    const first = await files.ensure("service/issuer", { validMs: 86_400_000 });
    expect(await files.ensure("service/issuer", { validMs: 86_400_000 })).toEqual(first);
    const later = { ...systemClock, now: () => Date.now() + 80_000_000 };
    expect(await (await open(later)).ensure("service/issuer", { validMs: 86_400_000 })).not.toEqual(first);
  });

  it("make a new certificate when the two files do not belong together", async () => {
    const files = await open();
    const first = await files.ensure("service/issuer", { validMs: 86_400_000 });
    const other = await files.create("service/verifier", { validMs: 86_400_000 });
    writeFileSync(join(files.dir("service/issuer"), "key.pem"), other.keyPem);
    expect(files.read("service/issuer")).toBeUndefined();
    expect((await files.ensure("service/issuer", { validMs: 86_400_000 })).certPem).not.toBe(first.certPem);
  });

  it("refuse a path that is no identity", async () => {
    const files = await open();
    for (const path of ["workload/../../etc", "robot/x", "person/", "workload/a b"])
      await expect(files.create(path, { validMs: 1000 })).rejects.toThrow(/not an identity/);
  });
});
