import { randomInt } from "node:crypto";
import type { ServiceProcess } from "@curfew/deploy/dev/live-suite.ts";
import { seededRandom } from "@curfew/simulation/seeded-random.ts";
import { afterAll, beforeAll, describe, test } from "vitest";
import { survive } from "../chaos/attack.ts";
import { openScene, type Scene } from "../chaos/live.ts";
import type { Kind } from "../chaos/load.ts";

/** Each at least once, in an order drawn from the seed, and what must be under way for its kill to count. */
const victims: readonly (readonly [name: string, relevant?: readonly Kind[]])[] = [
  ["issuer", ["CreateToken", "RotateToken"]],
  ["verifier", ["VerifyToken", "ReportUses", "authorize"]],
  ["verifier-2", ["VerifyToken", "ReportUses", "authorize"]],
  ["revocation", ["RevokeToken", "ReportLeak"]],
  ["auditor"],
  ["breach-notifier", ["DecideAwareness", "AcknowledgePage", "ReportLeak"]],
  ["broker"],
  ["database"],
];
const runs = 12;
const firstSeed = Number(process.env.TEST_SEED ?? randomInt(2 ** 31));
/** See `openLoad`. */
const pace = 12;

const plan = () => {
  const random = seededRandom(firstSeed);
  const left = [...victims, ...Array.from({ length: runs - victims.length }, () => random.pick(victims))];
  return Array.from({ length: runs }, (_, n) => {
    const [[victim, relevant] = ["issuer"]] = left.splice(random.below(left.length), 1);
    return { victim, relevant, seed: (firstSeed + n) % 2 ** 31 };
  });
};

/** Each part has a suite of its own: the database used here searches whole collections, so none may get large. */
const attacks = plan();
const perPart = 3;
const parts = Array.from({ length: runs / perPart }, (_, i) => {
  return { part: i + 1, attacks: attacks.slice(i * perPart, (i + 1) * perPart) };
});

describe.each(parts)("services as processes, part $part", (part) => {
  let scene: Scene;

  beforeAll(async () => {
    console.log(`TEST_SEED=${firstSeed}`);
    scene = await openScene();
  });
  afterAll(async () => {
    await scene?.close();
  });

  const name = "lose nothing that was acknowledged: $victim killed, seed $seed";
  test.for(part.attacks)(name, { timeout: 300_000 }, async ({ victim, relevant, seed }) => {
    const { suite, cast, evidence } = scene;
    const servers: Readonly<Record<string, Pick<ServiceProcess, "kill" | "restart">>> = {
      broker: suite.kafka,
      database: suite.ferret,
    };
    const target = servers[victim] ?? scene.service(victim);
    await survive({
      ...{ victim, seed, pace, cast, evidence },
      ...(relevant && { relevant }),
      kill: () => target.kill(),
      restart: () => target.restart(),
    });
  });
});
