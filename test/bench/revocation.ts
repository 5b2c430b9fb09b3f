import { randomUUID } from "node:crypto";
import type { Denied } from "@curfew/client/denied.ts";
import { type LocalVerifier, openLocalVerifier } from "@curfew/client/local-verifier.ts";
import { RevocationReason } from "@curfew/contracts/gen/curfew/events/v1/revocations_pb.ts";
import { RevocationService } from "@curfew/contracts/gen/curfew/revocation/v1/revocation_pb.ts";
import { openClient, type ServiceClient } from "@curfew/rpc/client.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import { type Child, openChild } from "./child.ts";
import { exponent, type Figure, millis, quantile } from "./figures.ts";
import { openLiveTokens } from "./live-tokens.ts";
import { access } from "./use.ts";

/**
 * From the commit of a revocation, by revocation's clock (the same machine's), to the moment when the last of all watching clients
 * refuses the token: every one holds it in its cache and is asked again and again.
 */

/** Where the services are, who may revoke, and what there is to revoke. */
export interface Revocable {
  readonly connection: Child["connection"];
  readonly verifier: readonly string[];
  readonly revocation: readonly string[];
  readonly resourceServices: readonly string[];
  /** Secrets of live tokens, with the ids; each round ends one. */
  readonly tokens: readonly { readonly secret: string; readonly tokenId: string }[];
}

const openWatching = async (suite: Revocable, count: number): Promise<LocalVerifier[]> => {
  const connections = await Promise.all(suite.resourceServices.map((name) => suite.connection(`workload/${name}`)));
  const watching = Array.from({ length: count }, (_, i) => {
    const connection = connections[i % connections.length];
    if (!connection) throw new Error("no resource service");
    return openLocalVerifier({ ...connection, verifier: suite.verifier, revocation: suite.revocation });
  });
  await Promise.all(watching.map((one) => one.whenLive()));
  return watching;
};

/** Between two looks of a client, so that looking leaves room for what is looked for; it counts as part of the time. */
const pauseMs = 2;

/** When the last of them refused, and when the last access began. */
const lastOf = async (watching: readonly LocalVerifier[], secret: string) => {
  let begunMs = 0;
  const begin = () => {
    begunMs = systemClock.now();
    return true;
  };
  const refusal = async (one: LocalVerifier): Promise<number> => {
    for (;;) {
      const allowed = await one.authorize(secret, access, begin).catch(() => false);
      if (!allowed) return systemClock.now();
      await systemClock.sleep(pauseMs);
    }
  };
  const refusedMs = Math.max(...(await Promise.all(watching.map(refusal))));
  return { refusedMs, begunMs };
};

const msOf = (at: { readonly seconds: bigint; readonly nanos: number } | undefined): number =>
  at ? Number(at.seconds) * 1000 + at.nanos / 1e6 : Number.NaN;

const maxTries = 100;
const retryMs = 100;

/** Lets the verifier's answer into the client's cache; many connections at once may take it some tries. */
const cached = async (one: LocalVerifier, secret: string): Promise<void> => {
  for (let tries = 1; ; tries += 1) {
    try {
      return await one.authorize(secret, access, () => undefined);
    } catch (error) {
      const { reason } = error as Denied;
      if (tries >= maxTries || (reason !== "VERIFIER_UNREACHABLE" && reason !== "STALE_VERIFIER")) throw error;
      await systemClock.sleep(retryMs);
    }
  }
};

const round = async (
  watching: readonly LocalVerifier[],
  { secret, tokenId }: Revocable["tokens"][number],
  revocation: ServiceClient<typeof RevocationService>,
) => {
  for (let from = 0; from < watching.length; from += 25)
    await Promise.all(watching.slice(from, from + 25).map((one) => cached(one, secret)));
  const calledMs = systemClock.now();
  const refusing = lastOf(watching, secret);
  const { revokedAt } = await revocation.revokeToken({
    requestId: randomUUID(),
    tokenId,
    reason: RevocationReason.LEAKED,
  });
  const { refusedMs, begunMs } = await refusing;
  const committedMs = msOf(revokedAt);
  return {
    refused: refusedMs - committedMs,
    fromCall: refusedMs - calledMs,
    begun: Math.max(0, begunMs - committedMs),
  };
};

