import { create, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { VerifyTokenResponseSchema } from "@curfew/contracts/gen/curfew/verifier/v1/verifier_pb.ts";
import { int32, nested, text, time, written } from "@curfew/rpc/proto-writer.ts";

export type VerifyTokenAnswer = MessageInitShape<typeof VerifyTokenResponseSchema>;

const answer = (of: VerifyTokenAnswer): void => {
  int32(1, of.allowed ? 1 : 0);
  int32(2, of.reason ?? 0);
  text(3, of.useId ?? "");
  text(4, of.tokenId ?? "");
  text(5, of.subject ?? "");
  nested(6, of.expiresAt as Parameters<typeof time>[0] | undefined, time);
};

/** As `toBinary`; the answer of every remote use, but for those that an SDK may keep: these are few. The bytes share their memory. */
export const encodeVerifyTokenResponse = (of: VerifyTokenAnswer): Uint8Array =>
  of.cacheable ? toBinary(VerifyTokenResponseSchema, create(VerifyTokenResponseSchema, of)) : written(of, answer);
