import { execFile } from "node:child_process";
import { generateKeyPairSync } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { openSuite, type Suite } from "@curfew/deploy/embedded/suite.ts";
import { readSuiteConfig } from "@curfew/deploy/embedded/suite-config.ts";
import { cosignerKeyText, verifierKeyText } from "@curfew/ledger/note-key.ts";
import { openByPolicy, parsePolicy } from "@curfew/ledger/policy.ts";
import { openLog } from "@curfew/runtime/log.ts";
import { afterAll, beforeAll, expect, it } from "vitest";
import { type OwnWitness, openOwnWitness } from "../tools/own-witness.ts";
import { policyOf } from "../tools/tools.ts";
import { openTsa, serveTsa, type Tsa } from "../tools/tsa.ts";

/**
 * The suite of `npm start` with a witness and a time-stamp authority in its curfew.yaml: from the first start, at which nobody knows the
 * ledger's key, to a checkpoint that others have vouched for.
 */

const run = promisify(execFile);
const main = fileURLToPath(new URL("../../packages/cli/main.ts", import.meta.url));
const dir = mkdtempSync(join(tmpdir(), "curfew-witnessed-"));
let suite: Suite | undefined;
let witness: OwnWitness | undefined;
let tsa: Tsa;
let authority: Awaited<ReturnType<typeof serveTsa>>;
beforeAll(async () => {
  tsa = await openTsa();
  authority = await serveTsa(tsa);
});
afterAll(async () => {
  await suite?.close();
  await witness?.stop();
  authority.close();
  tsa.close();
  rmSync(dir, { recursive: true, force: true });
});

const sample = readFileSync(new URL("../../deploy/embedded/curfew.yaml", import.meta.url), "utf8");
const log = openLog({ service: "test", level: "error", write: () => undefined });

const start = (policy: string, allow: string) => {
  writeFileSync(join(dir, "policy"), policy);
  writeFileSync(
    join(dir, "curfew.yaml"),
    `${sample}
witnesses: { policy_file: ${join(dir, "policy")}, allow: ["${allow}"] }
timestamps: { url: "${authority.url}", ca_file: ${tsa.caFile}, allow: ["${authority.host}"] }
`,
  );
  const config = readSuiteConfig(join(dir, "curfew.yaml"), () => undefined);
  return openSuite({ dataDir: join(dir, "data"), config, port: 0, reflection: false, log });
};

const audit = (...args: string[]) => [
  main,
  "audit",
  ...args,
  "-o",
  "json",
  "--as",
  "person/dana",
  "--data",
  join(dir, "data"),
];

const health = async () => {
  const args = audit("health");
  const out = await run(process.execPath, args).then(
    ({ stdout }) => stdout,
    // Its exit code is that of the verdicts, of which some are not known yet.
    ({ stdout }: { stdout: string }) => stdout,
  );
  return JSON.parse(out) as Readonly<Record<"witnesses" | "timestamps", object>>;
};

it.skipIf(process.env.ABSENT_PROGRAMS?.includes("openssl"))(
  "says which key the policy must name, and then publishes what the witness has cosigned",
  {
    timeout: 180_000,
  },
  async () => {
    const stranger = generateKeyPairSync("ed25519").privateKey;
    const of = (keyName: string, kind: (name: string, key: typeof stranger) => string) => kind(keyName, stranger);
    const wrong = `log ${of("other", verifierKeyText)}\nwitness w ${of("w", cosignerKeyText)} http://127.0.0.1:1/\nquorum w\n`;
    const refusal = await start(wrong, "127.0.0.1:1").then(
      () => "it started",
      (error: Error) => `${error.name}: ${error.message}`,
    );
    expect(refusal).toMatch(/^ConfigError: .*no log line of the witness policy is this ledger's, which is: log \S+$/);
    const vkey = refusal.split(" ").at(-1) ?? "";
    witness = await openOwnWitness(join(dir, "witness"), [vkey]);
    const policy = policyOf(vkey, [witness]);
    suite = await start(policy, new URL(witness.url).host);
    const { ledger } = suite.endpoints;
    // Every start is on the log: there is something to seal.
    const published = async () => {
      const response = await fetch(`${ledger}${new Date().getUTCFullYear()}/checkpoint`);
      if (response.status !== 200) return undefined;
      const { opened, ...cosigned } = openByPolicy(await response.text(), parsePolicy(policy));
      return { isGrown: opened.size > 0, ...cosigned };
    };
    await expect
      .poll(published, { timeout: 60_000, interval: 100 })
      .toMatchObject({ isGrown: true, quorum: true, witnesses: [{ name: "w1" }] });
    const patience = { timeout: 60_000, interval: 500 };
    await expect.poll(health, patience).toMatchObject({
      witnesses: { quorum: "held", cosignedSize: expect.any(Number), answers: [{ name: "w1", outcome: "cosigned" }] },
      timestamps: { size: expect.any(Number), time: expect.stringMatching(/^\d{4}-/), failing: "" },
    });

    // When the first event came, by others' clocks: the witness's, and the authority's.
    const { stdout } = await run(process.execPath, audit("show", "0"));
    const shown = JSON.parse(stdout) as Readonly<Record<string, string>>;
    expect(shown).toMatchObject({ index: 0, proof: expect.stringContaining("holds") });
    expect(Date.parse(shown.cosignedWithIt ?? "")).toBeGreaterThan(Date.now() - 180_000);
    expect(Date.parse(shown.stampedWithIt ?? "")).toBeGreaterThan(Date.now() - 180_000);

    // All of it as a stranger gets it, and believes it.
    const bundle = join(dir, "bundle.zip");
    const asked = [
      main,
      "audit",
      "export",
      "--from",
      "2026-01-01T00:00:00Z",
      "--as",
      "person/dana",
      "--data",
      join(dir, "data"),
    ];
    await run(process.execPath, [...asked, "-o", bundle]);
    const trusted = ["--policy", join(dir, "policy"), "--tsa-ca", tsa.caFile, "-o", "json"];
    const verified = await run(process.execPath, [main, "verify", bundle, ...trusted]);
    const { timestamp, ...verdict } = JSON.parse(verified.stdout);
    expect(verdict).toMatchObject({ kind: "bundle", cosigned: [{ name: "w1" }], integrity: { holds: true } });
    expect(timestamp).toMatchObject({ checked: true, time: expect.stringMatching(/^\d{4}-/) });

    // The witness is lost; whatever is sealed then is not public, and that is said.
    await witness.stop();
    const identity = [main, "identity", "create", "workload/late", "--data", join(dir, "data")];
    await run(process.execPath, identity);
    await expect.poll(health, patience).toMatchObject({
      witnesses: { quorum: "missing", answers: [{ name: "w1", outcome: "unreachable" }] },
    });
  },
);
