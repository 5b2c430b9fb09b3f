import { randomUUID } from "node:crypto";
import { setTimeout } from "node:timers/promises";
import type { DescMethod } from "@bufbuild/protobuf";
import { MethodOptions_IdempotencyLevel as Idempotency } from "@bufbuild/protobuf/wkt";
import { AuditorService } from "@curfew/contracts/gen/curfew/auditor/v1/auditor_pb.ts";
import { DataSubjectService } from "@curfew/contracts/gen/curfew/auditor/v1/data_subjects_pb.ts";
import { BreachService } from "@curfew/contracts/gen/curfew/breach/v1/breach_pb.ts";
import { IssuerService } from "@curfew/contracts/gen/curfew/issuer/v1/issuer_pb.ts";
import { RelayService } from "@curfew/contracts/gen/curfew/relay/v1/relay_pb.ts";
import { RevocationService } from "@curfew/contracts/gen/curfew/revocation/v1/revocation_pb.ts";
import { VerifierService } from "@curfew/contracts/gen/curfew/verifier/v1/verifier_pb.ts";
import { Health } from "@curfew/contracts/gen/grpc/health/v1/health_pb.ts";
import { ServerReflection } from "@curfew/contracts/gen/grpc/reflection/v1/reflection_pb.ts";
import { ServerReflection as ServerReflectionAlpha } from "@curfew/contracts/gen/grpc/reflection/v1alpha/reflection_pb.ts";
import { secretHash } from "@curfew/token-format/digest.ts";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type Hostile, hostileRequests } from "./mutations.ts";
import { type Answer, call } from "./raw-call.ts";
import { generatedServices, openRig, type Rig, until } from "./rig.ts";
import { canary, canaryBytes, sampleOf, type Things } from "./samples.ts";

/** Hostile input to every method of a real suite: a clear status, nothing written, nobody harmed. A failing case names itself. */
const seed = Number(process.env.TEST_SEED ?? 20_260);

/** Somebody who may call it: hostile is what he sends. */
const targets: readonly (readonly [string, DescMethod, string])[] = [
  ...IssuerService.methods.map(
    (m) => ["issuer", m, m.name === "PublishPolicy" ? "person/ada" : "workload/billing"] as const,
  ),
  ...VerifierService.methods.map((m) => ["verifier", m, "workload/invoices"] as const),
  ...RevocationService.methods.map(
    (m) => ["revocation", m, m.name === "WatchRevocations" ? "workload/invoices" : "person/sam"] as const,
  ),
  ...BreachService.methods.map((m) => ["breach-notifier", m, "person/dana"] as const),
  ...AuditorService.methods.map((m) => ["auditor", m, "person/udo"] as const),
  ...DataSubjectService.methods.map((m) => ["auditor", m, "person/dana"] as const),
  ["issuer", RelayService.method.wakeRelay, "service/issuer"],
  ...Health.methods.map((m) => ["issuer", m, "person/nina"] as const),
  ["issuer", ServerReflection.method.serverReflectionInfo, "person/nina"],
  ["issuer", ServerReflectionAlpha.method.serverReflectionInfo, "person/nina"],
];

