import { randomUUID } from "node:crypto";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { DescService } from "@bufbuild/protobuf";
import { parsePaging } from "@curfew/breach-notifier/paging.ts";
import { Delivery, EvidenceMode } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import { IssuerService } from "@curfew/contracts/gen/curfew/issuer/v1/issuer_pb.ts";
import { VerifierService } from "@curfew/contracts/gen/curfew/verifier/v1/verifier_pb.ts";
import {
  Health,
  HealthCheckResponse_ServingStatus as Serving,
} from "@curfew/contracts/gen/grpc/health/v1/health_pb.ts";
import { openSuite } from "@curfew/deploy/embedded/suite.ts";
import { readSuiteConfig } from "@curfew/deploy/embedded/suite-config.ts";
import { serviceNames } from "@curfew/deploy/installation.ts";
import { openChannel, type RpcChannel } from "@curfew/rpc/channel.ts";
import { createIdentitySource } from "@curfew/rpc/credentials.ts";
import { type IssuedCertificate, issueCertificate, loadAuthority } from "@curfew/rpc/identity-authority.ts";
import { openIdentityFiles } from "@curfew/rpc/identity-files.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import { openLog } from "@curfew/runtime/log.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import type { Client } from "@grpc/grpc-js";
import { openCast } from "../journey/cast.ts";
import { documentsByCollection, eventsIn, isUnpublished, recordsByTopic, recordsWith } from "./stored.ts";

/** A real embedded suite with somebody of every kind in it, spoken to in raw bytes, and a look at all that it has stored. */
export const trustDomain = "curfew.example";
const hourMs = 3_600_000;
const megabyte = 1024 * 1024;

const config = `trust_domain: ${trustDomain}
organisation:
  controllers:
    - { id: acme, name: Acme GmbH, role: controller, country: DE, authority: BfDI, contact: p@acme.example, dpo: d@acme.example,
        population: { contact: 12000 }, records: { contact: 30000 } }
  resource_services:
    - { name: invoices, controllers: [acme] }
    - { name: crm, controllers: [acme] }
  people:
    - { name: sam, roles: [security] }
    - { name: olga, roles: [oncall] }
    - { name: dana, roles: [dpo] }
    - { name: udo, roles: [auditor] }
    - { name: ada, roles: [admin] }
    - { name: stella, roles: [security] }
    - { name: dora, roles: [dpo] }
    - { name: adam, roles: [admin] }
`;

export const policyDocument = `rules:
  - name: tests
    subjects: [workload/billing, workload/crm]
    scopes: [invoices:read]
    resources: ["invoices/**"]
    audiences: [invoices]
    purposes: [billing]
    data_categories: [contact]
    binding: none
    ttl_max: 1h
    lineage_max: 30d
    overlap_max: 10m
    delivery: [sealed, direct]
    evidence: batched
`;

export const grant = {
  scopes: ["invoices:read"],
  resources: ["invoices/**"],
  audiences: ["invoices"],
  purposes: ["billing"],
  dataCategories: ["contact"],
  ttl: { seconds: 3600n, nanos: 0 },
  evidenceMode: EvidenceMode.BATCHED,
};

export const until = async <T>(what: string, ask: () => Promise<T | undefined> | T | undefined): Promise<T> => {
  const deadlineMs = performance.now() + 20_000;
  for (;;) {
    const found = await ask();
    if (found !== undefined) return found;
    if (performance.now() > deadlineMs) throw new Error(`${what}: not within 20 s`);
    await sleep(20);
  }
};

