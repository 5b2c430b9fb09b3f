import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { Denied } from "@curfew/client/denied.ts";
import { openLocalVerifier } from "@curfew/client/local-verifier.ts";
import { createIdentitySource } from "@curfew/rpc/credentials.ts";

/**
 * A resource service with the SDK in it, as a process of its own that tests stop, resume and kill. Standard input: one JSON request a
 * line, `{"n": 1, "secret": "…"}`; standard output: `{"ready": true}` once live, then `{"n": 1, "outcome": "ALLOWED" | reason}` each.
 */
export interface SdkSettings {
  readonly verifier: readonly string[];
  readonly revocation: readonly string[];
  readonly cert: string;
  readonly key: string;
  readonly ca: string;
  readonly trustDomain: string;
}

const say = (line: object) => void process.stdout.write(`${JSON.stringify(line)}\n`);

const main = async () => {
  const settings = JSON.parse(process.argv[2] ?? "") as SdkSettings;
  const text = (file: string) => readFileSync(file, "utf8");
  const sdk = openLocalVerifier({
    verifier: settings.verifier,
    revocation: settings.revocation,
    identity: createIdentitySource({ certPem: text(settings.cert), keyPem: text(settings.key) }),
    caPem: text(settings.ca),
    trustDomain: settings.trustDomain,
  });
  const answer = async ({ n, secret }: { n: number; secret: string }) => {
    const use = { scope: "invoices:read", resource: "invoices/7", purpose: "billing", controller: "acme" };
    const outcome = await sdk
      .authorize(secret, { ...use, dataCategories: ["contact"], maxPeople: 1, maxRecords: 1 }, () => "ALLOWED")
      .catch((error: Error) => (error instanceof Denied ? error.reason : error.message));
    say({ n, outcome });
  };
  const lines = createInterface({ input: process.stdin });
  lines.on("line", (line) => void answer(JSON.parse(line) as { n: number; secret: string }));
  await sdk.whenLive();
  say({ ready: true });
};

if (import.meta.main) await main();
