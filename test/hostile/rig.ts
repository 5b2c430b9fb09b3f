import { randomUUID } from "node:crypto";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { setTimeout as sleep } from "node:timers/promises";
import { type DescMethod, type DescService, fromBinary } from "@bufbuild/protobuf";
import { anyUnpack } from "@bufbuild/protobuf/wkt";
import { parsePaging } from "@curfew/breach-notifier/paging.ts";
import { Delivery, EvidenceMode } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import { IssuerService } from "@curfew/contracts/gen/curfew/issuer/v1/issuer_pb.ts";
import { VerifierService } from "@curfew/contracts/gen/curfew/verifier/v1/verifier_pb.ts";
import { ErrorInfoSchema } from "@curfew/contracts/gen/google/rpc/error_details_pb.ts";
import { StatusSchema } from "@curfew/contracts/gen/google/rpc/status_pb.ts";
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
import { methodDefinition } from "@curfew/rpc/service-definition.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import { openLog } from "@curfew/runtime/log.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { type Client, status as grpcStatus, Metadata, type ServiceError } from "@grpc/grpc-js";
import { openCast } from "../journey/cast.ts";

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

/** How a call ended. `reason` and `domain` are ErrorInfo's; undefined: no such detail. */
export interface Answer {
  readonly status: string;
  readonly message: string;
  readonly reason: string | undefined;
  readonly domain: string | undefined;
  /** Messages that came, at most `RawCall.take`. */
  readonly messages: readonly Buffer[];
}

export interface RawCall {
  readonly deadlineMs?: number;
  readonly metadata?: Readonly<Record<string, string>>;
  /** Of a stream: as many answers are enough, then the call is cancelled. Default 1. */
  readonly take?: number;
}

const same = (bytes: Buffer) => bytes;

const answerOf = (error: ServiceError | null, messages: readonly Buffer[]): Answer => {
  if (!error) return { status: "OK", message: "", reason: undefined, domain: undefined, messages };
  const [details] = error.metadata.get("grpc-status-details-bin");
  const infos = Buffer.isBuffer(details) ? fromBinary(StatusSchema, details).details : [];
  const info = infos.map((any) => anyUnpack(any, ErrorInfoSchema)).find((found) => found !== undefined);
  return {
    status: grpcStatus[error.code] ?? String(error.code),
    message: error.details,
    reason: info?.reason,
    domain: info?.domain,
    messages,
  };
};

/** One call with these bytes as its messages, whatever they are; a stream of requests is ended after them. */
export const call = (
  client: Client,
  method: DescMethod,
  requests: readonly Uint8Array[],
  options: RawCall = {},
): Promise<Answer> =>
  new Promise((resolve) => {
    const metadata = new Metadata();
    for (const [key, value] of Object.entries(options.metadata ?? {})) metadata.set(key, value);
    const limits = { deadline: Date.now() + (options.deadlineMs ?? 10_000) };
    const { path } = methodDefinition(method);
    const [first = Buffer.alloc(0)] = requests;
    const buffer = Buffer.from(first);
    const messages: Buffer[] = [];
    if (method.methodKind === "unary") {
      client.makeUnaryRequest(path, same, same, buffer, metadata, limits, (error, message) =>
        resolve(answerOf(error, message ? [message] : [])),
      );
      return;
    }
    if (method.methodKind === "client_streaming") throw new Error("there is no such method yet: write it here");
    const duplex =
      method.methodKind === "bidi_streaming"
        ? client.makeBidiStreamRequest(path, same, same, metadata, limits)
        : undefined;
    const stream = duplex ?? client.makeServerStreamRequest(path, same, same, buffer, metadata, limits);
    stream.on("data", (message: Buffer) => {
      messages.push(message);
      if (messages.length < (options.take ?? 1)) return;
      resolve(answerOf(null, messages));
      stream.cancel();
    });
    stream.on("error", (error: ServiceError) => resolve(answerOf(error, messages)));
    stream.on("end", () => setImmediate(() => resolve(answerOf(null, messages))));
    for (const request of requests) duplex?.write(Buffer.from(request));
    duplex?.end();
  });

