import type { CachedUse, Person, UseRequest } from "@curfew/contracts/gen/curfew/verifier/v1/verifier_pb.ts";
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
  cachedUse(use: CachedUse, at: string): Address | undefined;
  tokenId(tokenId: string, at: string): void;
  people(people: readonly Person[], at: string): void;
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
    const controller = (id: string, field: string) => {
      if (!controllers.has(id))
        violation(
          field,
          "CONTROLLER_NOT_LISTED",
          "must be a controller that the calling resource service is listed for",
        );
    };
    const check: RequestCheck = {
      violation,
      use(use, at) {
        controller(use.controller, `${at}.controller`);
        const address = use.sourceAddress === "" ? undefined : parseAddress(use.sourceAddress);
        if (use.sourceAddress !== "" && !address)
          violation(`${at}.source_address`, "NOT_AN_ADDRESS", "must be an IPv4 or IPv6 address");
        return address;
      },
      cachedUse(cached, at) {
        check.tokenId(cached.tokenId, `${at}.token_id`);
        if (!cached.decidedAt || !isSaneTime(cached.decidedAt))
          violation(`${at}.decided_at`, "TIME_OUT_OF_RANGE", "must be a time between the years 1970 and 9999");
        return cached.use && check.use(cached.use, `${at}.use`);
      },
      tokenId(tokenId, field) {
        if (!parseTokenId(tokenId)) violation(field, "NOT_A_TOKEN_ID", 'must be "tok_" and a UUID');
      },
      people(people, at) {
        for (const [i, person] of people.entries()) controller(person.controller, `${at}[${i}].controller`);
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
