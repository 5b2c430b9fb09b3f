import { createDecipheriv, type KeyObject, randomUUID } from "node:crypto";
import { cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parsePaging } from "@curfew/breach-notifier/paging.ts";
import { AuditorService } from "@curfew/contracts/gen/curfew/auditor/v1/auditor_pb.ts";
import { DataSubjectService, ErasureState } from "@curfew/contracts/gen/curfew/auditor/v1/data_subjects_pb.ts";
import { Delivery, EvidenceMode } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import { AccessGround } from "@curfew/contracts/gen/curfew/events/v1/data_subjects_pb.ts";
import { Outcome, type UseDecided } from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import { IssuerService } from "@curfew/contracts/gen/curfew/issuer/v1/issuer_pb.ts";
import { VerifierService } from "@curfew/contracts/gen/curfew/verifier/v1/verifier_pb.ts";
import { openSuite, type Suite } from "@curfew/deploy/embedded/suite.ts";
import { readSuiteConfig } from "@curfew/deploy/embedded/suite-config.ts";
import { readEvent } from "@curfew/event-log/envelope.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { openEpochKeys } from "@curfew/keyring/epoch-keys.ts";
import { openIdentityFiles, personCertificateMs } from "@curfew/rpc/identity-files.ts";
import { eventually } from "@curfew/rpc/testing/suite.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import { lengthPrefixed } from "@curfew/runtime/length-prefixed.ts";
import { openLog } from "@curfew/runtime/log.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { afterEach, expect, it } from "vitest";
import { openCast } from "./cast.ts";
import { readSqliteBus } from "./places.ts";
import { startProgram } from "./suite-process.ts";

/** A person is erased from a whole suite, and somebody with every file of it looks for them: before, after, and from a backup. */
const root = fileURLToPath(new URL("../../", import.meta.url));
const trustDomain = "curfew.example";
const dayMs = 86_400_000;
const hers = "203.0.113.77";
const his = "198.51.100.20";

const closers: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).toReversed()) await close();
});

const policy = `rules:
  - { name: all, subjects: [workload/billing], scopes: [invoices:read], resources: ["invoices/**"], audiences: [invoices],
      purposes: [billing], data_categories: [contact], binding: none, ttl_max: 1h, delivery: [direct], evidence: before-use }
`;
const use = {
  ...{ scope: "invoices:read", resource: "invoices/7", purpose: "billing", dataCategories: ["contact"] },
  ...{ controller: "acme", maxPeople: 3n, maxRecords: 3n, sourceCountry: "DE" },
};

/** The suite of one process, ended and begun again on the same directory. */
const openRig = async () => {
  const dir = mkdtempSync(join(tmpdir(), "curfew-erasure-"));
  closers.push(() => rmSync(dir, { recursive: true, force: true }));
  const dataDir = join(dir, "data");
  const keysDir = join(dir, "keys");
  mkdirSync(dataDir, { mode: 0o700 });
  const identities = await openIdentityFiles({ dir: dataDir, trustDomain, clock: systemClock, random: systemRandom });
  await identities.create("workload/billing", { validMs: personCertificateMs });
  const logged: string[] = [];
  const log = openLog({ service: "curfew", level: "info", write: (line) => void logged.push(line) });
  let suite: Suite | undefined;
  const cast = openCast(() => (suite as Suite).endpoints, dataDir);
  const stop = async () => {
    await cast.close();
    await suite?.close();
    suite = undefined;
  };
  closers.push(stop);
  const start = async (epochMs: number) => {
    const config = readSuiteConfig(join(root, "deploy/embedded/curfew.yaml"), parsePaging);
    const personalData = { epochMs, backupDays: 0, settleMs: 0 };
    suite = await openSuite({ dataDir, keysDir, config: { ...config, personalData }, port: 0, reflection: false, log });
    return {
      dana: cast.client(DataSubjectService, "auditor", "person/dana"),
      auditor: cast.client(AuditorService, "auditor", "person/dana"),
      verifier: cast.client(VerifierService, "verifier", "workload/invoices"),
      issuer: (path: string) => cast.client(IssuerService, "issuer", path),
    };
  };
  const curfew = async (...args: string[]) => {
    const program = startProgram("packages/cli/main.ts", args, { env: { CURFEW_DATA_DIR: dataDir } });
    const { code } = await program.ended;
    return { code, out: program.out, err: program.err };
  };
  const decided = async () => {
    const found: UseDecided[] = [];
    await readSqliteBus(join(dataDir, "bus.db"), (record) => {
      if (record.topic !== topicNames.uses) return;
      const { message } = readEvent(record);
      if (message.$typeName === "curfew.events.v1.UseDecided") found.push(message as UseDecided);
    });
    return found;
  };
  return { dir, dataDir, keysDir, logged, start, stop, curfew, decided };
};

