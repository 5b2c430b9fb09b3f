import { VerifierService } from "@curfew/contracts/gen/curfew/verifier/v1/verifier_pb.ts";
import { RpcError } from "@curfew/rpc/errors.ts";
import { type BoundService, bindService } from "@curfew/rpc/service-definition.ts";
import type { Organisation } from "@curfew/runtime/organisation.ts";
import { reportUses } from "./report.ts";
import { openRequestChecks } from "./requests.ts";
import { encodeVerifyTokenResponse } from "./response-codec.ts";
import { type Verifier, verifyUses } from "./verify.ts";

const notReady = () =>
  new RpcError({
    status: "UNAVAILABLE",
    reason: "NOT_READY",
    message: "this verifier has not read the log yet; ask another, or retry",
    retryDelayMs: 500,
  });

/** The service; `ready` answers undefined until the log has been read. */
export const verifierService = (organisation: Organisation, ready: () => Verifier | undefined): BoundService => {
  const checkFor = openRequestChecks(organisation);
  const verifier = (): Verifier => {
    const found = ready();
    if (!found) throw notReady();
    return found;
  };
  return bindService(VerifierService, {
    verifyToken: async (request, ctx) => {
      const check = checkFor(ctx);
      const { use } = request;
      if (!use) throw new TypeError("the request was validated without its use");
      const address = check.use(use, "use");
      check.assertRight();
      const [response] = await verifyUses(verifier(), [{ request, use, address }], ctx);
      return encodeVerifyTokenResponse(response ?? {});
    },
    batchVerifyTokens: async ({ requests }, ctx) => {
      const check = checkFor(ctx);
      const asked = requests.map((request, i) => {
        const { use } = request;
        if (!use) throw new TypeError("the request was validated without its use");
        return { request, use, address: check.use(use, `requests[${i}].use`) };
      });
      check.assertRight();
      return { responses: await verifyUses(verifier(), asked, ctx) };
    },
    reportUses: (request, ctx) => reportUses(verifier(), request, checkFor(ctx), ctx),
  });
};
