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
import { collectGarbage, watchOthers } from "./machine.ts";
import { access } from "./use.ts";

/**
 * From the commit of a revocation, by revocation's clock (the same machine's), to the moment when the last of all watching clients has
 * refused the token, which every one held in its cache.
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

/** Clients try the first replica first: so they are spread over all. */
const rotated = (replicas: readonly string[], by: number) => {
  const first = by % replicas.length;
  return [...replicas.slice(first), ...replicas.slice(0, first)];
};

const openWatching = async (suite: Revocable, count: number): Promise<LocalVerifier[]> => {
  const connections = await Promise.all(suite.resourceServices.map((name) => suite.connection(`workload/${name}`)));
  const watching = Array.from({ length: count }, (_, i) => {
    const connection = connections[i % connections.length];
    if (!connection) throw new Error("no resource service");
    return openLocalVerifier({ ...connection, verifier: suite.verifier, revocation: rotated(suite.revocation, i) });
  });
  await Promise.all(watching.map((one) => one.whenLive()));
  return watching;
};

const maxTries = 100;
const retryMs = 100;
/** Denials that have nothing to do with the token: they do not count as refusing it. */
const passing: ReadonlySet<string> = new Set(["VERIFIER_UNREACHABLE", "STALE_VERIFIER"]);

/** Between two looks at a client that still allows; it counts as part of the time. */
const pauseMs = 1;

/**
 * When all of them had refused. Who has refused a token never allows it again, so they are asked one after another, each until it
 * refuses: a hundred asked over and over keep both cores busy with their own decisions, and those are what would be measured.
 */
const lastOf = async (watching: readonly LocalVerifier[], secret: string): Promise<number> => {
  for (const one of watching) {
    while (
      await one
        .authorize(secret, access, () => true)
        .catch((error: Denied) => {
          if (error.reason !== "REVOKED" && !passing.has(error.reason)) throw error;
          return error.reason !== "REVOKED";
        })
    )
      await systemClock.sleep(pauseMs);
  }
  return systemClock.now();
};

const msOf = (at: { readonly seconds: bigint; readonly nanos: number } | undefined): number =>
  at ? Number(at.seconds) * 1000 + at.nanos / 1e6 : Number.NaN;

/** Lets the verifier's answer into the client's cache; many connections at once may take it some tries. */
const cached = async (one: LocalVerifier, secret: string): Promise<void> => {
  for (let tries = 1; ; tries += 1) {
    try {
      return await one.authorize(secret, access, () => undefined);
    } catch (error) {
      if (tries >= maxTries || !passing.has((error as Denied).reason)) throw error;
      await systemClock.sleep(retryMs);
    }
  }
};

/** By then SDKs have reported what they decided, and the verifier has acknowledged: a quarter of a second after its last answer. */
const effectiveEveryMs = 700;

/** A revocation is measured when nothing is left to do for the one before. */
const effective = async (revocation: ServiceClient<typeof RevocationService>, tokenId: string): Promise<void> => {
  do await systemClock.sleep(effectiveEveryMs);
  while (!(await revocation.getRevocation({ tokenId })).effectiveAt);
};

/** For what waited meanwhile. */
const collectedMs = 50;

const threadCpuMs = (since?: NodeJS.CpuUsage): number => {
  const { user, system } = process.threadCpuUsage(since);
  return (user + system) / 1_000;
};

