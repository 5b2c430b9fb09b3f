import { cpSync, existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { IssuerService } from "@curfew/contracts/gen/curfew/issuer/v1/issuer_pb.ts";
import { RevocationService } from "@curfew/contracts/gen/curfew/revocation/v1/revocation_pb.ts";
import { openClient } from "@curfew/rpc/client.ts";
import { createIdentitySource } from "@curfew/rpc/credentials.ts";
import { openIdentityFiles } from "@curfew/rpc/identity-files.ts";
import { eventually } from "@curfew/rpc/testing/suite.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { tokenIdFrom } from "@curfew/token-format/token-id.ts";
import { afterEach, expect, it } from "vitest";
import { type Program, readEndpoints, startProgram, startSuite } from "./suite-process.ts";

/** The suite of one process, its stores put back from a backup that is older than its log. */
const trustDomain = "curfew.example";
let closers: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closers.reverse()) await close();
  closers = [];
});

const kept = (program: Program): Program => {
  closers.push(async () => {
    program.child.kill("SIGKILL");
    await program.ended;
  });
  return program;
};
const run = async (dataDir: string) => {
  const suite = kept(startSuite(dataDir));
  await suite.until("ready in");
  return suite;
};
const end = async (suite: Program) => {
  suite.child.kill("SIGTERM");
  expect(await suite.ended).toEqual({ code: 0, signal: null });
};
const curfew = (...args: string[]) => kept(startProgram("packages/cli/main.ts", args));

/** People's calls to the suite that runs on the directory now. */
const people = async (dataDir: string) => {
  const files = await openIdentityFiles({ dir: dataDir, trustDomain, clock: systemClock, random: systemRandom });
  const { services } = readEndpoints(dataDir);
  const base = { caPem: files.caPem, trustDomain, clock: systemClock };
  const identity = (path: string) => createIdentitySource(files.read(path) as { certPem: string; keyPem: string });
  const ada = openClient(IssuerService, {
    ...{ ...base, address: services.issuer, identity: identity("person/ada"), expectService: "issuer" },
  });
  const sam = openClient(RevocationService, {
    ...{ ...base, address: services.revocation, identity: identity("person/sam"), expectService: "revocation" },
  });
  closers.push(
    () => ada.close(),
    () => sam.close(),
  );
  return {
    revoke: async () => {
      const tokenId = tokenIdFrom(systemRandom(32));
      await sam.rpc.revokeToken({ requestId: crypto.randomUUID(), tokenId, reason: 1 });
      return tokenId;
    },
    /** Who has taken effect. */
    effective: (tokenId: string) =>
      eventually(async () => {
        const revocation = await sam.rpc.getRevocation({ tokenId });
        expect(revocation.effectiveAt).toBeDefined();
        return revocation;
      }, 20_000),
    publishPolicy: async (scope: string) => {
      const document = `
rules:
  - { name: all, subjects: [workload/billing], scopes: ["${scope}"], resources: ["**"], audiences: [invoices], purposes: [billing], data_categories: [financial] }
`;
      return (await ada.rpc.publishPolicy({ requestId: crypto.randomUUID(), policy: "p", document })).version;
    },
  };
};

it("does not start, is restored by a command that may be killed, and goes on with all that it ever said", async () => {
  const dir = mkdtempSync(join(tmpdir(), "curfew-restored-"));
  closers.push(() => rmSync(dir, { recursive: true, force: true }));
  const dataDir = join(dir, "data");
  const first = await run(dataDir);
  const old = await people(dataDir);
  expect(await old.publishPolicy("a:read")).toBe(1);
  const early = await old.revoke();
  await old.effective(early);
  expect(await kept(curfew("restore", "--data", dataDir)).ended).toMatchObject({ code: 3 });
  await end(first);
  cpSync(join(dataDir, "store"), join(dir, "backup"), { recursive: true });

  const second = await run(dataDir);
  const then = await people(dataDir);
  expect(await then.publishPolicy("b:read")).toBe(2);
  const revoked = await Promise.all(Array.from({ length: 200 }, () => then.revoke()));
  const proofs = await Promise.all(revoked.map((tokenId) => then.effective(tokenId)));
  await end(second);
  // Closed in order, a database is one file.
  for (const name of ["issuer.db", "revocation.db"])
    cpSync(join(dir, "backup", name), join(dataDir, "store", name), { force: true });

  const refused = kept(startSuite(dataDir));
  expect(await refused.ended).toEqual({ code: 1, signal: null });
  expect(refused.err).toContain("curfew restore --data");

  for (const delayMs of [0, 20, 40]) {
    const killed = curfew("restore", "--data", dataDir);
    // From when it has opened the stores: some time into its work.
    await eventually(() => expect(existsSync(join(dataDir, "store", "issuer.db-wal"))).toBe(true));
    await systemClock.sleep(delayMs);
    killed.child.kill("SIGKILL");
    await killed.ended;
  }
  const restoring = curfew("restore", "--data", dataDir, "--output", "json");
  expect(await restoring.ended).toEqual({ code: 0, signal: null });
  expect(JSON.parse(restoring.out)).toMatchObject([
    { service: "issuer", replaced: 0 },
    { service: "revocation", replaced: 0 },
    { service: "auditor", commits: 0 },
    { service: "breach-notifier", commits: 0 },
  ]);

  await run(dataDir);
  const now = await people(dataDir);
  for (const tokenId of [early, ...revoked.slice(-5)]) await now.effective(tokenId);
  const again = await now.effective(revoked[0] as string);
  expect(again.revocationEventId).toBe(proofs[0]?.revocationEventId);
  expect(await now.publishPolicy("c:read")).toBe(3);
  await now.effective(await now.revoke());
}, 120_000);
