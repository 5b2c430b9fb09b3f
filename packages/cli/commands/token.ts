import { randomUUID } from "node:crypto";
import { durationFromMs, timestampDate } from "@bufbuild/protobuf/wkt";
import { openSealedDelivery } from "@curfew/client/sealed-delivery.ts";
import { Delivery, EvidenceMode } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import { IssuerService, type Token } from "@curfew/contracts/gen/curfew/issuer/v1/issuer_pb.ts";
import { buildCommand, buildRouteMap } from "@stricli/core";
import { type Connection, type ConnectionFlags, onConnection } from "../connection.ts";
import { CommandFailed, exitCode } from "../exit.ts";
import { connectionFlags, outputAlias, outputFlag, parseDurationMs } from "../flags.ts";
import { sealingKeyOf } from "../key-file.ts";
import { type Format, printOne, printRows, say } from "../output.ts";
import { type KeepSecret, withSecretFile } from "../secret-file.ts";

interface CommonFlags extends ConnectionFlags {
  readonly output: Format;
}

const rowOf = (token: Token) => ({
  token: token.tokenId,
  subject: token.subject,
  state: token.state,
  generation: token.generation,
  expires: token.expiresAt ? timestampDate(token.expiresAt).toISOString() : "",
  scopes: token.grant?.scopes,
  lastUsed: token.lastUsedAt ? timestampDate(token.lastUsedAt).toISOString() : "",
});

/** The holder's side of sealed delivery, with the identity's own sealing key. */
const deliveryOf = (connection: Connection) =>
  openSealedDelivery({
    issuer: connection.service(IssuerService, "issuer"),
    subject: connection.spiffeId,
    keyPair: sealingKeyOf(connection.identityDir),
  });

/** Collects and opens the newest secret of a token into its file, and says so to the issuer; it is never printed. */
const collectSecret = async (connection: Connection, tokenId: string, keep: KeepSecret) => {
  const delivered = await deliveryOf(connection).collect(tokenId, 0);
  if (!delivered)
    throw new CommandFailed(
      exitCode.refused,
      `no secret sealed to this identity's key waits for ${tokenId}: it was collected, or rotate the token`,
    );
  keep(delivered.secret);
  await connection.service(IssuerService, "issuer").confirmSecret({ tokenId, generation: delivered.generation });
};

/** Prints the token that `ask` makes or changes; its secret goes to `file`, where there is one, or waits. */
const deliver = async (
  connection: Connection,
  { output, secretFile }: { readonly output: Format; readonly secretFile?: string },
  ask: () => Promise<{ readonly token?: Token | undefined }>,
) => {
  const run = async (keep?: KeepSecret) => {
    const { token } = await ask();
    if (!token) throw new Error("the issuer answered without a token");
    printOne(output, rowOf(token)); // before its secret: whatever happens then, its id is known
    if (keep) await collectSecret(connection, token.tokenId, keep);
    else say(`the secret waits, sealed: curfew token collect ${token.tokenId} --secret-file FILE`);
  };
  if (secretFile === undefined) return await run();
  await withSecretFile(secretFile, run);
  say(`the secret is in ${secretFile}`);
};

interface CreateFlags extends CommonFlags {
  readonly scope: readonly string[];
  readonly resource: readonly string[];
  readonly audience: readonly string[];
  readonly purpose: readonly string[];
  readonly category?: readonly string[];
  readonly ttl?: number;
  readonly beforeUse: boolean;
  readonly secretFile?: string;
}

const listOf = (brief: string, placeholder: string) =>
  ({ kind: "parsed", parse: String, brief, placeholder, variadic: "," }) as const;
const secretFileFlag = {
  secretFile: {
    kind: "parsed",
    parse: String,
    brief: "new file (0600) for the secret; without it, the secret waits to be collected",
    optional: true,
    placeholder: "FILE",
  },
} as const;

