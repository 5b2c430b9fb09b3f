import { randomUUID } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parsePaging } from "@curfew/breach-notifier/paging.ts";
import { Delivery, EvidenceMode } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import { IssuerService } from "@curfew/contracts/gen/curfew/issuer/v1/issuer_pb.ts";
import { openLiveSuite } from "@curfew/deploy/dev/live-suite.ts";
import { ferretAvailable, kafkaAvailable } from "@curfew/deploy/dev/servers.ts";
import { readSuiteConfig } from "@curfew/deploy/embedded/suite-config.ts";
import { openLog } from "@curfew/runtime/log.ts";
import { openCast } from "../journey/cast.ts";
import type { Revocable } from "./revocation.ts";

const policy = `
rules:
  - name: read-invoices
    subjects: [workload/crm]
    scopes: [invoices:read]
    resources: ["invoices/**"]
    audiences: [crm, invoices]
    purposes: [billing]
    data_categories: [contact]
    binding: none
    delivery: [direct]
    evidence: batched
`;
const grant = {
  scopes: ["invoices:read"],
  resources: ["invoices/**"],
  audiences: ["crm", "invoices"],
  purposes: ["billing"],
  dataCategories: ["contact"],
  evidenceMode: EvidenceMode.BATCHED,
};
const config = fileURLToPath(new URL("../../deploy/embedded/curfew.yaml", import.meta.url));

/** The suite on Kafka and FerretDB with so many live tokens; or why there is none here. */
export const openLiveTokens = async (
  count: number,
): Promise<string | (Revocable & { readonly close: () => Promise<void> })> => {
  const lacking = [kafkaAvailable(), ferretAvailable()].flatMap((found) => (found.ok ? [] : [found.why]));
  if (lacking.length > 0) return lacking.join("; ");
  const dataDir = mkdtempSync(join(tmpdir(), "curfew-bench-live-"));
  const log = openLog({ service: "bench", level: "warn" });
  const suite = await openLiveSuite({
    dataDir,
    config: readSuiteConfig(config, parsePaging),
    log,
    logLevel: "warn",
    // As embedded, who is not asked is not started. Of two replicas of revocation one hears of what the other commits from Kafka alone.
    replicas: { revocation: 2, verifier: 1, auditor: 0, "breach-notifier": 0 },
  });
  const cast = openCast(() => suite.endpoints, dataDir);
  const admin = cast.client(IssuerService, "issuer", "person/ada");
  await admin.publishPolicy({ requestId: randomUUID(), policy: "bench", document: policy });
  const crm = cast.client(IssuerService, "issuer", "workload/crm");
  const tokens: { secret: string; tokenId: string }[] = [];
  for (let i = 0; i < count; i += 1) {
    const { secret, token } = await crm.createToken({ requestId: randomUUID(), grant, delivery: Delivery.DIRECT });
    tokens.push({ secret, tokenId: token?.tokenId ?? "" });
  }
  const { trustDomain, ca } = suite.endpoints;
  const caPem = readFileSync(ca, "utf8");
  return {
    connection: async (path) => ({ identity: cast.identity(path), caPem, trustDomain }),
    verifier: cast.replicas("verifier"),
    revocation: cast.replicas("revocation"),
    resourceServices: ["crm", "invoices"],
    tokens,
    close: async () => {
      await cast.close();
      // What was measured stands, also where a service takes too long to stop.
      await suite.close().catch((error) => log.warn({ err: error }, "the live suite did not close well"));
      rmSync(dataDir, { recursive: true, force: true });
    },
  };
};
