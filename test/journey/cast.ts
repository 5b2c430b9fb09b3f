import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { DescService } from "@bufbuild/protobuf";
import { openLocalVerifier } from "@curfew/client/local-verifier.ts";
import type { Endpoints } from "@curfew/deploy/installation.ts";
import { openClient, type ServiceClient } from "@curfew/rpc/client.ts";
import { createIdentitySource, type IdentitySource } from "@curfew/rpc/credentials.ts";
import { systemClock } from "@curfew/runtime/clock.ts";

/** The people and workloads of a journey, each with its own certificate, talking to a running suite. */
export const openCast = (endpoints: () => Endpoints, dataDir: string) => {
  const closers: (() => unknown)[] = [];
  const identity = (path: string): IdentitySource => {
    const file = (name: string) => readFileSync(join(dataDir, "identity", path, name), "utf8");
    return createIdentitySource({ certPem: file("cert.pem"), keyPem: file("key.pem") });
  };
  const caPem = () => readFileSync(endpoints().ca, "utf8");
  const serviceOf = (name: string) => name.replace(/-\d+$/, "");
  const replicas = (service: string) =>
    Object.entries(endpoints().services)
      .filter(([name]) => serviceOf(name) === service)
      .map(([, address]) => address);
  return {
    identity,
    caPem,
    replicas,
    /** A client of `service` (issuer, verifier-2, …) as `path` (person/dana). */
    client<S extends DescService>(desc: S, service: string, path: string): ServiceClient<S> {
      const { rpc, close } = openClient(desc, {
        address: endpoints().services[service] as string,
        identity: identity(path),
        caPem: caPem(),
        trustDomain: endpoints().trustDomain,
        expectService: serviceOf(service),
        clock: systemClock,
      });
      closers.push(close);
      return rpc;
    },
    /** The public SDK in a resource service's hands. */
    resourceService(name: string) {
      const sdk = openLocalVerifier({
        verifier: replicas("verifier"),
        revocation: replicas("revocation"),
        identity: identity(`workload/${name}`),
        caPem: caPem(),
        trustDomain: endpoints().trustDomain,
      });
      closers.push(() => sdk.close());
      return sdk;
    },
    /** In reverse order. */
    async close() {
      for (const close of closers.splice(0).toReversed()) await close();
    },
    onClose: (close: () => unknown) => void closers.push(close),
  };
};

export type Cast = ReturnType<typeof openCast>;