/** `settings`: further sections of curfew.yaml. */
export const openRig = async (settings = "") => {
  const folder = mkdtempSync(join(tmpdir(), "curfew-hostile-"));
  const dataDir = join(folder, "data");
  const logLines: string[] = [];
  const log = openLog({ service: "suite", level: "debug", write: (line) => void logLines.push(line) });
  const files = await openIdentityFiles({ dir: dataDir, trustDomain, clock: systemClock, random: systemRandom });
  for (const path of ["workload/billing", "person/nina", "service/gateway"])
    await files.create(path, { validMs: hourMs });
  const configFile = join(dataDir, "curfew.yaml");
  writeFileSync(configFile, config + settings);
  const suite = await openSuite({
    dataDir,
    config: readSuiteConfig(configFile, parsePaging),
    port: 0,
    reflection: true,
    log,
  });
  let failure: unknown;
  suite.failed.catch((error) => {
    failure = error;
  });
  const cast = openCast(() => suite.endpoints, dataDir);
  const channels: RpcChannel[] = [];
  const address = (service: string) => suite.endpoints.services[service] as string;
  /** A channel of its own to `service`, under a certificate; an identity's path stands for what is on disk. */
  const channel = (service: string, as: string | IssuedCertificate): Client => {
    const opened = openChannel({
      address: address(service),
      identity: typeof as === "string" ? cast.identity(as) : createIdentitySource(as),
      caPem: suite.identities.caPem,
      trustDomain,
      expectService: service,
      clock: systemClock,
      maxRequestBytes: 64 * megabyte,
    });
    channels.push(opened);
    return opened.client;
  };
  const shared = new Map<string, Client>();
  const published = () => until("every commit on its topic", () => (isUnpublished(dataDir) ? undefined : true));
  const admin = cast.client(IssuerService, "issuer", "person/ada");
  await admin.publishPolicy({ requestId: randomUUID(), policy: "tests", document: policyDocument });
  return {
    suite,
    cast,
    folder,
    address,
    channel,
    logLines,
    get failure() {
      return failure;
    },
    /** One that is kept for this caller and service. */
    client(service: string, as: string): Client {
      const key = `${service} ${as}`;
      const found = shared.get(key) ?? channel(service, as);
      shared.set(key, found);
      return found;
    },
    /** A certificate of our own authority, as it would be on a machine whose clock says `nowMs`. */
    async certificate(
      spiffePath: string,
      validMs: number,
      nowMs = Date.now(),
      of = trustDomain,
    ): Promise<IssuedCertificate> {
      const text = readFileSync(join(dataDir, "ca", "authority.pem"), "utf8");
      const [certPem = "", keyPem = ""] = text.split(/(?<=-----END CERTIFICATE-----)\n+/);
      const clock = { ...systemClock, now: () => nowMs };
      const authority = await loadAuthority({ certPem, keyPem }, { trustDomain, clock, random: systemRandom });
      return issueCertificate({ ...authority, trustDomain: of }, { spiffePath, validMs, commonName: "test" });
    },
    /** Resolves once all five serve, and a new token is verified and allowed; rejects when the suite does not recover. */
    async atWork() {
      if (failure) throw failure;
      for (const server of serviceNames) {
        const health = cast.client(Health, server, "person/nina");
        await until(`${server} serves`, async () => {
          const { status } = await health.check({ service: "" });
          return status === Serving.SERVING || undefined;
        });
      }
      const { secret } = await this.token("billing");
      const verifier = cast.client(VerifierService, "verifier", "workload/invoices");
      const use = { scope: "invoices:read", resource: "invoices/1", purpose: "billing", controller: "acme" };
      await until("a new token is good", async () => {
        const asked = { credential: { case: "secret" as const, value: secret }, use };
        return (await verifier.verifyToken(asked)).allowed || undefined;
      });
    },
    /** A token of `workload`'s, and its secret. */
    async token(workload: string) {
      const issuer = cast.client(IssuerService, "issuer", `workload/${workload}`);
      const answer = await issuer.createToken({ requestId: randomUUID(), grant, delivery: Delivery.DIRECT });
      return { tokenId: answer.token?.tokenId ?? "", secret: answer.secret };
    },
    recordsWith: (text: string) => recordsWith(dataDir, text),
    records: () => recordsByTopic(dataDir),
    /** How many events of a type name `who`, once every commit is on its topic. */
    async events(type: string, who: string): Promise<number> {
      await published();
      return eventsIn(dataDir, type, who);
    },
    /** How much each topic and each collection of the services that command holds, once every commit is published and none of them has moved for a while. */
    async written(): Promise<Record<string, number>> {
      const read = () => ({ ...recordsByTopic(dataDir), ...documentsByCollection(dataDir) });
      await published();
      let before = read();
      let quiet = 0;
      await until("rest", async () => {
        await sleep(100);
        const now = read();
        quiet = JSON.stringify(now) === JSON.stringify(before) ? quiet + 1 : 0;
        before = now;
        return quiet >= 5 ? true : undefined;
      });
      return before;
    },
    async close() {
      await cast.close();
      for (const each of channels) each.close();
      await suite.close();
      rmSync(folder, { recursive: true, force: true });
    },
  };
};

export type Rig = Awaited<ReturnType<typeof openRig>>;
export { serviceNames };

/** Every service that a descriptor was generated for. */
export const generatedServices = async (): Promise<DescService[]> => {
  const dir = join(import.meta.dirname, "../../packages/contracts/gen");
  const files = readdirSync(dir, { recursive: true, encoding: "utf8" }).filter((name) => name.endsWith("_pb.ts"));
  const modules = await Promise.all(files.map((file) => import(join(dir, file)) as Promise<Record<string, unknown>>));
  return modules
    .flatMap((module) => Object.values(module))
    .filter((each): each is DescService => (each as DescService | undefined)?.kind === "service");
};
