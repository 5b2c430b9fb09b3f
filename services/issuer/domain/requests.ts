import { Rejection } from "@curfew/decider/decider.ts";

/** Why a command is refused; `grpc.ts` maps each to a gRPC status. */
export type RejectionCode =
  | "REQUEST_ID_REUSED"
  | "POLICY_REFUSED"
  | "NO_KEY_REGISTERED"
  | "TOKEN_NOT_FOUND"
  | "TOKEN_EXPIRED"
  | "TOKEN_REVOKED"
  | "LINEAGE_ENDED"
  | "NO_SUCH_GENERATION";

export const reject = (code: RejectionCode, message: string, details: Readonly<Record<string, string>> = {}): never => {
  throw new Rejection<RejectionCode>(code, message, details);
};

/** The request that a command comes from (packages/rpc/request-key.ts), as events carry it. */
export interface RequestRef {
  readonly keyHex: string;
  readonly hash: string;
}

/** A request that has had its effect, and the commit that holds it. */
export interface SeenRequest extends RequestRef {
  readonly version: number;
}

/** Older ones are forgotten: such a retry would act again, long after its deadline. */
const maxRemembered = 100;

export const remember = (
  seen: readonly SeenRequest[],
  { requestKey, requestHash }: { readonly requestKey: string; readonly requestHash: string },
  version: number,
): readonly SeenRequest[] =>
  requestKey === "" ? seen : [...seen.slice(-(maxRemembered - 1)), { keyHex: requestKey, hash: requestHash, version }];

/** The earlier request of that key, if it had its effect already; rejects when that was another one under the same id. */
export const earlier = (seen: readonly SeenRequest[], request: RequestRef): SeenRequest | undefined => {
  const found = seen.find(({ keyHex }) => keyHex === request.keyHex);
  if (found && found.hash !== request.hash)
    reject("REQUEST_ID_REUSED", "this request id was used for another request: take a new one");
  return found;
};
