import { X509Certificate } from "node:crypto";
import { readFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import type { DescService } from "@bufbuild/protobuf";
import { openClient, type ServiceClient } from "@curfew/rpc/client.ts";
import { createIdentitySource } from "@curfew/rpc/credentials.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import { CommandFailed, exitCode } from "./exit.ts";

/** How to reach a suite: `endpoints.json` in a data directory, and the identity to speak as. */
export interface ConnectionFlags {
  readonly data: string;
  readonly as: string;
}

export const dataDirectory = (flags: { readonly data: string }) => resolve(flags.data);

interface Endpoints {
  readonly trustDomain: string;
  readonly ca: string;
  readonly services: Readonly<Record<string, string>>;
}

const readEndpoints = (dataDir: string): Endpoints => {
  const file = join(dataDir, "endpoints.json");
  let text: string;
  try {
    text = readFileSync(file, "utf8");
  } catch {
    throw new CommandFailed(
      exitCode.unavailable,
      `no suite runs on ${dataDir} (${file} cannot be read): start it with npm start (or npm run live), or name its data directory with --data`,
    );
  }
  try {
    const { trustDomain, ca, services } = JSON.parse(text);
    const strings = [trustDomain, ca, ...Object.values(services)];
    if (strings.every((each) => typeof each === "string")) return { trustDomain, ca, services };
  } catch (error) {
    throw new CommandFailed(exitCode.usage, `${file} is damaged: ${(error as Error).message}`);
  }
  throw new CommandFailed(exitCode.usage, `${file} is damaged: trustDomain, ca and services are needed`);
};

/** A certificate that has ended would only be refused in the handshake, without a reason. */
const assertCurrent = (certPem: string, path: string) => {
  const { validTo } = new X509Certificate(certPem);
  if (Date.parse(validTo) <= Date.now())
    throw new CommandFailed(
      exitCode.usage,
      `the certificate of ${path} ended at ${new Date(validTo).toISOString()}: curfew identity create --renew ${path}`,
    );
};

/** A connection to the suite as one identity; one per command. */
export const connect = (flags: ConnectionFlags) => {
  const dataDir = dataDirectory(flags);
  const endpoints = readEndpoints(dataDir);
  const identityDir = join(dirname(dirname(endpoints.ca)), "identity", ...flags.as.split("/"));
  const read = (name: string) => {
    try {
      return readFileSync(join(identityDir, name), "utf8");
    } catch {
      throw new CommandFailed(
        exitCode.usage,
        `there is no identity ${flags.as} in ${dataDir}: make it with curfew identity create ${flags.as}`,
      );
    }
  };
  const certPem = read("cert.pem");
  assertCurrent(certPem, flags.as);
  const identity = createIdentitySource({ certPem, keyPem: read("key.pem") });
  const caPem = readFileSync(endpoints.ca, "utf8");
  const closers: (() => void)[] = [];
  const address = (service: string) => {
    const found = endpoints.services[service];
    if (!found) throw new CommandFailed(exitCode.unavailable, `the suite on ${dataDir} has no ${service}`);
    return found;
  };
  return {
    identity,
    identityDir,
    spiffeId: `spiffe://${endpoints.trustDomain}/${flags.as}`,
    caPem,
    trustDomain: endpoints.trustDomain,
    address,
    service<S extends DescService>(desc: S, name: string): ServiceClient<S> {
      const { rpc, close } = openClient(desc, {
        address: address(name),
        identity,
        caPem,
        trustDomain: endpoints.trustDomain,
        expectService: name,
        clock: systemClock,
      });
      closers.push(close);
      return rpc;
    },
    close: () => {
      for (const close of closers) close();
    },
  };
};

export type Connection = ReturnType<typeof connect>;

/** Runs a command on a connection and closes it. */
export const onConnection = async <T>(
  flags: ConnectionFlags,
  run: (connection: Connection) => Promise<T>,
): Promise<T> => {
  const connection = connect(flags);
  try {
    return await run(connection);
  } finally {
    connection.close();
  }
};