const round = async (
  watching: readonly LocalVerifier[],
  { secret, tokenId }: Revocable["tokens"][number],
  revocation: ServiceClient<typeof RevocationService>,
) => {
  for (let from = 0; from < watching.length; from += 25)
    await Promise.all(watching.slice(from, from + 25).map((one) => cached(one, secret)));
  // Clients are processes of their own: none waits for the garbage of a hundred.
  collectGarbage();
  await systemClock.sleep(collectedMs);
  const calledMs = systemClock.now();
  const cpu = process.threadCpuUsage();
  const refusing = lastOf(watching, secret);
  refusing.catch(() => undefined); // seen below, unless the revocation fails first
  const { revokedAt } = await revocation.revokeToken({
    requestId: randomUUID(),
    tokenId,
    reason: RevocationReason.LEAKED,
  });
  const refusedMs = await refusing;
  const clientsCpu = threadCpuMs(cpu);
  await effective(revocation, tokenId);
  const committedMs = msOf(revokedAt);
  return {
    refused: refusedMs - committedMs,
    fromCall: refusedMs - calledMs,
    clientsCpu,
  };
};

/** Rounds that are not counted: the first ones after a start run code that is not compiled yet. */
export const warmUps = 3;

/** Ms from commit to the last refusal, one per round; after `warmUps` rounds that are not counted. */
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
    for (const token of suite.tokens.slice(0, warmUps + rounds)) times.push(await round(watching, token, client.rpc));
  } finally {
    await Promise.all(watching.map((one) => one.close()));
    client.close();
  }
  return times.slice(warmUps);
};

type Times = Awaited<ReturnType<typeof measureRevocations>>;

const figure = (what: string, times: Times, mostMs: number | undefined, more: readonly string[] = []): Figure => {
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
      `from the call of RevokeToken to the last refusal: ${spread("fromCall")}`,
      `CPU time of the one process of all clients meanwhile: ${spread("clientsCpu")}`,
      ...more,
    ],
  };
};

const embedded = async (clients: number, rounds: number) => {
  const settings = { services: ["revocation", "verifier"], tokens: warmUps + rounds, evidence: "batched" };
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
    await server.cpu();
    const others = watchOthers();
    const own = process.cpuUsage();
    const times = await measureRevocations(suite, clients, rounds);
    const { user, system } = process.cpuUsage(own);
    return { times, others: others((user + system) / 1_000 + (await server.cpu()).all) };
  } finally {
    await server.close();
  }
};

const what = (clients: number, where: string) =>
  `revocation commit to the last of ${clients} watching clients refusing, p99, ${where}`;

export const revocation = async (options: { readonly quick: boolean; readonly live: boolean }): Promise<Figure[]> => {
  const { quick } = options;
  // A p99 takes a hundred.
  const roundsOf = (clients: number) => (clients === 100 ? 100 : 10) * (quick || clients > 100 ? 1 : 2);
  const figures: Figure[] = [];
  const points: { x: number; y: number }[] = [];
  for (const clients of quick ? [1, 10, 30, 100] : [1, 10, 100, 1_000]) {
    const { times, others } = await embedded(clients, roundsOf(clients));
    points.push({
      x: clients,
      y: quantile(
        times.map(({ refused }) => refused),
        0.5,
      ),
    });
    figures.push(figure(what(clients, "embedded"), times, clients === 100 ? 25 : undefined, [others]));
  }
  if (points.length > 1) {
    const show = (value: number) => value.toFixed(2);
    figures.push({ what: "    growth of the median with the watchers, exponent", value: exponent(points), show });
  }
  return options.live ? [...figures, await live(100)] : figures;
};

const live = async (rounds: number): Promise<Figure> => {
  const clients = 100;
  const unmeasured = (why: string): Figure => ({
    what: what(clients, `Kafka: NOT MEASURED, ${why}`),
    value: Number.NaN,
    show: () => "-",
  });
  const suite = await openLiveTokens(warmUps + rounds);
  if (typeof suite === "string") return unmeasured(suite);
  let times: Times;
  try {
    times = await measureRevocations(suite, clients, rounds);
  } catch (error) {
    // On a machine that is too busy for marks within 2 s everybody refuses everything, as they should.
    return unmeasured((error as Error).message);
  } finally {
    await suite.close();
  }
  return figure(
    what(clients, "half of them by Kafka; separate processes, FerretDB as deploy/dev builds it"),
    times,
    100,
  );
};
