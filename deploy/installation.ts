import { renameSync, rmSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { createIdentitySource, type IdentitySource } from "@curfew/rpc/credentials.ts";
import {
  type IdentityFiles,
  openIdentityFiles,
  personCertificateMs,
  serviceCertificateMs,
} from "@curfew/rpc/identity-files.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import type { Log } from "@curfew/runtime/log.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import type { SuiteConfig } from "./embedded/suite-config.ts";

/** What the embedded suite and the live one have in common: identities in a data directory, and `endpoints.json` for tools and scripts. */
export const serviceNames = ["issuer", "verifier", "revocation", "auditor", "breach-notifier"] as const;
export type ServiceName = (typeof serviceNames)[number];

/** `endpoints.json`. Paths are absolute. */
export interface Endpoints {
  readonly trustDomain: string;
  /** PEM of the certificate authority. */
  readonly ca: string;
  /** Service → host:port; further replicas as `verifier-2`. */
  readonly services: Readonly<Record<ServiceName, string>> & Readonly<Record<string, string>>;
  /** The ledger as a c2sp.org/tlog-tiles log over HTTP, where it is served. */
  readonly ledger?: string;
  /** "person/dana" → where its certificate and key are. */
  readonly identities: Readonly<Record<string, { readonly cert: string; readonly key: string }>>;
}

const renewEveryMs = 3_600_000;

/** Makes what is missing: services, people and resource services of the configuration. Certificates of services are renewed long before they end. */
export const openIdentities = async (options: {
  readonly dir: string;
  readonly config: SuiteConfig;
  readonly clock: Clock;
  readonly log: Log;
}) => {
  const { dir, config, clock, log } = options;
  const files = await openIdentityFiles({ dir, trustDomain: config.trustDomain, clock, random: systemRandom });
  for (const { name } of config.organisation.people)
    await files.ensure(`person/${name}`, { validMs: personCertificateMs });
  for (const { name } of config.organisation.resourceServices)
    await files.ensure(`workload/${name}`, { validMs: personCertificateMs });
  const issue = (name: ServiceName) =>
    files.ensure(`service/${name}`, { validMs: serviceCertificateMs, dnsNames: ["localhost"] });
  const sources = new Map<ServiceName, IdentitySource>();
  for (const name of serviceNames) sources.set(name, createIdentitySource(await issue(name)));
  const renew = async (name: ServiceName, source: IdentitySource) => {
    const fresh = await issue(name);
    if (fresh.certPem !== source.current().certPem) source.replace(fresh);
  };
  const stop = new AbortController();
  const renewing = (async () => {
    while (!stop.signal.aborted) {
      await clock.sleep(renewEveryMs, stop.signal);
      if (stop.signal.aborted) return;
      for (const [name, source] of sources)
        await renew(name, source).catch((err) =>
          log.error({ err, service: name }, "a certificate could not be renewed"),
        );
    }
  })();
  return {
    files,
    sourceOf: (name: ServiceName) => sources.get(name) as IdentitySource,
    async close() {
      stop.abort();
      await renewing;
    },
  };
};

export const endpointsOf = (
  trustDomain: string,
  files: IdentityFiles,
  services: Iterable<readonly [string, string]>,
  ledger?: string,
): Endpoints => ({
  trustDomain,
  ca: files.caFile,
  services: Object.fromEntries(services) as Endpoints["services"],
  ...(ledger !== undefined && { ledger }),
  identities: Object.fromEntries(
    files
      .list()
      .map((path) => [path, { cert: join(files.dir(path), "cert.pem"), key: join(files.dir(path), "key.pem") }]),
  ),
});

export const endpointsFile = (dataDir: string) => join(dataDir, "endpoints.json");

/** Whole or not at all. */
export const writeEndpoints = (dataDir: string, endpoints: Endpoints) => {
  const file = endpointsFile(dataDir);
  writeFileSync(`${file}.new`, `${JSON.stringify(endpoints, null, 2)}\n`, { mode: 0o600, flush: true });
  renameSync(`${file}.new`, file);
};

const shellWord = (text: string) => (/^[\w./:@%+-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

/** Commands against the suite that runs on `dataDir`, to be typed as they stand in the repository. */
export const firstCommands = (dataDir: string): readonly string[] => {
  const data = dataDir === resolve(".curfew") ? "" : ` --data ${shellWord(dataDir)}`;
  return [
    `npx curfew policy publish default deploy/embedded/policy.yaml --as person/ada${data}`,
    `npx curfew identity create workload/billing${data}`,
    `npx curfew token create --scope invoices:read --resource 'invoices/**' --audience invoices --purpose billing --category financial --secret-file billing.secret --as workload/billing${data}`,
    `npx curfew scan . --report --as person/sam${data}`,
    `npx curfew case list --as person/dana${data}`,
  ];
};

export const removeEndpoints = (dataDir: string) => rmSync(endpointsFile(dataDir), { force: true });
