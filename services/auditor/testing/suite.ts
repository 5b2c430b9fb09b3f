import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import type { DescService } from "@bufbuild/protobuf";
import { AuditorService } from "@curfew/contracts/gen/curfew/auditor/v1/auditor_pb.ts";
import { openSqliteStore } from "@curfew/document-store/sqlite.ts";
import { openSqliteWriter } from "@curfew/document-store/sqlite-writer.ts";
import type { OutRecord } from "@curfew/event-log/bus.ts";
import { openEpochs } from "@curfew/event-log/epochs.ts";
import { siemTopic } from "@curfew/event-log/event-types.ts";
import { sqliteBus } from "@curfew/event-log/sqlite.ts";
import { openKeyring } from "@curfew/keyring/keyring.ts";
import { openClient } from "@curfew/rpc/client.ts";
import { createIdentitySource } from "@curfew/rpc/credentials.ts";
import { createAuthority, issueCertificate } from "@curfew/rpc/identity-authority.ts";
import type { RunningService } from "@curfew/rpc/replica.ts";
import { parseOrganisation } from "@curfew/runtime/organisation.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { type AuditorServiceParts, openAuditor } from "../service.ts";
import { clock, partitions, quiet } from "./rig.ts";

const trustDomain = "test.example";
/** What a test opened, closed after it in reverse order. */
export const undo: (() => unknown)[] = [];

/** SQLite for store and bus, one certificate authority; auditors and clients as wanted. */
export const openSuite = async () => {
  const store = await openSqliteStore({ file: ":memory:" });
  undo.push(() => store.close());
  const epochs = await openEpochs(store);
  const writer = await openSqliteWriter({ file: ":memory:" });
  const bus = await sqliteBus(writer, { epochs, clock, topics: { ...partitions, [siemTopic]: 1 } });
  undo.push(() => bus.close());
  const dir = mkdtempSync(join(tmpdir(), "curfew-auditor-"));
  undo.push(() => rmSync(dir, { recursive: true, force: true }));
  const keyring = openKeyring({ dir: join(dir, "keys"), random: systemRandom, clock });
  const authority = await createAuthority({ trustDomain, clock });
  const certificateOf = (spiffePath: string) =>
    issueCertificate(authority, { spiffePath, validMs: 3_600_000, dnsNames: ["localhost"], commonName: "test" });
  const identityOf = async (spiffePath: string) => createIdentitySource(await certificateOf(spiffePath));
  let instances = 0;
  const start = async (more: Partial<AuditorServiceParts> = {}) => {
    instances += 1;
    const service = await openAuditor({
      store,
      bus,
      epochs,
      keyring,
      organisation: parseOrganisation(
        "people: [{ name: paula, roles: [auditor] }, { name: sam, roles: [security] }, { name: dora, roles: [dpo] }]",
      ),
      clock,
      random: systemRandom,
      log: quiet,
      instance: `auditor-${instances}`,
      address: "localhost:0",
      identity: await identityOf("/service/auditor"),
      caPem: authority.certPem,
      trustDomain,
      reflection: false,
      exclusive: instances === 1,
      ...more,
    });
    undo.push(() => service.close());
    await service.ready;
    return service;
  };
  const clientOf = async <S extends DescService>(desc: S, { port }: RunningService, person: string) => {
    const opened = openClient(desc, {
      address: `localhost:${port}`,
      identity: await identityOf(`/person/${person}`),
      caPem: authority.certPem,
      trustDomain,
      expectService: "auditor",
      clock,
    });
    undo.push(() => opened.close());
    return opened.rpc;
  };
  const client = (service: RunningService, person = "paula") => clientOf(AuditorService, service, person);
  /** Arguments with which `curfew` speaks to a service as a person. */
  const asPerson = async ({ port }: RunningService, person: string) => {
    const identityDir = join(dir, "identity", "person", person);
    mkdirSync(identityDir, { recursive: true });
    const { certPem, keyPem } = await certificateOf(`/person/${person}`);
    writeFileSync(join(identityDir, "cert.pem"), certPem);
    writeFileSync(join(identityDir, "key.pem"), keyPem, { mode: 0o600 });
    const ca = join(dir, "ca", "ca.pem");
    mkdirSync(dirname(ca), { recursive: true });
    writeFileSync(ca, authority.certPem);
    const services = { auditor: `localhost:${port}` };
    writeFileSync(join(dir, "endpoints.json"), JSON.stringify({ trustDomain, ca, services }));
    return ["--data", dir, "--as", `person/${person}`];
  };
  const send = async (topic: string, name: string, records: readonly OutRecord[]) => {
    const producer = await bus.openProducer({ topic, name });
    const offsets = await producer.send(records);
    await producer.close();
    return offsets.map((offset, i) => ({ topic, partition: records[i]?.partition ?? 0, offset: BigInt(offset) }));
  };
  /** Of the bus, behind its back. */
  const tamper = (sql: string) => writer.run(sql);
  return { dir, store, bus, start, client, clientOf, asPerson, send, tamper };
};
export type Suite = Awaited<ReturnType<typeof openSuite>>;
export type Client = Awaited<ReturnType<Suite["client"]>>;
