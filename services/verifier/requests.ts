import type {
  CachedUse,
  CompletedUse,
  Person,
  UseRequest,
} from "@curfew/contracts/gen/curfew/verifier/v1/verifier_pb.ts";
import { type Address, parseAddress } from "@curfew/personal-data/address.ts";
import { type FieldViolation, RpcError } from "@curfew/rpc/errors.ts";
import type { CallContext } from "@curfew/rpc/service-definition.ts";
import type { Organisation } from "@curfew/runtime/organisation.ts";
import { parseTokenId } from "@curfew/token-format/token-id.ts";
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
  return ({ caller }) => new CallerCheck((caller.kind === "workload" ? listed.get(caller.name) : undefined) ?? none);
};

/** Names of fields are made where they are told: a report has hundreds that are right. */
class CallerCheck implements RequestCheck {
  readonly #controllers: ReadonlySet<string>;
  #violations: FieldViolation[] | undefined;

  constructor(controllers: ReadonlySet<string>) {
    this.#controllers = controllers;
  }

  violation(field: string, reason: string, description: string): void {
    this.#violations ??= [];
    if (this.#violations.length < maxViolations) this.#violations.push({ field, reason, description });
  }

  use(asked: UseRequest, at: string): Address | undefined {
    return this.#use(asked, () => at);
  }

  cachedUse({ tokenId, decidedAt, use, ended }: CachedUse, i: number): Address | undefined {
    if (!parseTokenId(tokenId)) this.#noTokenId(`cached_uses[${i}].token_id`);
    if (!decidedAt || !isSaneTime(decidedAt))
      this.violation(
        `cached_uses[${i}].decided_at`,
        "TIME_OUT_OF_RANGE",
        "must be a time between the years 1970 and 9999",
      );
    if (ended) this.#touched(ended.people, () => `cached_uses[${i}].ended`);
    return use && this.#use(use, () => `cached_uses[${i}].use`);
  }

  completedUse({ tokenId, people }: CompletedUse, i: number): void {
    if (!parseTokenId(tokenId)) this.#noTokenId(`completed_uses[${i}].token_id`);
    this.#touched(people, () => `completed_uses[${i}]`);
  }

  assertRight(): void {
    const fieldViolations = this.#violations;
    if (!fieldViolations) return;
    const [first] = fieldViolations;
    const message = `invalid request: ${first?.field}: ${first?.description}`;
    throw new RpcError({
      status: "INVALID_ARGUMENT",
      reason: first?.reason ?? "INVALID_REQUEST",
      message,
      fieldViolations,
    });
  }

  #use(asked: UseRequest, at: () => string): Address | undefined {
    if (!this.#controllers.has(asked.controller)) this.#notListed(`${at()}.controller`);
    if (asked.sourceAddress === "") return undefined;
    const address = parseAddress(asked.sourceAddress);
    if (!address) this.violation(`${at()}.source_address`, "NOT_AN_ADDRESS", "must be an IPv4 or IPv6 address");
    return address;
  }

  #touched(people: readonly Person[], at: () => string): void {
    for (const [n, person] of people.entries())
      if (!this.#controllers.has(person.controller)) this.#notListed(`${at()}.people[${n}].controller`);
  }

  #notListed(field: string): void {
    this.violation(
      field,
      "CONTROLLER_NOT_LISTED",
      "must be a controller that the calling resource service is listed for",
    );
  }

  #noTokenId(field: string): void {
    this.violation(field, "NOT_A_TOKEN_ID", 'must be "tok_" and a UUID');
  }
}