/** What changes by itself while nobody calls: leases between replicas, and those of the suite's own verifier. */
const passing = ["leases", "epochs", "use-positions"];
/** Stores nothing but what is on the topics. */
const follows = ["auditor"];
const ofOthers = "WHERE id NOT LIKE 'verifier-%'";

/** How many records of the bus hold this text, in a header, key or value. */
const recordsWith = (file: string, text: string): number => {
  const database = new DatabaseSync(file, { readOnly: true });
  try {
    const sql = "SELECT count(*) AS n FROM records WHERE instr(headers, ?) OR instr(key, ?) OR instr(value, ?)";
    return Number(database.prepare(sql).get(text, text, Buffer.from(text))?.n);
  } finally {
    database.close();
  }
};

/** How many records of this type, on the topics themselves, name `who`. */
const eventsIn = (file: string, type: string, who: string): number => {
  const database = new DatabaseSync(file, { readOnly: true });
  try {
    const sql = `SELECT count(*) AS n FROM records
      WHERE topic <> 'curfew.siem.v1' AND headers ->> 'ce_type' = ? AND instr(value, ?)`;
    return Number(database.prepare(sql).get(type, Buffer.from(who))?.n);
  } finally {
    database.close();
  }
};

const rowsOf = (file: string): Record<string, number> => {
  const database = new DatabaseSync(file, { readOnly: true });
  try {
    const tables = database
      .prepare("SELECT name FROM sqlite_master WHERE type = 'table'")
      .all()
      .map(({ name }) => String(name))
      .filter((name) => name.startsWith("c_") && !passing.includes(name.slice(2)));
    const count = (table: string) =>
      Number(database.prepare(`SELECT count(*) AS n FROM "${table}" ${ofOthers}`).get()?.n);
    return Object.fromEntries(tables.map((table) => [`${basename(file, ".db")} ${table.slice(2)}`, count(table)]));
  } finally {
    database.close();
  }
};

/** Commits that are not on their topic yet. */
const unpublishedIn = (file: string): number => {
  const database = new DatabaseSync(file, { readOnly: true });
  try {
    const known = database.prepare("SELECT 1 FROM pragma_table_info('c_commits') WHERE name = 'i_unpublished'").get();
    const sql = "SELECT count(*) AS n FROM c_commits WHERE i_unpublished IS NOT NULL";
    return known ? Number(database.prepare(sql).get()?.n) : 0;
  } finally {
    database.close();
  }
};

/**
 * Records by topic, but for those that come some time after what they tell of: counted denials of unknown secrets, closings of producers'
 * epochs, and what is derived for compliance tooling.
 */
const recordsOf = (file: string): Record<string, number> => {
  const database = new DatabaseSync(file, { readOnly: true });
  try {
    const later = "instr(headers, 'unknown-attempts') OR instr(headers, 'producer-epoch.closed')";
    const sql = `SELECT topic, count(*) AS n FROM records
      WHERE topic <> 'curfew.siem.v1' AND NOT (${later}) GROUP BY topic`;
    return Object.fromEntries(
      database
        .prepare(sql)
        .all()
        .map(({ topic, n }) => [String(topic), Number(n)]),
    );
  } finally {
    database.close();
  }
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
  const published = () => {
    const files = readdirSync(join(dataDir, "store")).filter((name) => name.endsWith(".db"));
    return until("every commit on its topic", () =>
      files.every((name) => unpublishedIn(join(dataDir, "store", name)) === 0) ? true : undefined,
    );
  };
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
    recordsWith: (text: string) => recordsWith(join(dataDir, "bus.db"), text),
    records: () => recordsOf(join(dataDir, "bus.db")),
    /** How many events of a type name `who`, once every commit is on its topic. */
    async events(type: string, who: string): Promise<number> {
      await published();
      return eventsIn(join(dataDir, "bus.db"), type, who);
    },
    /** How much each topic and each collection of the services that command holds, once every commit is published and none of them has moved for a while. */
    async written(): Promise<Record<string, number>> {
      const read = () => ({
        ...recordsOf(join(dataDir, "bus.db")),
        ...Object.assign(
          {},
          ...readdirSync(join(dataDir, "store"))
            .filter((name) => name.endsWith(".db") && !follows.includes(basename(name, ".db")))
            .map((name) => rowsOf(join(dataDir, "store", name))),
        ),
      });
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
