import { randomInt, randomUUID } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { connect } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { IssuerService } from "@curfew/contracts/gen/curfew/issuer/v1/issuer_pb.ts";
import { freePort, openServerProcess, type ServerProcess } from "@curfew/deploy/dev/server-process.ts";
import { type Endpoints, endpointsFile } from "@curfew/deploy/installation.ts";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type Cast, openCast } from "../journey/cast.ts";
import { survive } from "./attack.ts";
import { type Evidence, openEvidence, sqliteBus } from "./evidence.ts";
import { openStage, policy, type Stage } from "./stage.ts";

const runs = 10;
const firstSeed = Number(process.env.TEST_SEED ?? randomInt(2 ** 31));
const readyLimitMs = 60_000;
/** Opens a case, and pages. */
const isAlarm = /^curfew\.evidence-(gap|drift)\.found\./;
const main = fileURLToPath(new URL("../../deploy/embedded/main.ts", import.meta.url));

const isTaken = (port: number) =>
  new Promise<boolean>((resolve) => {
    const socket = connect({ port, host: "127.0.0.1" });
    socket.once("connect", () => resolve(true));
    socket.once("error", () => resolve(false));
    socket.once("connect", () => socket.destroy());
  });

/** The first of six free ports: fixed ones, as an installation has, so that clients find it again. */
const sixPorts = async (): Promise<number> => {
  for (;;) {
    const first = await freePort();
    const taken = await Promise.all([1, 2, 3, 4, 5].map((n) => isTaken(first + n)));
    if (!taken.includes(true)) return first;
  }
};

describe("the embedded suite, killed with -9 under load and started again on its directory", () => {
  let stage: Stage;
  let suite: ServerProcess;
  let cast: Cast;
  let evidence: Evidence;
  let port: number;

  const start = async () => {
    const logFile = join(stage.dataDir, "..", "suite.log");
    writeFileSync(logFile, "");
    const args = ["--data", stage.dataDir, "--port", String(port), "--config", stage.configFile];
    suite = await openServerProcess({
      command: [process.execPath, "--disable-warning=ExperimentalWarning", main, ...args],
      port,
      logFile,
      goodCodes: [0],
    });
    const untilMs = performance.now() + readyLimitMs;
    while (!/^ready/m.test(readFileSync(logFile, "utf8"))) {
      if (performance.now() > untilMs) throw new Error(`not ready: ${readFileSync(logFile, "utf8").slice(-2_000)}`);
      await sleep(20);
    }
  };

  beforeAll(async () => {
    stage = await openStage();
    port = await sixPorts();
    await start();
    const endpoints = () => JSON.parse(readFileSync(endpointsFile(stage.dataDir), "utf8")) as Endpoints;
    cast = openCast(endpoints, stage.dataDir);
    evidence = openEvidence(sqliteBus(join(stage.dataDir, "bus.db")));
    const admin = cast.client(IssuerService, "issuer", "person/ada");
    await admin.publishPolicy({ requestId: randomUUID(), policy: "tokens", document: policy });
  }, 120_000);
  afterAll(async () => {
    await cast?.close();
    await suite?.stop();
    await stage?.close();
  }, 60_000);

  test.for(Array.from({ length: runs }, (_, n) => (firstSeed + n) % 2 ** 31))(
    "loses nothing that was acknowledged, seed %i",
    { timeout: 240_000 },
    async (seed) => {
      await survive({ victim: "the suite", seed, pace: 1, cast, evidence, kill: () => suite.kill(), restart: start });
      // Nobody is woken for a kill: what was found while earlier ones were looked through counts too.
      expect(evidence.events.filter(({ type }) => isAlarm.test(type)).map(({ message }) => message)).toEqual([]);
    },
  );
});
