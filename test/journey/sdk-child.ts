/** A resource service under constant load, to be killed: reads with one token from the cache without end. What it needs comes as JSON on standard input. */
import { text } from "node:stream/consumers";
import { openLocalVerifier } from "@curfew/client/local-verifier.ts";
import { createIdentitySource } from "@curfew/rpc/credentials.ts";
import { systemClock } from "@curfew/runtime/clock.ts";

const { pair, secret, certificateThumbprint, ...options } = JSON.parse(await text(process.stdin));
const sdk = openLocalVerifier({ ...options, identity: createIdentitySource(pair) });
await sdk.whenLive();
const request = {
  scope: "invoices:read",
  resource: "invoices/7",
  purpose: "billing",
  dataCategories: ["contact"],
  controller: "acme",
  maxPeople: 1,
  maxRecords: 1,
  presenterThumbprint: certificateThumbprint,
};
for (let reads = 0; ; reads += 1) {
  await sdk.authorize(secret, request, () => undefined);
  if (reads === 100) process.stdout.write("under load\n");
  await systemClock.sleep(1);
}
