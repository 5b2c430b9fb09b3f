import type { PolicyPublished } from "@curfew/contracts/gen/curfew/events/v1/tokens_pb.ts";
import { Rejection } from "@curfew/decider/decider.ts";
import type { Collection } from "@curfew/document-store/port.ts";
import type { Aggregates } from "@curfew/event-log/handle-command.ts";
import { sharedByKey } from "@curfew/event-log/shared.ts";
import type { CommitDoc } from "@curfew/event-log/streams.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import { type PolicyState, type PublishPolicy, policyStream } from "./domain/records.ts";
import type { RejectionCode } from "./domain/requests.ts";
import type { Policy } from "./policy.ts";

/** The policies in force, from the issuer's own streams, so that a broken bus changes nothing. */
export interface PolicyBook {
  /** Runs `use` on the policies as they are in the store now; what they refuse is judged again after looking for policies with new names. */
  judge<T>(use: (policies: readonly Policy[]) => Promise<T>): Promise<T>;
}

const maxPolicies = 1_000;
const prefix = policyStream("");
const afterPrefix = `${prefix.slice(0, -1)}0`;

export const openPolicyBook = (parts: {
  readonly commits: Collection<CommitDoc>;
  readonly policies: Aggregates<PolicyState, PublishPolicy, PolicyPublished>;
  readonly clock: Pick<Clock, "sleep">;
}): PolicyBook => {
  const names = new Set<string>();

  /** One read per policy: each jumps over the versions of the one before. */
  const discover = async () => {
    for (let from = prefix; names.size < maxPolicies; ) {
      const [commit] = await parts.commits.find({ from, below: afterPrefix, limit: 1 });
      if (!commit) return;
      names.add(commit.stream.slice(prefix.length));
      from = `${commit.stream}@~`; // after every version, which are digits
    }
  };
  const load = async (): Promise<readonly Policy[]> => {
    const states = await Promise.all([...names].map((name) => parts.policies.load(policyStream(name))));
    return states.flatMap(({ inForce }) => inForce ?? []);
  };
  const read = sharedByKey(async (which: "known" | "all") => {
    if (which === "all") await discover();
    return await load();
  }, parts.clock);

  return {
    async judge(use) {
      try {
        return await use(await read("known"));
      } catch (error) {
        const refused: RejectionCode = "POLICY_REFUSED";
        if (!(error instanceof Rejection && error.code === refused)) throw error;
        return await use(await read("all"));
      }
    },
  };
};