const filesBelow = (directory: string): string[] =>
  readdirSync(directory, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && statSync(join(entry.parentPath, entry.name)).size > 0)
    .map((entry) => join(entry.parentPath, entry.name));

/** As packages/personal-data/epoch-wrap.ts writes it, written out a second time: nonce, key of 32 bytes, tag. */
const wrappedKeyAt = (bytes: Buffer, at: number, key: KeyObject, aad: Buffer): boolean => {
  const opening = createDecipheriv("aes-256-gcm", key, bytes.subarray(at, at + 12), { authTagLength: 16 });
  opening.setAAD(aad).setAuthTag(bytes.subarray(at + 44, at + 60));
  opening.update(bytes.subarray(at + 12, at + 44));
  try {
    opening.final();
    return true;
  } catch {
    return false;
  }
};

/** Files with a copy of the person's key that an epoch's key in `keysDir` opens, at whatever place: rows, free pages, write-ahead log. */
const copiesOfKey = (pseudonym: string, keysDir: string, files: readonly string[]): string[] => {
  const epochs = openEpochKeys({ dir: keysDir, random: systemRandom, clock: systemClock }).live();
  return files.filter((file) => {
    const bytes = readFileSync(file);
    return epochs.some(({ number, key }) => {
      const aad = lengthPrefixed("curfew/epoch-wrap/v1", String(number), "person", pseudonym);
      // A BSON field w<epoch> of 60 bytes stands before it: its name is what is looked for first.
      const name = Buffer.concat([Buffer.from(`\u0005w${number}\0`), Buffer.from([60, 0, 0, 0, 0])]);
      for (let at = bytes.indexOf(name); at >= 0; at = bytes.indexOf(name, at + 1))
        if (wrappedKeyAt(bytes, at + name.length, key, aad)) return true;
      return false;
    });
  });
};

/** Files with one of the texts in plain, in hexadecimal or in base64. */
const inPlain = (texts: readonly string[], files: readonly string[]): string[] => {
  const forms = texts.flatMap((text) => [
    Buffer.from(text),
    Buffer.from(Buffer.from(text).toString("hex")),
    ...[0, 1, 2].map((pad) => {
      const coded = Buffer.concat([Buffer.alloc(pad), Buffer.from(text)]).toString("base64");
      return Buffer.from(coded.slice(Math.ceil((pad * 8) / 6), Math.floor(((pad + text.length) * 8) / 6)));
    }),
  ]);
  return files.filter((file) => {
    const bytes = readFileSync(file);
    return forms.some((form) => bytes.includes(form));
  });
};

