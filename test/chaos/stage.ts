import { randomBytes } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parsePaging } from "@curfew/breach-notifier/paging.ts";
import { readSuiteConfig, type SuiteConfig } from "@curfew/deploy/embedded/suite-config.ts";
import { type IdentityFiles, openIdentityFiles, personCertificateMs } from "@curfew/rpc/identity-files.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { stringify } from "yaml";
import { openReceivers, type Receivers } from "../journey/receivers.ts";

/** What a suite under attack is started with: its directory, identities of two workloads, and a webhook that is paged. */
export interface Stage {
  readonly dataDir: string;
  readonly configFile: string;
  readonly config: SuiteConfig;
  readonly receivers: Receivers;
  readonly identities: IdentityFiles;
  close(): Promise<void>;
}

const trustDomain = "curfew.example";

/** Tokens as these tests want them: shown to the workload, uses batched unless before-use is asked for. */
export const policy = `
rules:
  - name: anything
    subjects: [workload/billing, workload/payroll]
    scopes: [invoices:read]
    resources: ["invoices/**"]
    audiences: [invoices]
    purposes: [billing]
    data_categories: [contact]
    binding: none
    ttl_max: 1h
    overlap_max: 10m
    delivery: [direct]
    evidence: batched
`;

export const openStage = async (): Promise<Stage> => {
  const folder = mkdtempSync(join(tmpdir(), "curfew-chaos-"));
  const dataDir = join(folder, "data");
  const identities = await openIdentityFiles({ dir: dataDir, trustDomain, clock: systemClock, random: systemRandom });
  for (const name of ["billing", "payroll"])
    await identities.create(`workload/${name}`, { validMs: personCertificateMs });
  const mail = await identities.create("service/mail", { validMs: 86_400_000, dnsNames: ["localhost"] });
  const secret = randomBytes(32).toString("base64");
  const secretFile = join(folder, "webhook-secret");
  writeFileSync(secretFile, `whsec_${secret}\n`, { mode: 0o600 });
  const receivers = await openReceivers(mail, secret);
  const sample = readFileSync(new URL("../../deploy/embedded/curfew.yaml", import.meta.url), "utf8");
  const target = { name: "hook", channel: "webhook", url: receivers.webhookUrl, secret_file: secretFile };
  const paging = { paging: { allow: [receivers.webhookAddress], targets: [target] } };
  const configFile = join(dataDir, "curfew.yaml");
  writeFileSync(configFile, sample.replace(/^paging:[\s\S]*/m, "") + stringify(paging), { mode: 0o600 });
  return {
    dataDir,
    configFile,
    config: readSuiteConfig(configFile, parsePaging),
    receivers,
    identities,
    async close() {
      await receivers.close();
      rmSync(folder, { recursive: true, force: true });
    },
  };
};
