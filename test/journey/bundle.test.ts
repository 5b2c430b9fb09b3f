import { spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { file } from "@curfew/bundle/layout.ts";
import { type Files, filesOf, signedAgain } from "@curfew/bundle/testing/archive.ts";
import {
  allOf,
  bytesOf,
  origin,
  partsOf,
  sampleLog,
  sampleRecords,
  signer,
  signerOf,
  stampOf,
  verifierKey,
} from "@curfew/bundle/testing/sample.ts";
import { formatAddCheckpoint } from "@curfew/ledger/add-checkpoint.ts";
import { signCheckpoint } from "@curfew/ledger/checkpoint.ts";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { curfew } from "../tools/curfew.ts";
import { openTsa, type Tsa } from "../tools/tsa.ts";

/** An evidence bundle in the hands of a stranger: `curfew verify` as a process of its own, and what VERIFY.md tells to do without it. */

const dir = mkdtempSync(join(tmpdir(), "curfew-stranger-"));
afterAll(() => rmSync(dir, { recursive: true, force: true }));
const at = (name: string, bytes?: Uint8Array | string) => {
  const path = join(dir, name);
  mkdirSync(dirname(path), { recursive: true });
  if (bytes !== undefined) writeFileSync(path, bytes);
  return path;
};
const asset = (name: string) => fileURLToPath(new URL(`../../packages/bundle/${name}`, import.meta.url));
const verify = async (bundle: Uint8Array, ...more: string[]) => {
  const { code, out, err } = await curfew(
    "verify",
    at("bundle.zip", bundle),
    "--key",
    verifierKey,
    "-o",
    "json",
    ...more,
  );
  return { code, err, verdict: out === "" ? undefined : JSON.parse(out) };
};
const records = sampleRecords(6);
const log = sampleLog(records);

describe("curfew verify of a bundle", () => {
  it("does not take an unpacked one for a ledger that lost its files", async () => {
    for (const [name, bytes] of await filesOf(await bytesOf(partsOf(log, allOf(log))))) at(join("loose", name), bytes);
    const { code, out, err } = await curfew("verify", at("loose"), "--key", verifierKey);
    expect({ code, out }).toEqual({ code: 4, out: "" });
    expect(err).toMatch(/loose is an unpacked bundle: verify the ZIP file that it came from\n$/);
  });

  it("ends with 0 where both verdicts hold", async () => {
    expect(await verify(await bytesOf(partsOf(log, allOf(log))))).toMatchObject({
      code: 0,
      verdict: { integrity: { holds: true }, completeness: { verdict: "holds" } },
    });
  });

  it("ends with 3 where a record was deleted before it was sealed, or a leaf was left out, and says which", async () => {
    const shorter = sampleLog(records.toSpliced(3, 1));
    const gap = "verifier/a/1: record 4 is missing before curfew.uses.v1/0@4";
    const deleted = await verify(await bytesOf(partsOf(shorter, allOf(shorter))));
    expect(deleted).toEqual({
      code: 3,
      err: `curfew: incomplete: ${gap}\n`,
      verdict: expect.objectContaining({
        integrity: expect.objectContaining({ holds: true }),
        completeness: expect.objectContaining({ verdict: "broken", proved: [], missing: [gap] }),
      }),
    });
    const left = await bytesOf(
      partsOf(
        log,
        allOf(log).filter((index) => index !== 3),
      ),
    );
    const missing = ["of the range leaf number 3 is missing", gap];
    expect(await verify(left)).toMatchObject({ code: 3, verdict: { completeness: { verdict: "broken", missing } } });
    const table = await curfew("verify", at("bundle.zip"), "--key", verifierKey);
    expect(table).toMatchObject({ code: 3, out: expect.stringMatching(/^completeness: +broken: of the range leaf/m) });
  });
});

describe.skipIf(process.env.ABSENT_PROGRAMS?.includes("openssl"))("the timestamp in a bundle, by openssl ts", () => {
  let [tsa, stranger]: Tsa[] = [];
  let whole: Buffer;
  let part: Buffer;
  let files: Files;
  const stamped = async (size: number) => {
    const stamp = await stampOf(log, size, tsa as Tsa);
    return await bytesOf({ ...partsOf(log, allOf(log)), stamp: async () => stamp });
  };
  beforeAll(async () => {
    [tsa, stranger] = await Promise.all([openTsa(), openTsa()]);
    [whole, part] = [await stamped(log.size), await stamped(5)];
    files = await filesOf(part);
  });
  afterAll(() => {
    tsa?.close();
    stranger?.close();
  });
  /** A timestamp of what the ledger's key has signed as another beginning. */
  const forkOf = (size: number) => {
    const forked = signCheckpoint({ origin, size, root: Buffer.alloc(32, 5) }, [signer]);
    return stampOf({ ...log, checkpoints: log.checkpoints.with(size, forked) }, size, tsa as Tsa);
  };
  const ca = () => ["--tsa-ca", tsa?.caFile as string];

  it("bounds its entries under the certificate of the authority, all of them or those before it", async () => {
    const all = await verify(whole, ...ca());
    expect(all).toMatchObject({ code: 0, verdict: { timestamp: { size: 8, entries: 8, checked: true } } });
    const { time } = all.verdict.timestamp;
    expect(Math.abs(Date.parse(time) - Date.now())).toBeLessThan(600_000);
    const says = "says a time-stamp authority of --tsa-ca";
    expect(all.verdict.integrity.proved).toContain(`its entries (8) existed before ${time}, ${says}`);
    expect(JSON.stringify(all.verdict.integrity.notProved)).not.toContain("exist");

    const some = await verify(part, ...ca());
    expect(some).toMatchObject({ code: 0, verdict: { timestamp: { size: 5, entries: 5, checked: true } } });
    const before = some.verdict.timestamp.time;
    expect(some.verdict.integrity.proved).toContain(`its entries before leaf 5 (5) existed before ${before}, ${says}`);
    expect(some.verdict.integrity.notProved).toContain(
      "since when its entries from leaf 5 on exist: they are newer than the timestamp",
    );
  });

  it("is told to people on the timeline, and so is that there is none", async () => {
    const told = async (bundle: Buffer) => {
      const page = (await filesOf(bundle)).find(([name]) => name === file.timeline)?.[1] ?? [];
      return /<dt>Outside timestamp<\/dt><dd>([^<]+)/.exec(Buffer.from(page).toString())?.[1];
    };
    const when = async (bundle: Buffer) => (await verify(bundle)).verdict.timestamp.time;
    const says = "existed before that, says a time-stamp authority";
    expect(await told(whole)).toBe(`${await when(whole)}: the entries ${says}`);
    const newer = "; those from leaf 5 on are not bounded by it";
    expect(await told(part)).toBe(`${await when(part)}: the entries before leaf 5 ${says}${newer}`);
    expect(await told(await bytesOf(partsOf(log, allOf(log))))).toBe("none in this bundle");
  });

  it("proves nothing without that certificate, and that is said", async () => {
    const { code, verdict } = await verify(part);
    expect({ code, timestamp: verdict.timestamp }).toMatchObject({ code: 0, timestamp: { size: 5, checked: false } });
    expect(JSON.stringify(verdict.integrity.proved)).not.toContain("exist");
    expect(verdict.integrity.notProved).toContain(
      `that its entries before leaf 5 existed before ${verdict.timestamp.time}: the timestamp was not checked, because no certificate of its authority was given: --tsa-ca FILE`,
    );
    const none = await verify(await bytesOf(partsOf(log, allOf(log))), ...ca());
    expect(none.verdict.integrity.notProved).toContain("since when its entries exist: there is no timestamp in it");
    expect(none.verdict.timestamp).toBeUndefined();
  });

  it("under another certificate breaks integrity; a file without one is a usage error, and so is one for a log", async () => {
    expect(await verify(part, "--tsa-ca", stranger?.caFile as string)).toMatchObject({
      code: 1,
      verdict: { integrity: { holds: false, file: file.stamp } },
      err: expect.stringContaining(`${file.stamp}: the signature does not lead to a trusted authority`),
    });
    expect(await verify(part, "--tsa-ca", at("none.pem", "none"))).toMatchObject({
      code: 2,
      err: expect.stringContaining("none.pem: there is no PEM certificate"),
    });
    expect(await curfew("verify", dir, "--key", verifierKey, ...ca())).toMatchObject({
      code: 2,
      err: expect.stringContaining("--tsa-ca is for a bundle"),
    });
  });

  it("of another tree, over something else, or in part is refused with the file and why, whoever signed the bundle", async () => {
    const fork = await forkOf(5);
    const elsewhere = signerOf(1, "other.example/ledger").signer;
    const foreign = signCheckpoint({ origin: elsewhere.name, size: 5, root: Buffer.alloc(32, 5) }, [elsewhere]);
    const checkpoint = log.checkpoints[8] as string;
    const { response } = await stampOf(log, 4, tsa as Tsa);
    const flipped = Buffer.from(files.find(([name]) => name === file.stamp)?.[1] ?? []);
    flipped[flipped.length - 1] = (flipped.at(-1) as number) ^ 1;
    const cases: readonly (readonly [Readonly<Record<string, Uint8Array | string | undefined>>, string])[] = [
      [
        { [file.stamped]: fork.checkpoint, [file.stamp]: fork.response },
        `${file.stampedConsistency}: the tree of checkpoint does not begin with that of ${file.stamped}`,
      ],
      [{ [file.stamped]: foreign }, `${file.stamped}: it is of another log`],
      [{ [file.stamped]: log.checkpoints[4] }, `${file.stampedConsistency}: the tree of checkpoint does not begin`],
      [{ [file.stamped]: "nonsense" }, `${file.stamped}: a note is text`],
      [
        { [file.stampedConsistency]: formatAddCheckpoint({ old: 5, proof: [], checkpoint }) },
        `${file.stampedConsistency}: the tree of checkpoint does not begin`,
      ],
      [
        { [file.stampedConsistency]: formatAddCheckpoint({ old: 5, proof: fork.proof, checkpoint: fork.checkpoint }) },
        `${file.stampedConsistency}: its checkpoint is not that of checkpoint`,
      ],
      [{ [file.stamp]: response }, `${file.stamp}: the timestamp is of something else`],
      [{ [file.stamp]: "nonsense" }, `${file.stamp}: the answer is malformed`],
      [{ [file.stamp]: Buffer.alloc(70_000) }, `${file.stamp}: over 65536 bytes`],
      [{ [file.stamped]: undefined }, `${file.stamped}: it is missing`],
      [{ [file.stampedConsistency]: undefined }, `${file.stampedConsistency}: it is missing`],
      [{ [file.stamp]: undefined }, `${file.stamp}: it is missing`],
    ];
    for (const [changes, why] of cases)
      expect(await verify(signedAgain(files, changes))).toMatchObject({
        code: 1,
        verdict: { integrity: { holds: false, file: why.split(": ")[0], why: expect.stringContaining(why) } },
      });
    // What takes the certificate to see.
    const broken = signedAgain(files, { [file.stamp]: flipped });
    expect((await verify(broken)).code).toBe(0);
    expect(await verify(broken, ...ca())).toMatchObject({
      code: 1,
      err: expect.stringContaining(`${file.stamp}: the signature does not hold`),
    });
    const late = await bytesOf({ ...partsOf(log, [6, 7]), stamp: () => stampOf(log, 5, tsa as Tsa) });
    expect(await verify(late)).toMatchObject({ code: 1, err: expect.stringContaining("it has none of the entries") });
  });

  it("is checked with openssl by what VERIFY.md says, in an unpacked bundle", async () => {
    for (const [name, bytes] of files) at(join("unpacked", name), bytes);
    at("unpacked/CA.pem", tsa?.caPem);
    const [, commands = ""] = /```sh\n([^`]+)```/.exec(readFileSync(at(join("unpacked", file.readMe)), "utf8")) ?? [];
    expect(commands).toContain("openssl ts -verify");
    const run = () =>
      spawnSync("sh", ["-ec", `exec 2>&1\n${commands}`], { cwd: at("unpacked"), encoding: "utf8" }).stdout;
    const said = run();
    expect(said).toContain("Verification: OK");
    const [, when = ""] = /^Time stamp: (.+)$/m.exec(said) ?? [];
    const { verdict } = await verify(part, ...ca());
    expect(new Date(when).toISOString()).toBe(verdict.timestamp.time);
    at(join("unpacked", file.stamped), log.checkpoints[4]);
    expect(run()).toContain("Verification: FAILED");
  });

  it.skipIf(process.env.ABSENT_PROGRAMS?.includes("python3"))(
    "is tied to the tree by verify.py, which leaves its signature to openssl",
    async () => {
      const script = (bundle: Uint8Array) => {
        const args = [asset("verify.py"), at("bundle.zip", bundle), verifierKey];
        const { stdout, stderr } = spawnSync("python3", args, { encoding: "utf8" });
        return stdout + stderr;
      };
      expect(script(part)).toContain("not checked: the timestamp over leaves before 5: VERIFY.md says how\n");
      expect(script(whole)).toContain("not checked: the timestamp over leaves before 8: VERIFY.md says how\n");
      const other = signedAgain(files, { [file.stamped]: (await forkOf(5)).checkpoint });
      expect(script(other)).toBe("NOT VERIFIED: timestamp/consistency: the log was rewritten\n");
    },
  );
});