it("is held up by a hold, then nobody finds them: not in the files after the date, not in a backup, and every proof still checks", {
  timeout: 180_000,
}, async () => {
  const rig = await openRig();
  const { dir, dataDir, keysDir } = rig;
  let suite = await rig.start(365 * dayMs);
  const ada = suite.issuer("person/ada");
  await ada.publishPolicy({ requestId: randomUUID(), policy: "p", document: policy });
  const issue = () =>
    suite.issuer("workload/billing").createToken({
      requestId: randomUUID(),
      grant: {
        ...{ scopes: ["invoices:read"], resources: ["invoices/**"], audiences: ["invoices"], purposes: ["billing"] },
        ...{ dataCategories: ["contact"], ttl: { seconds: 3600n }, evidenceMode: EvidenceMode.BEFORE_USE },
      },
      delivery: Delivery.DIRECT,
    });
  const { secret } = await issue();
  const useFrom = async (address: string, by = secret) => {
    const asked = { credential: { case: "secret", value: by } as const, use: { ...use, sourceAddress: address } };
    const answer = await eventually(async () => {
      const found = await suite.verifier.verifyToken(asked);
      expect(found.allowed).toBe(true);
      return found;
    }, 20_000);
    return answer.useId;
  };
  const [herUse, hisUse] = [await useFrom(hers), await useFrom(his)];
  const all = await rig.decided();
  const pseudonymOf = (useId: string) => all.find((each) => each.useId === useId)?.source?.addressPseudonym ?? "";
  const [her, him] = [pseudonymOf(herUse), pseudonymOf(hisUse)];
  const open = (useId: string) =>
    suite.dana.openSealedField({ requestId: randomUUID(), useId, ground: AccessGround.INCIDENT, reference: "case/1" });
  const sealed = async (useId: string) => eventually(() => open(useId), 20_000);
  expect(await sealed(herUse)).toMatchObject({ address: hers, country: "DE", pseudonym: her });

  // Another token reached her, and leaks: she counts in the upper bound of its case, beside the population.
  const leaked = await issue();
  const reaching = { useId: await useFrom("192.0.2.9", leaked.secret), tokenId: leaked.token?.tokenId ?? "" };
  const people = [{ controller: "acme", identifierType: "address", value: hers }];
  await suite.verifier.reportUses({
    completedUses: [{ ...reaching, outcome: Outcome.COMPLETED, records: 1n, people, part: 1, parts: 1 }],
  });
  expect(await rig.curfew("revoke", reaching.tokenId, "--reason", "leaked", "--as", "person/sam")).toMatchObject({
    code: 0,
  });
  const caseOfLeak = () =>
    eventually(async () => {
      const { out } = await rig.curfew("case", "list", "--as", "person/dana", "-o", "json");
      const found = (JSON.parse(out) as { token: string; people?: object }[]).find(
        ({ token }) => token === reaching.tokenId,
      );
      expect(found?.people).toEqual({ lower: 0, best: 0, upper: 12_001 });
      return found?.people;
    }, 30_000);
  const counted = await caseOfLeak();

  // Hold, export, bundle: on the command line, the identifier from a file.
  const valueFile = join(dir, "who");
  writeFileSync(valueFile, `${hers}\n`, { mode: 0o600 });
  const who = ["--identity", "acme/address", "--value-file", valueFile, "--as", "person/dana"];
  const held = await rig.curfew(
    "subject",
    "hold",
    ...who,
    "--ground",
    "legal-claims",
    "--reference",
    "claim/7",
    "-o",
    "json",
  );
  expect(held).toMatchObject({ code: 0 });
  const holdId: string = JSON.parse(held.out).holds[0].hold;
  const refused = await rig.curfew("subject", "erase", ...who);
  expect(refused.code).toBe(3);
  expect(refused.err).toMatch(/HOLD_IN_FORCE.*Art\. 17\(3\)\(e\)\), claim\/7/);
  expect(await rig.curfew("subject", "release", ...who, "--hold", holdId)).toMatchObject({ code: 0 });
  const exported = join(dir, "exported");
  expect(await rig.curfew("subject", "export", ...who, "-o", exported)).toMatchObject({ code: 0 });
  const json = JSON.parse(readFileSync(join(exported, "export.json"), "utf8"));
  expect(json).toMatchObject({
    pseudonym: her,
    holds: [],
    erasure: [],
    cases: [{ id: expect.stringContaining(reaching.tokenId) }],
  });
  expect(json.events.filter((e: { role: string }) => e.role === "source")).toMatchObject([{ sourceAddress: hers }]);
  expect(JSON.stringify(json)).not.toContain(him);
  const page = readFileSync(join(exported, "export.html"), "utf8");
  expect(page).toContain(hers);
  expect(statSync(join(exported, "export.html")).mode & 0o777).toBe(0o600);
  const bundle = join(dataDir, "before.zip");
  const from = new Date(Date.now() - 3_600_000).toISOString();
  expect(await rig.curfew("audit", "export", "--from", from, "-o", bundle, "--as", "person/dana")).toMatchObject({
    code: 0,
  });

  // The control: with every file and the keys she is found; her address stands nowhere in plain, and would be found there.
  const everyFile = () => filesBelow(dataDir);
  expect(copiesOfKey(her, keysDir, everyFile()).join()).toContain("personal.db");
  expect(inPlain([hers], everyFile())).toEqual([]);
  writeFileSync(join(dataDir, "stray"), Buffer.from(`x${hers}`).toString("base64"));
  expect(inPlain([hers], everyFile())).toEqual([join(dataDir, "stray")]);
  rmSync(join(dataDir, "stray"));

  await rig.stop();
  const backup = join(dir, "backup.db");
  cpSync(join(dataDir, "store", "personal.db"), backup);
  suite = await rig.start(365 * dayMs);
  const erased = await rig.curfew("subject", "erase", ...who, "--reference", "dsr/9", "-o", "json");
  expect(erased).toMatchObject({ code: 0 });
  const statusOf = async () =>
    (await suite.dana.getDataSubject({ subject: { who: { case: "pseudonym", value: her } } })).subject?.erasure;
  const propagated = await eventually(async () => {
    const erasure = await statusOf();
    expect(erasure?.state).toBe(ErasureState.PROPAGATED);
    return erasure;
  }, 30_000);
  expect(propagated).toMatchObject({ known: true, consumers: [{ acknowledged: true, lapsed: false }] });
  expect(propagated?.residue.join()).toMatch(/wrapped under the key of epoch 1: until .*backups/);
  await expect(open(herUse)).rejects.toThrow("erased");
  await expect(
    suite.dana.getDataSubject({
      subject: { who: { case: "identity", value: { controller: "acme", identifierType: "address", value: hers } } },
    }),
  ).rejects.toThrow("nobody is known");
  expect((await sealed(hisUse)).address).toBe(his);

  // An old store comes back: the log's erasures are done again before anybody is served.
  await rig.stop();
  cpSync(backup, join(dataDir, "store", "personal.db"));
  expect(copiesOfKey(her, keysDir, everyFile()).join()).toContain("personal.db");
  suite = await rig.start(365 * dayMs);
  expect(rig.logged.join("\n")).toContain("the personal store has people who were erased");
  await expect(open(herUse)).rejects.toThrow("erased");
  expect((await sealed(hisUse)).address).toBe(his);
  const later = await useFrom(hers);
  expect((await rig.decided()).find((each) => each.useId === later)?.source?.addressPseudonym).not.toBe(her);
  await rig.stop();

  // The epoch ends: until then a backup together with the keys has her, afterwards nothing does.
  expect(copiesOfKey(her, keysDir, [backup])).toEqual([backup]);
  suite = await rig.start(1_000);
  const completed = await eventually(async () => {
    const erasure = await statusOf();
    expect(erasure?.state).toBe(ErasureState.COMPLETED);
    return erasure;
  }, 60_000);
  expect(completed?.residue).toEqual([]);
  expect((await sealed(hisUse)).address).toBe(his);
  expect((await sealed(later)).address).toBe(hers);
  await expect(open(herUse)).rejects.toThrow("erased");
  const { verifierKey } = await suite.auditor.getCheckpoint({});
  expect(await rig.curfew("verify", join(dataDir, "ledger"), "--key", verifierKey)).toMatchObject({ code: 0 });
  // Of a bundle as of the ledger the proofs hold; 3 says only that what came after it is not in it.
  expect([0, 3]).toContain((await rig.curfew("verify", bundle, "--key", verifierKey)).code);
  await rig.stop();
  expect(copiesOfKey(her, keysDir, [...everyFile(), backup])).toEqual([]);
  expect(copiesOfKey(him, keysDir, everyFile()).join()).toContain("personal.db");
  expect(inPlain([hers, his], [...everyFile(), backup])).toEqual([]);
  expect(rig.logged.join("\n")).not.toContain(hers);
  // The pseudonyms stay, so what was published of them stays explainable: the same count, by what is on the log.
  suite = await rig.start(365 * dayMs);
  expect(await caseOfLeak()).toEqual(counted);
  await rig.stop();
  expect((await rig.decided()).filter((each) => each.source?.addressPseudonym === her)).toHaveLength(1);
});
