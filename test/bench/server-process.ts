import { writeFileSync } from "node:fs";
import { Session } from "node:inspector";
import { join } from "node:path";
import { isMessage } from "@bufbuild/protobuf";
import { EvidenceMode } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import type { TokenIssued } from "@curfew/contracts/gen/curfew/events/v1/tokens_pb.ts";
import { UseCompletedSchema, UseDecidedSchema } from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import { encodeEvent, readEvent } from "@curfew/event-log/envelope.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { openIssuer } from "@curfew/issuer/service.ts";
import { openPersonalStore } from "@curfew/personal-data/personal-store.ts";
import { openRevocation } from "@curfew/revocation/service.ts";
import type { RunningService, ServiceParts } from "@curfew/rpc/replica.ts";
import { openTestSuite, type TestSuite, trustDomain } from "@curfew/rpc/testing/suite.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { mintSecret } from "@curfew/token-format/secret.ts";
import { openVerifier } from "@curfew/verifier/service.ts";
import { digestOf, issued } from "@curfew/verifier/testing/histories.ts";
import { answer, type ServerSettings, type ServiceName } from "./child.ts";

/** The services under load, as they run embedded: on SQLite, every connection mutual TLS. */

const organisation = `
controllers: [{ id: acme, name: Acme, contact: a, dpo: b }]
resource_services:
  - { name: crm, controllers: [acme] }
  - { name: shop, controllers: [acme] }
  - { name: mail, controllers: [acme] }
people:
  - { name: ada, roles: [admin] }
  - { name: sam, roles: [security] }
`;

const hourMs = 3_600_000;
const perSend = 1_000;

/** Facts as the issuer writes them, straight onto the log: a million tokens in a minute. */
const issueTokens = async ({ bus, keyring }: ServiceParts, { tokens, evidence }: ServerSettings) => {
  const producer = await bus.openProducer({ topic: topicNames.tokens, name: "bench/1" });
  const pepper = keyring.peppers().current.key;
  const audiences = ["crm", "shop", "mail"];
  const grant = { audiences, evidenceMode: evidence === "batched" ? EvidenceMode.BATCHED : EvidenceMode.BEFORE_USE };
  const nowMs = systemClock.now();
  const traceparent = `00-${"1".repeat(32)}-${"2".repeat(16)}-00`;
  const secrets: string[] = [];
  const tokenIds: string[] = [];
  for (let from = 0; from < tokens; from += perSend) {
    const records = Array.from({ length: Math.min(perSend, tokens - from) }, (_, i) => {
      const secret = mintSecret("s", systemRandom);
      const times = { notBeforeMs: nowMs - 1_000, expiresAtMs: nowMs + hourMs, digest: digestOf(pepper, secret) };
      const fact = issued(`t${from + i}`, times, { grant }) as TokenIssued;
      const { tokenId } = fact;
      secrets.push(secret);
      tokenIds.push(tokenId);
      const event = encodeEvent(fact, { source: "/bench", subject: tokenId, nowMs, random: systemRandom, traceparent });
      return { partition: 0, key: tokenId, ...event };
    });
    await producer.send(records);
  }
  await producer.close();
  return { secrets, tokenIds };
};

/** Uses on the log, and those of which it says what they touched, in the same record or another. */
const countUses = async ({ bus }: ServiceParts) => {
  const ends = await bus.ends(topicNames.uses);
  const count = { decided: 0, ended: 0 };
  let left = ends.reduce((sum, end) => sum + end, 0);
  const all = Promise.withResolvers<void>();
  if (left === 0) all.resolve();
  const subscription = await bus.subscribe({
    name: "bench",
    topics: [topicNames.uses],
    start: () => 0,
    onRecords: (records) => {
      for (const record of records) {
        const { message } = readEvent(record);
        if (isMessage(message, UseDecidedSchema)) {
          count.decided += 1;
          if (message.ended) count.ended += 1;
        } else if (isMessage(message, UseCompletedSchema)) count.ended += 1;
      }
      left -= records.length;
      if (left <= 0) all.resolve();
    },
  });
  await Promise.race([all.promise, subscription.failed]);
  await subscription.close();
  return count;
};

const openServices = async (suite: TestSuite, names: readonly ServiceName[]) => {
  const running = new Map<ServiceName, RunningService>();
  // One process: nobody else holds a lease.
  const parts = async (name: ServiceName) => ({ ...(await suite.parts(name)), exclusive: true });
  for (const name of names) {
    if (name === "issuer") running.set(name, await openIssuer(await parts(name)));
    if (name === "revocation") running.set(name, await openRevocation(await parts(name)));
    if (name === "verifier") {
      const revocationAddresses = [`localhost:${running.get("revocation")?.port}`];
      const personal = await openPersonalStore({
        store: await suite.store("personal"),
        keysDir: join(suite.dir, "keys"),
        random: systemRandom,
        clock: suite.clock,
      });
      running.set(name, await openVerifier({ ...(await parts(name)), personal, revocationAddresses }));
    }
  }
  for (const service of running.values()) await suite.use(Promise.resolve(service));
  return running;
};

const settings = JSON.parse(process.argv[2] ?? "{}") as ServerSettings;
const suite = await openTestSuite({ organisation });
const own = await suite.parts("bench");
const { secrets, tokenIds } = await issueTokens(own, settings);
const services = await openServices(suite, settings.services);
let before = { all: process.cpuUsage(), main: process.threadCpuUsage() };
let session: Session | undefined;
const ms = ({ user, system }: { user: number; system: number }) => (user + system) / 1000;

answer(
  {
    ports: () => Object.fromEntries([...services].map(([name, { port }]) => [name, port])),
    trust: () => ({ caPem: own.caPem, trustDomain }),
    identity: async (path: string) => (await suite.identity(path)).current(),
    secrets: () => secrets,
    tokenIds: () => tokenIds,
    cpu: () => {
      const now = { all: process.cpuUsage(before.all), main: process.threadCpuUsage(before.main) };
      before = { all: process.cpuUsage(), main: process.threadCpuUsage() };
      return { all: ms(now.all), main: ms(now.main) };
    },
    uses: () => countUses(own),
    commits: async () => (await suite.store(settings.services[0] ?? "issuer")).stats().commits,
    profile: (file: string | undefined) => {
      if (!session) {
        session = new Session();
        session.connect();
        session.post("Profiler.enable");
        session.post("Profiler.start");
        return undefined;
      }
      const { promise, resolve } = Promise.withResolvers<void>();
      session.post("Profiler.stop", (_, { profile }) => {
        if (file !== undefined) writeFileSync(file, JSON.stringify(profile));
        resolve();
      });
      return promise;
    },
  },
  () => suite.close(),
);
