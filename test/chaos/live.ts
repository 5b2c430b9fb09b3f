import { hash, randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { silentLog } from "@curfew/client/silent-log.ts";
import { Delivery } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import { IssuerService } from "@curfew/contracts/gen/curfew/issuer/v1/issuer_pb.ts";
import { RevocationService } from "@curfew/contracts/gen/curfew/revocation/v1/revocation_pb.ts";
import { type LiveOptions, type LiveSuite, openLiveSuite, type ServiceProcess } from "@curfew/deploy/dev/live-suite.ts";
import { type Cast, openCast } from "../journey/cast.ts";
import { type Evidence, kafkaBus, openEvidence } from "./evidence.ts";
import { openStage, policy, type Stage } from "./stage.ts";

/** A live suite with its cast and its evidence, for tests that take it apart. */
export interface Scene {
  readonly suite: LiveSuite;
  readonly cast: Cast;
  readonly evidence: Evidence;
  readonly stage: Stage;
  service(name: string): ServiceProcess;
  /** A token of workload/billing, shown to it. */
  issue(): Promise<{ readonly tokenId: string; readonly secret: string }>;
  close(): Promise<void>;
}

const grant = {
  scopes: ["invoices:read"],
  resources: ["invoices/**"],
  audiences: ["invoices"],
  purposes: ["billing"],
  dataCategories: ["contact"],
};
export const createRequest = () => ({ requestId: randomUUID(), grant, delivery: Delivery.DIRECT });

export const openScene = async (replicas: LiveOptions["replicas"] = {}): Promise<Scene> => {
  const stage = await openStage();
  const closers: (() => Promise<unknown>)[] = [() => stage.close()];
  const close = async () => {
    for (const each of closers.splice(0).toReversed()) await each();
  };
  try {
    const suite = await openLiveSuite({ dataDir: stage.dataDir, config: stage.config, log: silentLog, replicas });
    closers.push(() => suite.close());
    const cast = openCast(() => suite.endpoints, stage.dataDir);
    closers.push(() => cast.close());
    const admin = cast.client(IssuerService, "issuer", "person/ada");
    await admin.publishPolicy({ requestId: randomUUID(), policy: "tokens", document: policy });
    const billing = cast.client(IssuerService, "issuer", "workload/billing");
    return {
      suite,
      cast,
      evidence: openEvidence(kafkaBus(suite.kafka.brokers, suite.endpoints)),
      stage,
      service(name) {
        const found = suite.services.get(name);
        if (!found) throw new Error(`there is no ${name}`);
        return found;
      },
      async issue() {
        const { token, secret } = await billing.createToken(createRequest());
        return { tokenId: token?.tokenId ?? "", secret };
      },
      close,
    };
  } catch (error) {
    await close();
    throw error;
  }
};

/** Asks until the answer is there, at most `limitMs`; what failed last is what the failure shows. */
export const within = async <T>(
  what: string,
  limitMs: number,
  ask: () => Promise<T | undefined | false>,
): Promise<T> => {
  const untilMs = performance.now() + limitMs;
  let last: unknown;
  for (;;) {
    try {
      const found = await ask();
      if (found !== undefined && found !== false) return found;
    } catch (error) {
      last = error;
    }
    if (performance.now() > untilMs) throw new Error(`${what}: not within ${limitMs} ms`, { cause: last });
    await sleep(25);
  }
};

/** security's report of a leaked secret, as a scanner makes it. */
export const leakOf = (secret: string) => ({
  requestId: randomUUID(),
  secretSha256: hash("sha256", secret, "buffer"),
  sighting: { kind: "git", location: `repository/${randomUUID()}`, public: true },
});

/** Revocation as person/sam, at a replica. */
export const security = ({ cast }: Scene, name = "revocation") => cast.client(RevocationService, name, "person/sam");
