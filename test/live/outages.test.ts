import { randomUUID } from "node:crypto";
import { BreachService } from "@curfew/contracts/gen/curfew/breach/v1/breach_pb.ts";
import { RevocationReason } from "@curfew/contracts/gen/curfew/events/v1/revocations_pb.ts";
import { IssuerService } from "@curfew/contracts/gen/curfew/issuer/v1/issuer_pb.ts";
import { Health, HealthCheckResponse_ServingStatus as Status } from "@curfew/contracts/gen/grpc/health/v1/health_pb.ts";
import type { ServiceProcess } from "@curfew/deploy/dev/live-suite.ts";
import { parseRpcError } from "@curfew/rpc/errors.ts";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { openJudge, type Reply, verifierRespondent } from "../chaos/judge.ts";
import { createRequest, leakOf, openScene, type Scene, security, within } from "../chaos/live.ts";

const waitMs = 60_000;
/** A verifier that is cut off denies whatever is asked later than this. */
const limitMs = 2_000;
const verifiers = ["verifier", "verifier-2"];
type Breakable = Pick<ServiceProcess, "kill" | "pause" | "resume" | "restart">;
const revoke = (tokenId: string) => ({ requestId: randomUUID(), tokenId, reason: RevocationReason.LEAKED });

describe("outages of a real broker, a real database and revocation", () => {
  let scene: Scene;

  beforeAll(async () => {
    scene = await openScene();
  });
  /** How to mend what a test has broken and not mended itself. */
  const broken = new Set<() => Promise<void> | void>();
  const breaking = (what: Breakable, how: "killed" | "paused") => {
    const mend = how === "killed" ? () => what.restart() : () => what.resume();
    broken.add(mend);
    return {
      done: how === "killed" ? what.kill() : what.pause(),
      mend: async () => {
        if (broken.delete(mend)) await mend();
      },
    };
  };
  afterEach(async () => {
    for (const mend of broken) await mend();
    broken.clear();
    await known();
  }, 120_000);
  afterAll(async () => {
    await scene?.close();
  });

  const ask = (name: string) => verifierRespondent(scene.cast, name);
  const status = async (service: string, name: string, path: string) =>
    (await scene.cast.client(Health, name, path).check({ service })).status;
  const verifierHealth = (name: string) => status("curfew.verifier.v1.VerifierService", name, "workload/invoices");
  const issuer = () => scene.cast.client(IssuerService, "issuer", "workload/billing");
  const statusOf = (call: Promise<unknown>) =>
    call.then(
      () => "OK",
      (error: unknown) => parseRpcError(error).status,
    );
  const onLog = (mark: string) =>
    within(`${mark} is on its topic`, waitMs, async () => {
      await scene.evidence.catchUp();
      return scene.evidence.has(mark);
    });
  /** A token that both verifiers allow. */
  const known = async () => {
    const token = await within("a token is issued", waitMs, () => scene.issue());
    for (const name of verifiers)
      await within(`${name} allows`, waitMs, async () => (await ask(name)(token.secret)) === "ALLOWED");
    return token;
  };
  /** "ALLOWED", or why not: a reason, or the status of a refused call. */
  const outcome = (name: string, secret: string) => ask(name)(secret).catch((error) => parseRpcError(error).status);
  const denies = ["STALE_VERIFIER", "UNAVAILABLE"];
  /** Breaks `what` under questions to both verifiers, and holds them to their limit. Answers how to mend it. */
  const cutOff = async (what: Breakable, how: "killed" | "paused", secret: string) => {
    const judge = openJudge(secret, Object.fromEntries(verifiers.map((name) => [name, ask(name)])));
    const everyone = (of: () => readonly Reply[]) => async () =>
      verifiers.every((name) => of().some(({ who }) => who === name));
    await within(
      "both allow",
      waitMs,
      everyone(() => judge.allowing(judge.replies)),
    );
    const { done, mend } = breaking(what, how);
    await done;
    const cutMs = Date.now();
    const later = () => judge.after(cutMs + limitMs);
    await within("both answer questions from after their limit", waitMs, everyone(later));
    for (const name of verifiers) {
      await within(`${name} denies`, waitMs, async () => denies.includes(await outcome(name, secret)));
      await within(`${name} says NOT_SERVING`, waitMs, async () => (await verifierHealth(name)) === Status.NOT_SERVING);
    }
    await judge.stop();
    await within("every answer is in", waitMs, async () => judge.outstanding() === 0);
    expect(judge.allowing(later())).toEqual([]);
    const last = Math.max(...judge.allowing(judge.replies).map(({ sentMs }) => sentMs));
    console.log(
      `${how}: the last question that was allowed went out ${last - cutMs} ms after it; ${later().length} later`,
    );
    return mend;
  };
  const untilRecovered = async (secret: string, answer: string) => {
    for (const name of verifiers) {
      await within(`${name} answers ${answer}`, waitMs, async () => (await outcome(name, secret)) === answer);
      await within(`${name} says SERVING`, waitMs, async () => (await verifierHealth(name)) === Status.SERVING);
    }
  };

  test.for(["killed", "paused"] as const)(
    "broker %s: the emergency stop is accepted, verifiers deny, and all of it recovers by itself",
    { timeout: 240_000 },
    async (how) => {
      const [revoked, other] = [await known(), await known()];
      const mend = await cutOff(scene.suite.kafka, how, other.secret);
      const { published } = await security(scene).revokeToken(revoke(revoked.tokenId), { deadlineMs: 20_000 });
      expect(published).toBe(false);
      const { published: created, token } = await issuer().createToken(createRequest(), { deadlineMs: 20_000 });
      expect(created).toBe(false);
      for (const name of verifiers) expect(await outcome(name, revoked.secret)).not.toBe("ALLOWED");
      // Who needs the bus says so; who can go on without it goes on.
      expect(await status("curfew.issuer.v1.IssuerService", "issuer", "workload/billing")).toBe(Status.SERVING);
      await within("the server of issuer says NOT_SERVING", waitMs, async () => {
        return (await status("", "issuer", "workload/billing")) === Status.NOT_SERVING;
      });

      await mend();
      await untilRecovered(revoked.secret, "REVOKED");
      await untilRecovered(other.secret, "ALLOWED");
      await onLog(`curfew.token.revoked.v1 ${revoked.tokenId}`);
      await onLog(`curfew.token.issued.v1 ${token?.tokenId}`);
      expect(scene.evidence.problems).toEqual([]);
    },
  );

  test("broker down while a leak is reported: the case opens afterwards, and people are paged", {
    timeout: 240_000,
  }, async () => {
    const leaked = await known();
    const { done, mend } = breaking(scene.suite.kafka, "killed");
    await done;
    const { tokenId, published } = await security(scene).reportLeak(leakOf(leaked.secret), { deadlineMs: 20_000 });
    expect({ tokenId, published }).toEqual({ tokenId: leaked.tokenId, published: false });
    for (const name of verifiers) expect(await outcome(name, leaked.secret)).not.toBe("ALLOWED");
    await mend();
    const breach = scene.cast.client(BreachService, "breach-notifier", "person/dana");
    await within("the case is open", waitMs, async () => {
      return (await breach.listCases({ tokenId })).cases.length === 1;
    });
    await within("the page arrives", waitMs, async () =>
      scene.stage.receivers.webhooks.some(({ body }) => body.includes(tokenId)),
    );
    await untilRecovered(leaked.secret, "REVOKED");
  });

  test("database down: commands are UNAVAILABLE, verifiers deny once no mark comes, and all of it recovers", {
    timeout: 240_000,
  }, async () => {
    const [token, other] = [await known(), await known()];
    // No lease can be durable and no commit be known, so nothing vouches for what a verifier knows.
    const mend = await cutOff(scene.suite.ferret, "killed", token.secret);
    expect(await statusOf(issuer().createToken(createRequest(), { deadlineMs: 20_000 }))).toBe("UNAVAILABLE");
    // It may take effect later: whoever is told so asks again.
    const stopping = security(scene).revokeToken(revoke(other.tokenId), { deadlineMs: 20_000 });
    expect(await statusOf(stopping)).toBe("UNAVAILABLE");
    await within("issuer says NOT_SERVING", waitMs, async () => {
      const found = await status("curfew.issuer.v1.IssuerService", "issuer", "workload/billing");
      return found === Status.NOT_SERVING;
    });
    await mend();
    await untilRecovered(token.secret, "ALLOWED");
    const created = await within("commands are taken again", waitMs, () => issuer().createToken(createRequest()));
    await onLog(`curfew.token.issued.v1 ${created.token?.tokenId}`);
    for (const { tokenId, secret } of [token, other]) {
      await security(scene).revokeToken(revoke(tokenId));
      await untilRecovered(secret, "REVOKED");
    }
  });

  test.for(["killed", "paused"] as const)(
    "revocation %s: verifiers are cut off, deny within their limit, and recover by themselves",
    { timeout: 240_000 },
    async (how) => {
      const token = await known();
      const mend = await cutOff(scene.service("revocation"), how, token.secret);
      await mend();
      await untilRecovered(token.secret, "ALLOWED");
    },
  );
});
