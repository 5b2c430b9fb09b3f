import type {
  CachedUse,
  CompletedUse,
  Person,
  UseRequest,
} from "@curfew/contracts/gen/curfew/verifier/v1/verifier_pb.ts";
import { type FieldViolation, RpcError } from "@curfew/rpc/errors.ts";
import type { CallContext } from "@curfew/rpc/service-definition.ts";
import type { Organisation } from "@curfew/runtime/organisation.ts";
import { parseTokenId } from "@curfew/token-format/token-id.ts";
import { type Address, parseAddress } from "./address.ts";
import { isSaneTime } from "./facts.ts";

/**
 * What the proto's own rules cannot say. Everything wrong with a request is collected; then all of it is refused and nothing of it is
 * recorded. No message repeats a value.
 */
export interface RequestCheck {
  /** The address of the use, if it names one. */
  use(use: UseRequest, at: string): Address | undefined;
  /** Those of a report, by their place in it. */
  cachedUse(use: CachedUse, i: number): Address | undefined;
  completedUse(use: CompletedUse, i: number): void;
  /** What was found wrong elsewhere. */
  violation(field: string, reason: string, description: string): void;
  /** Throws RpcError INVALID_ARGUMENT if anything was wrong. */
  assertRight(): void;
}

const maxViolations = 20;
const none: ReadonlySet<string> = new Set();

/** Which controllers a resource service may speak for: a closed set in configuration, by the name in its certificate. */
export const openRequestChecks = (organisation: Organisation): ((ctx: CallContext) => RequestCheck) => {
  const listed = new Map(organisation.resourceServices.map(({ name, controllers }) => [name, new Set(controllers)]));
  return ({ caller }) => {
    const controllers = (caller.kind === "workload" ? listed.get(caller.name) : undefined) ?? none;
    const violations: FieldViolation[] = [];
    const violation: RequestCheck["violation"] = (field, reason, description) => {
      if (violations.length < maxViolations) violations.push({ field, reason, description });
    };
    const notListed = (field: string) =>
      violation(field, "CONTROLLER_NOT_LISTED", "must be a controller that the calling resource service is listed for");
    const noTokenId = (field: string) => violation(field, "NOT_A_TOKEN_ID", 'must be "tok_" and a UUID');
    // Names of fields are made where they are told: a report has hundreds that are right.
    const use = (asked: UseRequest, at: string, i?: number): Address | undefined => {
      const path = (name: string) => (i === undefined ? `${at}.${name}` : `${at}[${i}].use.${name}`);
      if (!controllers.has(asked.controller)) notListed(path("controller"));
      if (asked.sourceAddress === "") return undefined;
      const address = parseAddress(asked.sourceAddress);
      if (!address) violation(path("source_address"), "NOT_AN_ADDRESS", "must be an IPv4 or IPv6 address");
      return address;
    };
    const touched = (people: readonly Person[], at: () => string) => {
      for (const [n, person] of people.entries())
        if (!controllers.has(person.controller)) notListed(`${at()}.people[${n}].controller`);
    };
    const check: RequestCheck = {
      violation,
      use,
      cachedUse(cached, i) {
        if (!parseTokenId(cached.tokenId)) noTokenId(`cached_uses[${i}].token_id`);
        if (!cached.decidedAt || !isSaneTime(cached.decidedAt))
          violation(
            `cached_uses[${i}].decided_at`,
            "TIME_OUT_OF_RANGE",
            "must be a time between the years 1970 and 9999",
          );
        if (cached.ended) touched(cached.ended.people, () => `cached_uses[${i}].ended`);
        return cached.use && use(cached.use, "cached_uses", i);
      },
      completedUse({ tokenId, people }, i) {
        if (!parseTokenId(tokenId)) noTokenId(`completed_uses[${i}].token_id`);
        touched(people, () => `completed_uses[${i}]`);
      },
      assertRight() {
        if (violations.length === 0) return;
        const [first] = violations;
        const message = `invalid request: ${first?.field}: ${first?.description}`;
        const reason = first?.reason ?? "INVALID_REQUEST";
        throw new RpcError({ status: "INVALID_ARGUMENT", reason, message, fieldViolations: violations });
      },
    };
    return check;
  };
};
