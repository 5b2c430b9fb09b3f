import { systemClock } from "@curfew/runtime/clock.ts";
import { type AuthorizationTable, authorization } from "../authorization.ts";
import type { ChannelOptions } from "../channel.ts";
import { openClient } from "../client.ts";
import { createIdentitySource, type IdentitySource } from "../credentials.ts";
import { type Authority, createAuthority, type IssuedCertificate, issueCertificate } from "../identity-authority.ts";
import { openServer, type RpcServer, type ServerOptions } from "../server.ts";
import { bindService, type Handlers } from "../service-definition.ts";
import { EchoService } from "./echo.ts";

export const trustDomain = "test.example";
const hourMs = 3_600_000;

export const newAuthority = (clock = systemClock) => createAuthority({ trustDomain, clock });

export const issue = (authority: Authority, spiffePath: string, validMs = hourMs): Promise<IssuedCertificate> =>
  issueCertificate(authority, { spiffePath, validMs, dnsNames: ["localhost"], commonName: spiffePath.slice(1) });

const refuse = () => {
  throw new Error("not expected in this test");
};

export const echoHandlers: Handlers<typeof EchoService> = {
  echo: (request) => request,
  echoAgain: (request) => request,
  count: refuse,
  join: refuse,
  talk: refuse,
};

const rules: AuthorizationTable = Object.fromEntries(
  EchoService.methods.map((m) => [`${EchoService.typeName}/${m.name}`, [{ kind: "workload" as const }]]),
);

/** A server for `EchoService` with a CA of its own, and clients for it; `close` closes all of them. */
export const openHarness = async (
  handlers: Partial<Handlers<typeof EchoService>> = {},
  options: Partial<ServerOptions> & { readonly rejections?: Record<string, "NOT_FOUND" | "FAILED_PRECONDITION"> } = {},
) => {
  const authority = await newAuthority();
  const identity = createIdentitySource(await issue(authority, "/service/echo"));
  const logged: { fields: Readonly<Record<string, unknown>>; message: string }[] = [];
  const record = (fields: Readonly<Record<string, unknown>>, message: string) => void logged.push({ fields, message });
  const { rejections, ...overrides } = options;
  const server: RpcServer = await openServer({
    address: "localhost:0",
    identity,
    caPem: authority.certPem,
    trustDomain,
    services: [bindService(EchoService, { ...echoHandlers, ...handlers }, rejections ? { rejections } : {})],
    authorize: { ...authorization, ...rules },
    directory: { rolesOf: () => new Set(), isAudience: () => false },
    reflection: true,
    log: { warn: record, error: record },
    clock: systemClock,
    ...overrides,
  });
  const closers: (() => void)[] = [];
  const channelOptions = async (spiffePath = "/workload/billing"): Promise<ChannelOptions> => ({
    address: `localhost:${server.port}`,
    identity: createIdentitySource(await issue(authority, spiffePath)),
    caPem: authority.certPem,
    trustDomain,
    expectService: "echo",
    clock: systemClock,
  });
  const connect = (channel: ChannelOptions) => {
    const client = openClient(EchoService, channel);
    closers.push(() => client.close());
    return client.rpc;
  };
  return {
    authority,
    identity: identity as IdentitySource,
    server,
    logged,
    channelOptions,
    connect,
    client: async (spiffePath?: string) => connect(await channelOptions(spiffePath)),
    close: async () => {
      for (const close of closers) close();
      await server.close(0);
    },
  };
};
export type Harness = Awaited<ReturnType<typeof openHarness>>;
