import { randomUUID } from "node:crypto";
import { timestampMs } from "@bufbuild/protobuf/wkt";
import { AuditorService } from "@curfew/contracts/gen/curfew/auditor/v1/auditor_pb.ts";
import { DataSubjectService } from "@curfew/contracts/gen/curfew/auditor/v1/data_subjects_pb.ts";
import { RevocationReason, type UseReportingGap } from "@curfew/contracts/gen/curfew/events/v1/revocations_pb.ts";
import type { IdentityCreated } from "@curfew/contracts/gen/curfew/events/v1/tokens_pb.ts";
import { IssuerService } from "@curfew/contracts/gen/curfew/issuer/v1/issuer_pb.ts";
import type { ServiceProcess } from "@curfew/deploy/dev/live-suite.ts";
import { openMongoStore } from "@curfew/document-store/mongo.ts";
import type { ReadEvent } from "@curfew/event-log/envelope.ts";
import { siemTopic } from "@curfew/event-log/event-types.ts";
import type { LeaseRow } from "@curfew/event-log/lease.ts";
import { readTopic } from "@curfew/event-log/read-topic.ts";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { kafkaBus } from "../chaos/evidence.ts";
import { openJudge, openSdkProcess, type Reply, type SdkProcess, verifierRespondent } from "../chaos/judge.ts";
import { createRequest, leakOf, openScene, type Scene, security, within } from "../chaos/live.ts";

/** The promise: the other replica takes over within this time of a kill. */
const takeoverMs = 10_000;
const waitMs = 60_000;
const two = { issuer: 2, verifier: 2, revocation: 2, auditor: 2, "breach-notifier": 2 };
const revoke = (tokenId: string) => ({ requestId: randomUUID(), tokenId, reason: RevocationReason.REQUESTED });

