import { setTimeout as sleep } from "node:timers/promises";
import { Denied, denialReason } from "@curfew/client/denied.ts";
import type { LocalVerifier } from "@curfew/client/local-verifier.ts";
import { AuditorService, type SealedEvent } from "@curfew/contracts/gen/curfew/auditor/v1/auditor_pb.ts";
import { BreachService, type Case } from "@curfew/contracts/gen/curfew/breach/v1/breach_pb.ts";
import { VerifierService } from "@curfew/contracts/gen/curfew/verifier/v1/verifier_pb.ts";
import { openCheckpoint } from "@curfew/ledger/checkpoint.ts";
import { leafHash } from "@curfew/ledger/hash.ts";
import { parseVerifierKey } from "@curfew/ledger/note-key.ts";
import { verifyInclusion } from "@curfew/ledger/proof.ts";
import type { Cast } from "./cast.ts";
import type { Tally } from "./tally.ts";

/** What must be so once a token has leaked, asked of a running suite. */

/** Every wait of the journey has this bound. */
export const waitMs = 15_000;

/** Asks until the answer is there. */
export const until = async <T>(what: string, ask: () => Promise<T | undefined>): Promise<T> => {
  const deadlineMs = performance.now() + waitMs;
  for (;;) {
    const answer = await ask();
    if (answer !== undefined) return answer;
    if (performance.now() > deadlineMs) throw new Error(`${what}: nothing within ${waitMs} ms`);
    await sleep(10);
  }
};

/** Everything on the topics is sealed, and `TokenRevoked` provably so. */
export const prove = async (cast: Cast, tokenId: string): Promise<{ size: number; root: string }> => {
  const auditor = cast.client(AuditorService, "auditor", "person/dana");
  await until("every event in the ledger", async () => {
    const { lag } = await auditor.getHealth({});
    return lag?.unsealedRecords === 0n ? lag : undefined;
  });
  const revoked: SealedEvent = await until("TokenRevoked in the ledger", async () => {
    const { events } = await auditor.listEvents({ tokenId, type: "curfew.token.revoked.v1" });
    return events[0];
  });
  const { leaf, inclusionProof, checkpoint, event, shard } = await auditor.getEvent({
    which: { case: "eventId", value: revoked.eventId },
  });
  const { verifierKey } = await auditor.getCheckpoint({ shard: shard?.year ?? 0 });
  const opened = openCheckpoint(checkpoint, parseVerifierKey(verifierKey));
  const index = Number(event?.index ?? -1) - Number(shard?.first ?? 0);
  if (!verifyInclusion(index, opened.size, leafHash(leaf), inclusionProof, opened.root))
    throw new Error("the inclusion proof of TokenRevoked does not lead to the signed checkpoint");
  return { size: opened.size, root: Buffer.from(opened.root).toString("base64") };
};

/**
 * Asks until the answer is REVOKED: whoever is behind refuses as stale first, and recovers. Nobody may allow it meanwhile.
 * `ask` answers "OK" where the token is allowed, else why not.
 */
const untilRevoked = async (who: string, ask: () => Promise<string>): Promise<void> => {
  const deadlineMs = performance.now() + waitMs;
  for (;;) {
    const reason = await ask();
    if (reason === "REVOKED") return;
    if (reason === "OK") throw new Error(`${who} allows a revoked token`);
    if (performance.now() > deadlineMs)
      throw new Error(`${who} says ${reason} of a revoked token, not REVOKED, for ${waitMs} ms`);
    await sleep(10);
  }
};

/** Nobody accepts it any more, and everybody knows why: both SDKs and every verifier. */
export const checkDead = async (cast: Cast, secret: string, sdks: { invoices: LocalVerifier; crm: LocalVerifier }) => {
  const use = {
    scope: "invoices:read",
    resource: "invoices/2026",
    purpose: "billing",
    controller: "acme",
    maxPeople: 1,
    maxRecords: 1,
  };
  const bySdk = (sdk: LocalVerifier) => () =>
    sdk
      .authorize(secret, use, () => "OK")
      .catch((error: unknown) => {
        if (error instanceof Denied) return error.reason;
        throw error;
      });
  const byVerifier = (name: string) => {
    const verifier = cast.client(VerifierService, name, "workload/invoices");
    return async () => {
      const { allowed, reason } = await verifier.verifyToken({
        credential: { case: "secret", value: secret },
        use: { ...use, maxPeople: 1n, maxRecords: 1n },
      });
      return allowed ? "OK" : denialReason(reason);
    };
  };
  await Promise.all([
    ...Object.entries(sdks).map(([name, sdk]) => untilRevoked(`the SDK of ${name}`, bySdk(sdk))),
    ...cast.replicas("verifier").map((_, n) => {
      const name = n === 0 ? "verifier" : `verifier-${n + 1}`;
      return untilRevoked(name, byVerifier(name));
    }),
  ]);
};

/** The case as it is once everything that the journey did has been folded. */
export const readCase = async (cast: Cast, tokenId: string, tally: Tally): Promise<Case> => {
  const breach = cast.client(BreachService, "breach-notifier", "person/dana");
  const caseId = await until("a case", async () => (await breach.listCases({ tokenId })).cases[0]?.caseId);
  return await until("the case's numbers", async () => {
    const found = (await breach.getCase({ caseId })).case;
    const radius = found?.blastRadius;
    const folded =
      radius?.window?.to !== undefined && Number(radius.records?.best) >= tally.records("after", "stranger");
    return folded ? found : undefined;
  });
};

const expectEqual = (what: string, found: unknown, wanted: unknown) => {
  if (found !== wanted)
    throw new Error(`${what}: the case says ${String(found)}, the journey's own tally says ${String(wanted)}`);
};

/** The case against what the applications counted by themselves. */
export const compare = (found: Case, tally: Tally) => {
  const { people, records } = found.blastRadius ?? {};
  expectEqual("people, lower", Number(people?.lower), tally.people("stranger"));
  expectEqual("people, best", Number(people?.best), tally.people("after", "stranger"));
  expectEqual("records, lower", Number(records?.lower), tally.records("stranger"));
  expectEqual("records, best", Number(records?.best), tally.records("after", "stranger"));
  if (people?.upper !== undefined && Number(people.upper) < tally.people("before", "after", "stranger"))
    throw new Error("people, upper: less than all that were touched since the token was issued");
};
