import { createAuthority, issueCertificate } from "@curfew/rpc/identity-authority.ts";
import { type Clock, systemClock } from "@curfew/runtime/clock.ts";
import { openProducerTrust, type ProducerIdentity } from "../producer-key.ts";

const trustDomain = "test.example";
const dayMs = 86_400_000;

/** An authority, and the identities of services by it. */
export const openIdentities = async (
  clock: Clock = systemClock,
  services: readonly string[] = ["issuer", "verifier"],
) => {
  const authority = await createAuthority({ trustDomain, clock });
  const issue = (path: string): Promise<ProducerIdentity> =>
    issueCertificate(authority, { spiffePath: path, validMs: dayMs, commonName: "test" });
  const identities = new Map<string, ProducerIdentity>();
  const renew = async () => {
    for (const name of services) identities.set(name, await issue(`/service/${name}`));
  };
  await renew();
  return {
    caPem: authority.certPem,
    trustDomain,
    trust: openProducerTrust({ caPem: authority.certPem, trustDomain }),
    identity: (service: string) => identities.get(service) as ProducerIdentity,
    issue,
    renew,
  };
};
export type Identities = Awaited<ReturnType<typeof openIdentities>>;