describe("two of every service on a real broker and a real database", () => {
  let scene: Scene;
  const sdks: SdkProcess[] = [];
  const down = new Set<ServiceProcess>();

  beforeAll(async () => {
    scene = await openScene(two);
  });
  afterEach(async () => {
    for (const name of ["verifier", "verifier-2"]) scene.service(name).resume();
    await Promise.all(sdks.splice(0).map((sdk) => sdk.kill()));
    await Promise.all([...down].map((each) => each.restart()));
    down.clear();
  });
  afterAll(async () => {
    await scene?.close();
  });

  const kill = async (...victims: ServiceProcess[]) => {
    for (const each of victims) down.add(each);
    await Promise.all(victims.map((each) => each.kill()));
  };
  const restart = async (...killed: ServiceProcess[]) => {
    await Promise.all(killed.map((each) => each.restart()));
    for (const each of killed) down.delete(each);
  };
  const openSdk = async () => {
    const sdk = await openSdkProcess(scene.suite.endpoints, scene.cast);
    sdks.push(sdk);
    return sdk;
  };

  /** Reads the newest rows of leases, as they stand in the service's database. */
  const openHolders = async (service: string) => {
    const store = await openMongoStore({
      url: scene.suite.ferret.url,
      database: `curfew_${service.replaceAll("-", "_")}`,
    });
    const rows = await store.collection<LeaseRow>("leases");
    const holderOf = async (lease: string): Promise<ServiceProcess | undefined> => {
      const [row] = await rows.findLatest({ from: `${lease}#`, below: `${lease}$`, order: -1, limit: 1 });
      if (!row || row.released) return undefined;
      return [...scene.suite.services.values()].find(({ address }) => address === row.address);
    };
    const names = async () =>
      new Set((await rows.find({ limit: 1_000 })).map(({ _id }) => _id.slice(0, _id.lastIndexOf("#"))));
    return { holderOf, names, close: () => store.close() };
  };

  /**
   * `leases` are all that the service has. Kills who holds the first, and waits until the other one holds all that were its; then the same
   * for those that were the other's: one kill, where one held them all. `meanwhile` begins right after a kill, at the survivor.
   */
  const takeOver = async (
    service: string,
    leases: readonly string[],
    meanwhile: (survivor: ServiceProcess) => Promise<void>,
  ) => {
    const { holderOf, names, close } = await openHolders(service);
    const turn = async (left: readonly string[]): Promise<void> => {
      const holders = await Promise.all(
        left.map((lease) => within(`a holder of ${lease}`, waitMs, () => holderOf(lease))),
      );
      expect(await names()).toEqual(new Set(leases));
      const victim = holders[0] as ServiceProcess;
      const survivor = scene.service(victim.name === service ? `${service}-2` : service);
      await kill(victim);
      const killedMs = performance.now();
      const doing = meanwhile(survivor);
      doing.catch(() => undefined);
      const taken = async (lease: string) => {
        await within(`${survivor.name} holds ${lease}`, waitMs, async () => (await holderOf(lease)) === survivor);
        const tookMs = performance.now() - killedMs;
        console.log(`${survivor.name} took ${lease} over after ${Math.round(tookMs)} ms`);
        expect(tookMs, lease).toBeLessThan(takeoverMs);
      };
      await Promise.all(left.filter((_, i) => holders[i] === victim).map(taken));
      await doing;
      const others = left.filter((_, i) => holders[i] !== victim);
      if (others.length === 0) return;
      await restart(victim);
      await turn(others);
    };
    await turn(leases).finally(close);
  };

  const onLog = (mark: string) =>
    within(`${mark} is on its topic`, waitMs, async () => {
      await scene.evidence.catchUp();
      return scene.evidence.has(mark);
    });
  const eventsOf = async (stream: string) => {
    await scene.evidence.catchUp();
    const { events } = scene.evidence;
    return new Set(events.filter(({ subject }) => subject === stream).map(({ id, type }) => `${type} ${id}`));
  };

  /** Whether a record of the newest on curfew.siem.v1 names it. */
  const siemSays = async (text: string): Promise<boolean> => {
    const { bus, close } = await kafkaBus(scene.suite.kafka.brokers, scene.suite.endpoints)();
    let found = false;
    try {
      await readTopic({ bus, topic: siemTopic, name: "outside", last: 1_000 }, (records) => {
        found ||= records.some(({ value }) => Buffer.from(value).includes(text));
      });
    } finally {
      await close();
    }
    return found;
  };

  describe("when the holder is killed with -9, the other takes over within 10 s", () => {
    test("issuer's relay and clock: what was acknowledged in between is published, and commands wait for publication again", async () => {
      await takeOver("issuer", ["relay-issuer", "reactions-issuer"], async ({ name }) => {
        const { identities } = scene.stage;
        await identities.create(`workload/after-${name}`, { validMs: 3_600_000 });
        const issuer = scene.cast.client(IssuerService, name, "workload/billing");
        const created: string[] = [];
        await within("a command answers as published", waitMs, async () => {
          const { token, published } = await issuer.createToken(createRequest());
          created.push(token?.tokenId ?? "");
          return published;
        });
        for (const tokenId of created) await onLog(`curfew.token.issued.v1 ${tokenId}`);
        const isNoted = ({ message }: ReadEvent) =>
          message.$typeName === "curfew.events.v1.IdentityCreated" &&
          (message as IdentityCreated).spiffeId.endsWith(`/after-${name}`);
        await within("an identity is noted", waitMs, async () => {
          await scene.evidence.catchUp();
          return scene.evidence.events.some(isNoted);
        });
      });
    });

    test("revocation's relay and effective times", async () => {
      await takeOver("revocation", ["relay-revocation", "reactions-revocation"], async ({ name }) => {
        const { tokenId } = await scene.issue();
        const client = security(scene, name);
        await client.revokeToken(revoke(tokenId));
        const { instances } = await within("the revocation takes effect", waitMs, async () => {
          const found = await client.getRevocation({ tokenId });
          return found.effectiveAt && found;
        });
        expect(instances.length).toBeGreaterThan(0);
        await onLog(`curfew.token.revoked.v1 ${tokenId}`);
        await onLog(`curfew.revocation.effective.v1 ${tokenId}`);
      });
    });

    test.for(["verifier", "verifier-2"])("%s: a resource service asks the other", async (name) => {
      const sdk = await openSdk();
      const allows = async (secret: string) => (await sdk.ask(secret)) === "ALLOWED";
      const [known, unknown] = [await scene.issue(), await scene.issue()];
      await within("the SDK allows", waitMs, () => allows(known.secret));
      await kill(scene.service(name));
      const killedMs = performance.now();
      // Nothing that it has cached: a verifier has to answer.
      await within("the SDK allows a token that it has to ask about", waitMs, () => allows(unknown.secret));
      expect(performance.now() - killedMs).toBeLessThan(takeoverMs);
    });

    test("auditor's sealing, its own events, erasures, and what SIEMs are told", async () => {
      const leases = ["seal-auditor", "relay-auditor", "people-auditor", "siem-auditor"];
      await takeOver("auditor", leases, async ({ name }) => {
        const pseudonym = `psn_${randomUUID().replaceAll("-", "")}`;
        const subject = { who: { case: "pseudonym" as const, value: pseudonym } };
        const people = scene.cast.client(DataSubjectService, name, "person/dana");
        await people.eraseDataSubject({ requestId: randomUUID(), subject, reference: "dsr/1" });
        await within("they are erased", waitMs, async () => {
          const answer = await people.getDataSubject({ subject });
          return answer.subject?.erasure?.erasedAt;
        });
        const auditor = scene.cast.client(AuditorService, name, "person/dana");
        await within("that is on its topic, and sealed", waitMs, async () => {
          const { events } = await auditor.listEvents({ type: "curfew.data-subject.erased.v1", pageSize: 1_000 });
          return events.some(({ json }) => json.includes(pseudonym));
        });
        await within("SIEMs are told", waitMs, () => siemSays(pseudonym));
      });
    });

    test("breach-notifier's relay, cases and pages", async () => {
      await takeOver("breach-notifier", ["relay-breach-notifier", "reactions-breach-notifier"], async () => {
        const { tokenId, secret } = await scene.issue();
        await security(scene).reportLeak(leakOf(secret));
        await onLog(`curfew.case.opened.v1 ${tokenId}`);
        const { webhooks } = scene.stage.receivers;
        await within("the page arrives", waitMs, async () => webhooks.some(({ body }) => body.includes(tokenId)));
      });
    });
  });

  describe("the same request_id at once to two replicas has one effect", () => {
    test("CreateToken", async () => {
      const request = createRequest();
      const clients = ["issuer", "issuer-2"].map((name) => scene.cast.client(IssuerService, name, "workload/billing"));
      const answers = await Promise.all([...clients, ...clients].map((issuer) => issuer.createToken(request)));
      const ids = new Set(answers.map(({ token }) => token?.tokenId));
      expect(ids.size).toBe(1);
      // The secret is shown once, and nobody has two different ones.
      expect(answers.filter(({ secret }) => secret !== "")).toHaveLength(1);
      const [tokenId = ""] = ids;
      await onLog(`curfew.token.issued.v1 ${tokenId}`);
      expect((await eventsOf(`tokens/${tokenId}`)).size).toBe(1);
      const other = scene.cast.client(IssuerService, "issuer-2", "workload/payroll");
      expect((await other.createToken(request)).token?.tokenId).not.toBe(tokenId);
    });

    test("RevokeToken and ReportLeak", async () => {
      const clients = ["revocation", "revocation-2"].map((name) => security(scene, name));
      const { tokenId } = await scene.issue();
      const request = revoke(tokenId);
      const revoked = await Promise.all([...clients, ...clients].map((client) => client.revokeToken(request)));
      expect(new Set(revoked.map(({ revokedAt }) => revokedAt && timestampMs(revokedAt))).size).toBe(1);
      const leaked = await scene.issue();
      const leak = leakOf(leaked.secret);
      await within("the leaked secret is known to both", waitMs, async () => {
        const known = await Promise.all(clients.map((client) => client.identifySecret(leak)));
        return known.every((each) => each.tokenId === leaked.tokenId);
      });
      const reported = await Promise.all([...clients, ...clients].map((client) => client.reportLeak(leak)));
      expect(new Set(reported.map((each) => each.tokenId))).toEqual(new Set([leaked.tokenId]));
      await onLog(`curfew.case.opened.v1 ${leaked.tokenId}`);
      const count = async (stream: string, type: string) =>
        [...(await eventsOf(stream))].filter((event) => event.startsWith(type)).length;
      expect(await count(`revocations/${tokenId}`, "curfew.token.revoked.v1")).toBe(1);
      expect(await count(`revocations/${leaked.tokenId}`, "curfew.leak.reported.v1")).toBe(1);
      expect(await count(`revocations/${leaked.tokenId}`, "curfew.token.revoked.v1")).toBe(1);
      expect(await count(`case/${leaked.tokenId}/1`, "curfew.case.opened.v1")).toBe(1);
    });
  });

  describe("no allowed answer to a request sent after the effective time, by the replies an outside client received", () => {
    /** Revokes under a judge that asks all the time, `attack` before and `relieve` after it took effect, and judges. */
    const judgeRevocation = async (parts: {
      readonly respondents: Parameters<typeof openJudge>[1];
      readonly attack?: () => Promise<void> | void;
      readonly afterRevocation?: () => Promise<void> | void;
      readonly relieve?: () => Promise<void> | void;
      readonly token: { readonly tokenId: string; readonly secret: string };
    }) => {
      const { respondents, token } = parts;
      const judge = openJudge(token.secret, respondents);
      const names = Object.keys(respondents);
      const everyoneHas = (of: () => readonly Reply[]) => async () =>
        names.every((who) => of().some((reply) => reply.who === who));
      try {
        await within(
          "everyone allows",
          waitMs,
          everyoneHas(() => judge.allowing(judge.replies)),
        );
        await parts.attack?.();
        const client = security(scene);
        const { revokedAt } = await client.revokeToken(revoke(token.tokenId), { deadlineMs: 30_000 });
        await parts.afterRevocation?.();
        const proof = await within("it takes effect", waitMs, async () => {
          const found = await client.getRevocation({ tokenId: token.tokenId });
          return found.effectiveAt && found;
        });
        const effectiveMs = timestampMs(proof.effectiveAt as NonNullable<typeof proof.effectiveAt>);
        // Some are sent to those who are still stopped, too.
        await within("questions go out after it", waitMs, async () => Date.now() > effectiveMs + 500);
        const relievedMs = Date.now();
        await parts.relieve?.();
        const denied = () => judge.after(effectiveMs).filter(({ outcome }) => outcome === "REVOKED");
        await within("everyone denies", waitMs, everyoneHas(denied));
        await judge.stop();
        await within("every answer is in", waitMs, async () => judge.outstanding() === 0);
        const after = judge.after(effectiveMs);
        expect(judge.allowing(after)).toEqual([]);
        const delayMs = effectiveMs - timestampMs(revokedAt as NonNullable<typeof revokedAt>);
        console.log(
          `effective after ${delayMs} ms; ${judge.replies.length} replies, ${after.length} of them sent later`,
        );
        return { proof, late: after.filter(({ sentMs }) => sentMs < relievedMs) };
      } finally {
        await judge.stop();
      }
    };
    const verifiers = () => ({
      verifier: verifierRespondent(scene.cast, "verifier"),
      "verifier-2": verifierRespondent(scene.cast, "verifier-2"),
    });

    test("with answers in flight at two verifiers and an SDK", async () => {
      const token = await scene.issue();
      const sdk = await openSdk();
      const { proof } = await judgeRevocation({ token, respondents: { ...verifiers(), sdk: sdk.ask } });
      const acknowledged = proof.instances.filter((each) => each.acknowledgedAt).map(({ name }) => name);
      expect(acknowledged.sort()).toEqual(["service/verifier", "service/verifier", "workload/invoices"]);
    });

    test("with one verifier and one SDK stopped by SIGSTOP and resumed, and revocation killed and started again meanwhile", async () => {
      const token = await scene.issue();
      const [sdk, stopped] = [await openSdk(), await openSdk()];
      const verifier = scene.service("verifier-2");
      const revocations = ["revocation", "revocation-2"].map((name) => scene.service(name));
      const { proof, late } = await judgeRevocation({
        token,
        respondents: { ...verifiers(), sdk: sdk.ask, stopped: stopped.ask },
        attack: () => {
          verifier.pause();
          stopped.pause();
        },
        afterRevocation: async () => {
          await kill(...revocations);
          await restart(...revocations);
        },
        relieve: () => {
          verifier.resume();
          stopped.resume();
        },
      });
      // They did get questions while they stood still, and did answer them afterwards.
      const answered = late.filter(({ outcome }) => outcome === "REVOKED" || outcome === "STALE_VERIFIER");
      expect(new Set(answered.map(({ who }) => who))).toEqual(new Set(["verifier", "verifier-2", "sdk", "stopped"]));
      const lapsed = proof.instances.filter((each) => each.leaseEndedAt).map(({ name }) => name);
      expect(lapsed).toEqual(expect.arrayContaining(["service/verifier", "workload/invoices"]));
    });

    test("with no watcher at all, and verifiers that start afterwards; a killed SDK leaves a gap", async () => {
      const token = await scene.issue();
      const sdk = await openSdk();
      const judge = openJudge(token.secret, { sdk: sdk.ask });
      await within("the SDK allows", waitMs, async () => judge.allowing(judge.replies).length > 20);
      await judge.stop();
      const killedMs = Date.now();
      const both = ["verifier", "verifier-2"].map((name) => scene.service(name));
      await Promise.all([sdk.kill(), kill(...both)]);
      const gap = await within("the gap is on the log", waitMs, async () => {
        await scene.evidence.catchUp();
        const gaps = scene.evidence.events.filter(({ type }) => type === "curfew.use-reporting.gap.v1");
        const found = gaps.map(({ message }) => message as UseReportingGap);
        return found.find(({ to }) => to && timestampMs(to) > killedMs);
      });
      expect(gap.resourceService).toBe("invoices");
      expect(gap.from && timestampMs(gap.from)).toBeLessThanOrEqual(killedMs);
      // The leases of all who watched have ended by now.
      const client = security(scene);
      const { revokedAt } = await client.revokeToken(revoke(token.tokenId));
      const proof = await within("it takes effect", waitMs, async () => {
        const found = await client.getRevocation({ tokenId: token.tokenId });
        return found.effectiveAt && found;
      });
      expect(proof.instances).toEqual([]);
      expect(proof.effectiveAt).toEqual(revokedAt);
      await restart(...both);
      const later = openJudge(token.secret, verifiers());
      await within("both deny", waitMs, async () =>
        both.every(({ name }) => later.replies.some(({ who, outcome }) => who === name && outcome === "REVOKED")),
      );
      await later.stop();
      expect(later.allowing(later.replies)).toEqual([]);
    });
  });
});