const create = buildCommand({
  docs: { brief: "Create a token for the identity that asks (a workload); its secret is sealed to the identity's key" },
  parameters: {
    flags: {
      ...connectionFlags,
      ...outputFlag,
      scope: listOf("scopes, e.g. invoices:read", "SCOPE"),
      resource: listOf("resource patterns, e.g. invoices/**", "PATTERN"),
      audience: listOf("resource services that may accept it", "NAME"),
      purpose: listOf("purposes, e.g. billing", "PURPOSE"),
      category: { ...listOf("data categories it may reach", "CATEGORY"), optional: true },
      ttl: {
        kind: "parsed",
        parse: parseDurationMs,
        brief: "life of a generation, e.g. 15m; default: the policy's cap",
        optional: true,
        placeholder: "DURATION",
      },
      beforeUse: {
        kind: "boolean",
        brief: "every use on the log before its answer, whatever the policy allows",
        default: false,
        withNegated: false,
      },
      ...secretFileFlag,
    },
    aliases: outputAlias,
  },
  func: (flags: CreateFlags) =>
    onConnection(flags, async (connection) => {
      const issuer = connection.service(IssuerService, "issuer");
      await deliveryOf(connection).register(randomUUID()); // before anything can be sealed to the key
      await deliver(connection, flags, () =>
        issuer.createToken({
          requestId: randomUUID(),
          grant: {
            scopes: [...flags.scope],
            resources: [...flags.resource],
            audiences: [...flags.audience],
            purposes: [...flags.purpose],
            dataCategories: [...(flags.category ?? [])],
            evidenceMode: flags.beforeUse ? EvidenceMode.BEFORE_USE : EvidenceMode.UNSPECIFIED,
            ...(flags.ttl !== undefined && { ttl: durationFromMs(flags.ttl) }),
          },
        }),
      );
    }),
});

const rotate = buildCommand({
  docs: { brief: "Make the next generation of a token; the one before ends with the overlap" },
  parameters: {
    flags: {
      ...connectionFlags,
      ...outputFlag,
      overlap: {
        kind: "parsed",
        parse: parseDurationMs,
        brief: "how long the generation before stays good; 0s: it ends now; default: the policy's cap",
        optional: true,
        placeholder: "DURATION",
      },
      ...secretFileFlag,
    },
    aliases: outputAlias,
    positional: { kind: "tuple", parameters: [{ parse: String, brief: "token id", placeholder: "TOKEN" }] },
  },
  func: (flags: CommonFlags & { overlap?: number; secretFile?: string }, tokenId: string) =>
    onConnection(flags, (connection) =>
      deliver(connection, flags, () =>
        connection.service(IssuerService, "issuer").rotateToken({
          requestId: randomUUID(),
          tokenId,
          delivery: Delivery.SEALED, // whatever it was before: an answer must not hold the secret
          ...(flags.overlap !== undefined && { overlap: durationFromMs(flags.overlap) }),
        }),
      ),
    ),
});

const collect = buildCommand({
  docs: { brief: "Open the newest sealed secret of a token into a file" },
  parameters: {
    flags: { ...connectionFlags, secretFile: { ...secretFileFlag.secretFile, optional: false } },
    positional: { kind: "tuple", parameters: [{ parse: String, brief: "token id", placeholder: "TOKEN" }] },
  },
  func: (flags: ConnectionFlags & { secretFile: string }, tokenId: string) =>
    onConnection(flags, async (connection) => {
      await withSecretFile(flags.secretFile, (keep) => collectSecret(connection, tokenId, keep));
      say(`the secret is in ${flags.secretFile}`);
    }),
});

const show = buildCommand({
  docs: { brief: "Show a token" },
  parameters: {
    flags: { ...connectionFlags, ...outputFlag },
    aliases: outputAlias,
    positional: { kind: "tuple", parameters: [{ parse: String, brief: "token id", placeholder: "TOKEN" }] },
  },
  func: (flags: CommonFlags, tokenId: string) =>
    onConnection(flags, async (connection) => {
      const { token } = await connection.service(IssuerService, "issuer").getToken({ tokenId });
      if (!token) throw new Error("the issuer answered without a token");
      const { grant } = token;
      printOne(flags.output, {
        ...rowOf(token),
        resources: grant?.resources,
        audiences: grant?.audiences,
        purposes: grant?.purposes,
        dataCategories: grant?.dataCategories,
        policy: `${token.policy} ${token.policyVersion}`,
      });
    }),
});

const list = buildCommand({
  docs: { brief: "List the identity's tokens, or all for role security" },
  parameters: { flags: { ...connectionFlags, ...outputFlag }, aliases: outputAlias },
  func: (flags: CommonFlags) =>
    onConnection(flags, async (connection) => {
      const issuer = connection.service(IssuerService, "issuer");
      const tokens: Token[] = [];
      let pageToken = "";
      do {
        const page = await issuer.listTokens({ pageSize: 1_000, pageToken });
        tokens.push(...page.tokens);
        pageToken = page.nextPageToken;
      } while (pageToken);
      printRows(flags.output, tokens.map(rowOf), ["token", "subject", "state", "generation", "expires", "scopes"]);
    }),
});

export const token = buildRouteMap({
  docs: { brief: "Create, rotate, collect, list and show tokens" },
  routes: { create, rotate, collect, list, show },
});