/** What a request may be answered with. UNAVAILABLE only where it names a position that nobody has reached. */
const clear = [
  "OK",
  "INVALID_ARGUMENT",
  "NOT_FOUND",
  "FAILED_PRECONDITION",
  "PERMISSION_DENIED",
  "OUT_OF_RANGE",
  "RESOURCE_EXHAUSTED",
];
const unavailable = ["NOT_CAUGHT_UP", "NOT_HOLDER"];
const revealing = /\bat .+:\d+|\.[jt]s\b|node_modules|node:|\/tmp|\/home|SQLITE|sqlite|Error\b|undefined|\[object/;

let rig: Rig;
let things: Things;
/** What Node or a library complains about on standard error, where no secret is masked. */
const warnings: string[] = [];
const warned = (warning: Error) => void warnings.push(`${warning.name}: ${warning.message}`);

beforeAll(async () => {
  rig = await openRig();
  const { tokenId, secret } = await rig.token("billing");
  const leaked = await rig.token("billing");
  const usedAtMs = Date.now();
  const sam = rig.cast.client(RevocationService, "revocation", "person/sam");
  const sighting = { kind: "git", location: "https://git.example/a", public: true };
  await sam.reportLeak({ requestId: randomUUID(), secretSha256: secretHash(leaked.secret), sighting });
  const dana = rig.cast.client(BreachService, "breach-notifier", "person/dana");
  const caseId = await until("the case", async () => (await dana.listCases({})).cases[0]?.caseId);
  const udo = rig.cast.client(AuditorService, "auditor", "person/udo");
  const eventId = await until("the event", async () => (await udo.listEvents({})).events[0]?.eventId);
  things = { tokenId, secret, sha256: secretHash(secret), leakedId: leaked.tokenId, usedAtMs, caseId, eventId };
  process.on("warning", warned);
}, 60_000);

afterAll(async () => {
  process.off("warning", warned);
  await rig.close();
});

const send = ([server, method, caller]: (typeof targets)[number], { bytes }: Hostile): Promise<Answer> =>
  call(rig.client(server, caller), method, [bytes]);

/** Some at a time, in order. */
const inTurn = async <T, R>(items: readonly T[], work: (item: T) => Promise<R>): Promise<R[]> => {
  const results: R[] = [];
  for (let i = 0; i < items.length; i += 64) results.push(...(await Promise.all(items.slice(i, i + 64).map(work))));
  return results;
};

const complaintOf = ({ oversize }: Hostile, { status, message, reason, domain }: Answer): string | undefined => {
  if (oversize) return status === "RESOURCE_EXHAUSTED" ? undefined : `${status}: ${message}`;
  if (!clear.includes(status) && !(status === "UNAVAILABLE" && unavailable.includes(reason ?? "")))
    return `${status} ${reason}: ${message}`;
  if (status !== "OK" && (domain !== "curfew" || !reason)) return `no details: ${status} ${message}`;
  if (revealing.test(message)) return `reveals: ${message}`;
  return message.includes(canary) || message.includes(things.secret) ? "repeats a secret" : undefined;
};

const expectAtWork = async () => {
  await rig.atWork();
  // Whatever was written on the way can still be read by those who must.
  const dana = rig.cast.client(BreachService, "breach-notifier", "person/dana");
  const { case: found } = await dana.getCase({ caseId: things.caseId });
  expect(found?.blastRadius?.uses).toBeGreaterThan(0n);
  await dana.draftNotification({ requestId: randomUUID(), caseId: things.caseId, controller: "acme" });
  const udo = rig.cast.client(AuditorService, "auditor", "person/udo");
  let pageToken = "";
  do {
    const page = await udo.listEvents({ pageSize: 1_000, pageToken });
    expect(page.events.filter(({ json }) => json === "")).toEqual([]);
    pageToken = page.nextPageToken;
  } while (pageToken !== "");
};

/** A refused call that is sent again, alone: nothing may be written by it. */
const refused: { readonly target: (typeof targets)[number]; readonly hostile: Hostile }[] = [];

describe(`hostile requests (seed ${seed})`, () => {
  test("cover every method of every service", async () => {
    const names = (methods: readonly DescMethod[]) => methods.map((m) => `${m.parent.typeName}/${m.name}`).sort();
    expect(names(targets.map(([, method]) => method))).toEqual(
      names((await generatedServices()).flatMap((s) => s.methods)),
    );
  });

  test.each(targets.map((target) => ({ name: `${target[0]} ${target[1].name}`, target })))(
    "to $name get a clear answer that reveals nothing",
    async ({ target }) => {
      const [, method] = target;
      const hostile = hostileRequests(method.input, () => sampleOf(method, things), seed);
      const answers = await inTurn(hostile, (one) => send(target, one));
      const complaints = hostile.flatMap((one, i) => {
        const complaint = complaintOf(one, answers[i] as Answer);
        return complaint === undefined ? [] : [`${one.name}: ${complaint}`];
      });
      expect(complaints).toEqual([]);
      if (method.idempotency === Idempotency.NO_SIDE_EFFECTS || method.parent.typeName.startsWith("grpc.")) return;
      for (const [i, one] of hostile.entries())
        if (answers[i]?.status !== "OK" && !one.oversize) refused.push({ target, hostile: one });
    },
    60_000,
  );

  test("leave the suite at work, and their secrets in no line of the log and no record", async () => {
    await expectAtWork();
    const log = rig.logLines.join("");
    const bytes = ["hex", "base64", "utf8"] as const;
    for (const secret of [canary, things.secret, ...bytes.map((encoding) => canaryBytes.toString(encoding))]) {
      expect(log.includes(secret)).toBe(false);
      expect(rig.recordsWith(secret)).toBe(0);
    }
    expect(rig.logLines.filter((line) => line.includes('"level":"error"'))).toEqual([]);
    expect(warnings).toEqual([]);
  });

  test("that were refused write nothing", async () => {
    expect(refused.length).toBeGreaterThan(1_000);
    // Denials of unknown secrets are merged for 10 s; their networks get pseudonyms only then, and those are not what is looked for here.
    await setTimeout(11_000);
    const before = await rig.written();
    const answers = await inTurn(refused, async ({ target, hostile }) => send(target, hostile));
    expect(answers.filter(({ status }) => status === "OK")).toEqual([]);
    expect(await rig.written()).toEqual(before);
  }, 60_000);
});