/** Ms from commit to the last refusal, one per round. */
export const measureRevocations = async (suite: Revocable, clients: number, rounds: number) => {
  const client = openClient(RevocationService, {
    ...(await suite.connection("person/sam")),
    address: suite.revocation[0] as string,
    expectService: "revocation",
    clock: systemClock,
  });
  const watching = await openWatching(suite, clients);
  const times: Awaited<ReturnType<typeof round>>[] = [];
  try {
    for (const token of suite.tokens.slice(0, rounds)) times.push(await round(watching, token, client.rpc));
  } finally {
    await Promise.all(watching.map((one) => one.close()));
    client.close();
  }
  return times;
};

type Times = Awaited<ReturnType<typeof measureRevocations>>;

const figure = (what: string, times: Times, mostMs?: number): Figure => {
  const spread = (of: keyof Times[number]) => {
    const values = times.map((each) => each[of]);
    return [0.5, 0.99, 1].map((share) => millis(quantile(values, share))).join(", ");
  };
  return {
    what,
    value: quantile(
      times.map(({ refused }) => refused),
      0.99,
    ),
    show: millis,
    ...(mostMs !== undefined && { target: { most: mostMs } }),
    notes: [
      `${times.length} revocations; from the commit to the last refusal: ${spread("refused")} (median, p99, most)`,
      `from the commit to the beginning of the last access allowed: ${spread("begun")}`,
      `from the call of RevokeToken to the last refusal: ${spread("fromCall")}`,
    ],
  };
};

const embedded = async (clients: number, rounds: number) => {
  const settings = { services: ["revocation", "verifier"], tokens: rounds, evidence: "batched" };
  const server = await openChild("server-process.ts", settings);
  try {
    const tokenIds = await server.tokenIds();
    const tokens = (await server.secrets()).map((secret, i) => ({ secret, tokenId: tokenIds[i] as string }));
    const suite = {
      connection: (path: string) => server.connection(path),
      verifier: [await server.address("verifier")],
      revocation: [await server.address("revocation")],
      resourceServices: ["crm", "shop", "mail"],
      tokens,
    };
    return await measureRevocations(suite, clients, rounds);
  } finally {
    await server.close();
  }
};

const what = (clients: number, where: string) =>
  `revocation commit to the last of ${clients} watching clients refusing, p99, ${where}`;

export const revocation = async (options: { readonly quick: boolean; readonly live: boolean }): Promise<Figure[]> => {
  const { quick } = options;
  const rounds = quick ? 20 : 200;
  const figures: Figure[] = [];
  const points: { x: number; y: number }[] = [];
  for (const clients of quick ? [1, 10, 30, 100] : [1, 10, 100, 1_000]) {
    const times = await embedded(clients, clients > 100 ? 20 : rounds);
    points.push({
      x: clients,
      y: quantile(
        times.map(({ refused }) => refused),
        0.5,
      ),
    });
    figures.push(figure(what(clients, "embedded"), times, clients === 100 ? 25 : undefined));
  }
  if (points.length > 1) {
    const show = (value: number) => value.toFixed(2);
    figures.push({ what: "    growth of the median with the watchers, exponent", value: exponent(points), show });
  }
  return options.live ? [...figures, await live(rounds)] : figures;
};

const live = async (rounds: number): Promise<Figure> => {
  const clients = 100;
  const unmeasured = (why: string): Figure => ({
    what: what(clients, `Kafka: NOT MEASURED, ${why}`),
    value: Number.NaN,
    show: () => "-",
  });
  const suite = await openLiveTokens(rounds);
  if (typeof suite === "string") return unmeasured(suite);
  try {
    const times = await measureRevocations(suite, clients, rounds);
    return figure(what(clients, "separate processes, Kafka and FerretDB"), times, 100);
  } catch (error) {
    // On a machine that is too busy for marks within 2 s everybody refuses everything, as they should.
    return unmeasured((error as Error).message);
  } finally {
    await suite.close();
  }
};
