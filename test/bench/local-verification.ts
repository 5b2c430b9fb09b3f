import { openLocalVerifier } from "@curfew/client/local-verifier.ts";
import { type Child, openChild } from "./child.ts";
import { exponent, type Figure, micros, ofRounds, perSecond } from "./figures.ts";
import { watchOthers } from "./machine.ts";
import { access } from "./use.ts";

/** Decisions of one SDK from its cache, every use and what it touched flushed to a durable bus: load and SDK in this process. */

const callers = 256;
const roundMs = 1_000;

const run = async (seconds: number, server: Child) => {
  const verifier = openLocalVerifier({
    ...(await server.connection("workload/crm")),
    verifier: [await server.address("verifier")],
    revocation: [await server.address("revocation")],
  });
  await verifier.whenLive();
  const secrets = await server.secrets();
  let decisions = 0;
  let next = 0;
  const allow = (secret: string) =>
    verifier.authorize(secret, access, () => {
      decisions += 1;
    });
  // Each once, remotely: from here on the cache answers.
  for (let from = 0; from < secrets.length; from += callers)
    await Promise.all(secrets.slice(from, from + callers).map(allow));
  const firstDecisions = decisions;
  const rates: number[] = [];
  await server.cpu();
  const others = watchOthers();
  const startCpu = process.cpuUsage();
  const startMs = performance.now();
  const untilMs = startMs + seconds * 1_000;
  const caller = async () => {
    while (performance.now() < untilMs) {
      await allow(secrets[next++ % secrets.length] as string);
      // A turn of the event loop now and then, as any service has between its requests.
      if (next % callers === 0) await new Promise(setImmediate);
    }
  };
  const counting = setInterval(() => rates.push(decisions), roundMs);
  await Promise.all(Array.from({ length: callers }, caller));
  clearInterval(counting);
  const during = decisions - firstDecisions;
  const ms = performance.now() - startMs;
  const { user, system } = process.cpuUsage(startCpu);
  const serverCpu = await server.cpu();
  const quiet = others((user + system) / 1000 + serverCpu.all);
  const reported = await verifier.close();
  const { decided, ended } = await server.uses();
  const perRound = rates.map((count, i) => ((count - (rates[i - 1] ?? firstDecisions)) / roundMs) * 1_000);
  return {
    rate: (during / ms) * 1000,
    perRound,
    notes: [
      `decisions ${decisions}, durable uses ${decided}, with what they touched ${ended}: ${decided === decisions && ended === decisions ? "equal" : "NOT EQUAL"}; everything reported: ${reported}`,
      `SDK with its load: ${micros((user + system) / during)} a decision; verifier: ${micros((serverCpu.main * 1000) / during)} of its thread, ${micros((serverCpu.all * 1000) / during)} of all threads`,
      quiet,
    ],
  };
};

export const localVerification = async ({ quick }: { readonly quick: boolean }): Promise<Figure[]> => {
  const figures: Figure[] = [];
  const points: { x: number; y: number }[] = [];
  const profile = process.env.CURFEW_BENCH_PROFILE;
  for (const tokens of quick ? [10_000] : [1_000, 10_000, 100_000]) {
    const seconds = quick ? 5 : tokens === 10_000 ? 30 : 10;
    const settings = { services: ["revocation", "verifier"], tokens, evidence: "batched" };
    const server = await openChild("server-process.ts", settings);
    try {
      if (profile !== undefined) await server.profile(undefined);
      const { rate, perRound, notes } = await run(seconds, server);
      if (profile !== undefined) await server.profile(`${profile}.local.cpuprofile`);
      points.push({ x: tokens, y: 1 / rate });
      const what = `SDK-local verification, ${tokens} tokens round robin, ${seconds} s sustained, uses flushed to a durable bus`;
      figures.push({
        ...ofRounds(perRound, {
          what,
          show: perSecond,
          notes,
          ...(tokens === 10_000 && { target: { least: 50_000 } }),
        }),
        value: rate,
      });
    } finally {
      await server.close();
    }
  }
  if (points.length > 1)
    figures.push({
      what: "    growth of the time of a decision with the tokens, exponent",
      value: exponent(points),
      show: (v) => v.toFixed(2),
    });
  return figures;
};
