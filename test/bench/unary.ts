import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import {
  VerifierService,
  VerifyTokenRequestSchema,
  VerifyTokenResponseSchema,
} from "@curfew/contracts/gen/curfew/verifier/v1/verifier_pb.ts";
import { openChannel } from "@curfew/rpc/channel.ts";
import { methodName } from "@curfew/rpc/service-definition.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import type { Client } from "@grpc/grpc-js";
import { type Child, type CpuMs, openChild } from "./child.ts";
import { type Figure, micros, ofRounds, perSecond, ratio } from "./figures.ts";
import { watchOthers } from "./machine.ts";
import { use } from "./use.ts";

/** VerifyToken, its use durable before the answer, beside a raw echo of the same bytes: the same load process, in turn. */

const callers = 64;
const same = (bytes: Buffer): Buffer => bytes;

interface Side {
  readonly name: string;
  readonly child: Child;
  readonly path: string;
  readonly client: Client;
  readonly check: (answer: Buffer) => void;
}

const sideOf = async (name: "echo" | "verifier", child: Child, path: string, check: Side["check"]) => {
  const address = await child.address(name);
  const { client } = openChannel({
    ...(await child.connection("workload/crm")),
    address,
    expectService: name,
    clock: systemClock,
  });
  return { name, child, path, client, check };
};

/** Calls answered a second, at so many callers, each asking again at once. */
const load = async ({ client, path, check }: Side, requests: readonly Buffer[], ms: number): Promise<number> => {
  let next = 0;
  let answered = 0;
  const untilMs = performance.now() + ms;
  const call = () =>
    new Promise<void>((resolve, reject) => {
      const request = requests[next++ % requests.length] as Buffer;
      client.makeUnaryRequest(path, same, same, request, { deadline: Date.now() + 10_000 }, (error, answer) => {
        if (error || !answer) return reject(error);
        check(answer);
        answered += 1;
        resolve();
      });
    });
  const caller = async () => {
    while (performance.now() < untilMs) await call();
  };
  const startMs = performance.now();
  await Promise.all(Array.from({ length: callers }, caller));
  return (answered / (performance.now() - startMs)) * 1000;
};

const cost = (cpu: CpuMs, rate: number, ms: number) => {
  const calls = (rate * ms) / 1000;
  return `${micros((cpu.main * 1000) / calls)} of the serving thread, ${micros((cpu.all * 1000) / calls)} of all threads`;
};

export const unary = async ({ quick }: { readonly quick: boolean }): Promise<Figure[]> => {
  const tokens = quick ? 1_000 : 10_000;
  const settings = { services: ["revocation", "verifier"], tokens, evidence: "before-use" };
  const [server, peer] = await Promise.all([
    openChild("server-process.ts", settings),
    openChild("echo-process.ts", {}),
  ]);
  try {
    const requests = (await server.secrets()).map((value) =>
      Buffer.from(
        toBinary(
          VerifyTokenRequestSchema,
          create(VerifyTokenRequestSchema, { credential: { case: "secret", value }, use }),
        ),
      ),
    );
    let durable = 0;
    const path = `/${methodName(VerifierService.method.verifyToken)}`;
    const sides = [
      await sideOf("echo", peer, "/echo/Echo", () => undefined),
      await sideOf("verifier", server, path, (answer) => {
        // Looked at as bytes: the load decodes what the echo answers no more than this.
        if (answer[0] !== 0x08 || answer[1] !== 1)
          throw new Error(`a live token was denied: ${fromBinary(VerifyTokenResponseSchema, answer).reason}`);
        durable += 1;
      }),
    ] as const;
    const ms = quick ? 1_500 : 4_000;
    for (const side of sides) await load(side, requests, quick ? 2_000 : 4_000);
    for (const { child } of sides) await child.cpu();
    const others = watchOthers();
    const ownCpu = process.cpuUsage();
    const rates: [number[], number[]] = [[], []];
    for (let round = 0; round < (quick ? 5 : 9); round += 1)
      for (const [i, side] of sides.entries()) rates[i as 0 | 1].push(await load(side, requests, ms));
    const [echoed, verified] = rates;
    const cpu = await Promise.all(sides.map(({ child }) => child.cpu()));
    const { user, system } = process.cpuUsage(ownCpu);
    const quiet = others((user + system) / 1000 + cpu.reduce((sum, { all }) => sum + all, 0));
    const [answered, uses] = [durable, (await server.uses()).decided];
    const mean = (values: number[]) => values.reduce((sum, value) => sum + value, 0);
    const file = process.env.CURFEW_BENCH_PROFILE;
    if (file !== undefined) {
      await server.profile(undefined);
      await load(sides[1], requests, 5_000);
      await server.profile(`${file}.unary.cpuprofile`);
    }
    for (const { client } of sides) client.close();
    return [
      ofRounds(
        verified.map((rate, i) => rate / (echoed[i] as number)),
        {
          what: `unary VerifyToken, durable before the answer / raw grpc-js echo, both mutual TLS, ${callers} callers`,
          show: ratio,
          target: { least: 0.7 },
          notes: [
            `answers ${answered}, durable uses ${uses}: ${answered === uses ? "equal" : "NOT EQUAL"}; ${tokens} tokens`,
            `echo: ${cost(cpu[0] as CpuMs, mean(echoed), ms)}`,
            `verifier: ${cost(cpu[1] as CpuMs, mean(verified), ms)}`,
            quiet,
            "One caller at a time is bound by the wake-up between processes, not by this.",
          ],
        },
      ),
      ofRounds(verified, { what: "    VerifyToken", show: perSecond }),
      ofRounds(echoed, { what: "    echo", show: perSecond }),
    ];
  } finally {
    await Promise.all([server.close(), peer.close()]);
  }
};
