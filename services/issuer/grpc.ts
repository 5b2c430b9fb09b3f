import { createHash } from "node:crypto";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { Delivery } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import type { KeyRegistered, PolicyPublished } from "@curfew/contracts/gen/curfew/events/v1/tokens_pb.ts";
import {
  CreateTokenRequestSchema,
  IssuerService,
  PublishPolicyRequestSchema,
  RegisterKeyRequestSchema,
  RotateTokenRequestSchema,
} from "@curfew/contracts/gen/curfew/issuer/v1/issuer_pb.ts";
import type { Aggregates, Handled } from "@curfew/event-log/handle-command.ts";
import { commitId } from "@curfew/event-log/streams.ts";
import { InvalidKey } from "@curfew/keyring/hpke.ts";
import type { Keyring } from "@curfew/keyring/keyring.ts";
import { RpcError, type StatusByCode } from "@curfew/rpc/errors.ts";
import { type RequestKey, requestKeyOf } from "@curfew/rpc/request-key.ts";
import type { BoundService, CallContext, Handlers } from "@curfew/rpc/service-definition.ts";
import { bindService } from "@curfew/rpc/service-definition.ts";
import type { UsedRequests } from "@curfew/rpc/used-requests.ts";
import type { Random } from "@curfew/runtime/random.ts";
import { parseTokenId, tokenIdFrom } from "@curfew/token-format/token-id.ts";
import { type AnswerParts, invalid, issued, type Known, openPublications, openViews } from "./answers.ts";
import {
  type KeyState,
  keyStream,
  type PolicyState,
  type PublishPolicy,
  policyStream,
  type RegisterKey,
} from "./domain/records.ts";
import { earlier, type RejectionCode, type RequestRef } from "./domain/requests.ts";
import { rotatesAtMs, type TokenEvent, type TokenState } from "./domain/token-state.ts";
import { type TokenCommand, tokenStream } from "./domain.ts";
import { pageOf, pageSizeOf, pageTokenOf } from "./page.ts";
import { grantProblems, msOfDuration } from "./policy.ts";
import type { PolicyBook } from "./policy-book.ts";
import { parsePolicy } from "./policy-document.ts";
import { type MintedSecret, mint, provesKey, sealChallenge, sealedOf } from "./secrets.ts";

export interface IssuerAggregates {
  readonly tokens: Aggregates<TokenState, TokenCommand, TokenEvent>;
  readonly policies: Aggregates<PolicyState, PublishPolicy, PolicyPublished>;
  readonly keys: Aggregates<KeyState, RegisterKey, KeyRegistered>;
}

export interface IssuerHandlerParts extends AnswerParts {
  readonly aggregates: IssuerAggregates;
  readonly policyBook: PolicyBook;
  readonly usedRequests: UsedRequests;
  readonly keyring: Keyring;
  readonly random: Random;
  /** Whether the log was read up to where it ended when this replica started. */
  readonly isReady: () => boolean;
  /** Waits, for a moment, until `book` has what this replica has published. */
  readonly ownWritesRead: () => Promise<void>;
}

const rejections = {
  REQUEST_ID_REUSED: "INVALID_ARGUMENT",
  POLICY_REFUSED: "PERMISSION_DENIED",
  NO_KEY_REGISTERED: "FAILED_PRECONDITION",
  TOKEN_NOT_FOUND: "NOT_FOUND",
  TOKEN_EXPIRED: "FAILED_PRECONDITION",
  TOKEN_REVOKED: "FAILED_PRECONDITION",
  LINEAGE_ENDED: "FAILED_PRECONDITION",
  NO_SUCH_GENERATION: "FAILED_PRECONDITION",
} satisfies StatusByCode<RejectionCode>;

const refOf = ({ keyHex, requestHash }: RequestKey): RequestRef => ({ keyHex, hash: requestHash });

const openTokenAccess = (parts: IssuerHandlerParts) => {
  const { aggregates, keyring, random } = parts;
  const publication = openPublications(parts);
  const view = openViews(parts);

  /** The caller's own, or any for a person: the authorization table lets in role security alone. Others' are as if they were not. */
  const load = async (text: string, ctx: CallContext): Promise<Known> => {
    const tokenId = parseTokenId(text);
    const token = issued(tokenId ? await aggregates.tokens.load(tokenStream(tokenId)) : { status: "none" });
    return ctx.caller.kind === "person" || token.subject === ctx.caller.uri ? token : issued({ status: "none" });
  };
  const newSecret = async (ctx: CallContext, delivery: Delivery): Promise<MintedSecret> => {
    const key = delivery === Delivery.DIRECT ? undefined : await aggregates.keys.load(keyStream(ctx.caller.uri));
    return mint(keyring, random, key && key.version > 0 ? key : undefined);
  };
  const answer = async (handled: Handled<TokenState, TokenEvent>, secret: MintedSecret, request: RequestRef) => {
    const token = issued(handled.state);
    const shown = secret.shownFor(token.generation);
    const version = earlier(token.requests, request)?.version ?? token.version;
    return {
      token: view(token),
      ...(shown !== undefined && { secret: shown }),
      secretAlreadyShown: token.generation.delivery === Delivery.DIRECT && shown === undefined,
      ...(await publication(tokenStream(token.tokenId), version, handled.commit)),
    };
  };

  return { publication, view, load, newSecret, answer };
};

const commandHandlers = (parts: IssuerHandlerParts) => {
  const { aggregates, policyBook, book, usedRequests, clock } = parts;
  const { load, newSecret, answer } = openTokenAccess(parts);
  return {
    createToken: async (request, ctx) => {
      const { grant, delivery } = request;
      if (!grant) throw invalid("INVALID_GRANT", "a grant is needed");
      const problems = grantProblems(grant);
      if (problems.length > 0) throw invalid("INVALID_GRANT", "the grant is not well-formed", problems);
      const key = requestKeyOf(ctx, request.requestId, CreateTokenRequestSchema, request);
      const tokenId = tokenIdFrom(key.key);
      // Beside the policies.
      const minting = newSecret(ctx, delivery);
      minting.catch(() => undefined); // seen below
      const handled = await policyBook.judge(async (policies) => {
        const secret = await minting;
        return await aggregates.tokens.handle(
          tokenStream(tokenId),
          {
            type: "IssueToken",
            tokenId,
            subject: ctx.caller.uri,
            grant,
            delivery,
            ownThumbprint: ctx.peerThumbprint,
            policies,
            secret,
            request: refOf(key),
            nowMs: clock.now(),
          },
          { attach: secret.attach, isNew: true },
        );
      });
      return await answer(handled, await minting, refOf(key));
    },
    rotateToken: async (request, ctx) => {
      const { tokenId, generation } = await load(request.tokenId, ctx);
      const key = requestKeyOf(ctx, request.requestId, RotateTokenRequestSchema, request);
      await usedRequests.claim(key);
      const delivery = request.delivery === Delivery.UNSPECIFIED ? generation.delivery : request.delivery;
      const secret = await newSecret(ctx, delivery);
      const handled = await policyBook.judge((policies) =>
        aggregates.tokens.handle(
          tokenStream(tokenId),
          {
            type: "RotateToken",
            overlapMs: request.overlap && msOfDuration(request.overlap),
            delivery,
            policies,
            secret,
            revoked: book.get(tokenId)?.revokedMs !== undefined,
            actor: ctx.caller.uri,
            request: refOf(key),
            nowMs: clock.now(),
          },
          { attach: secret.attach },
        ),
      );
      return await answer(handled, secret, refOf(key));
    },
  } satisfies Partial<Handlers<typeof IssuerService>>;
};

const secretHandlers = (parts: IssuerHandlerParts) => {
  const { aggregates, outbox, book, clock } = parts;
  const { load, publication } = openTokenAccess(parts);
  return {
    collectSecret: async ({ tokenId, aboveGeneration }, ctx) => {
      const token = await load(tokenId, ctx);
      const { number, version, expiresMs } = token.generation;
      const ended =
        token.status === "expired" || clock.now() >= expiresMs || book.get(token.tokenId)?.revokedMs !== undefined;
      if (ended || number <= aboveGeneration) return {};
      // A confirmed secret is not there any more; nor is one that was shown.
      const sealed = sealedOf(await outbox.streams.commits.get(commitId(tokenStream(token.tokenId), version)));
      if (!sealed || token.generation.secret === "collected") return {};
      return {
        generation: number,
        sealed,
        expiresAt: timestampFromMs(expiresMs),
        rotatesAt: timestampFromMs(rotatesAtMs(token.generation)),
      };
    },
    confirmSecret: async (request, ctx) => {
      const token = await load(request.tokenId, ctx);
      const stream = tokenStream(token.tokenId);
      const { generation } = request;
      const handled = await aggregates.tokens.handle(stream, { type: "ConfirmSecret", generation });
      const after = issued(handled.state);
      if (after.generation.number === generation && after.generation.secret === "collected")
        await outbox.streams.commits.unset(commitId(stream, after.generation.version), "attached", "held");
      const { published } = await publication(stream, after.version, handled.commit);
      return { published };
    },
  } satisfies Partial<Handlers<typeof IssuerService>>;
};

const queryHandlers = (parts: IssuerHandlerParts) => {
  const { book, ownWritesRead } = parts;
  const { load, view } = openTokenAccess(parts);
  return {
    getToken: async ({ tokenId }, ctx) => ({ token: view(await load(tokenId, ctx)) }),
    listTokens: async ({ pageSize, pageToken }, ctx) => {
      await ownWritesRead();
      const subject = ctx.caller.kind === "person" ? undefined : ctx.caller.uri;
      const after = pageOf(pageToken, ctx.caller.uri);
      if (after === undefined)
        throw invalid("BAD_PAGE_TOKEN", "page_token is not one of this caller's lists: begin again without");
      const size = pageSizeOf(pageSize);
      const page = book.list(subject, after, size + 1);
      const shown = page.slice(0, size);
      return {
        tokens: shown.flatMap(({ state }) => (state.status === "none" ? [] : [view(state)])),
        nextPageToken: page.length > size ? pageTokenOf(shown.at(-1)?.tokenId ?? "", ctx.caller.uri) : "",
      };
    },
  } satisfies Partial<Handlers<typeof IssuerService>>;
};

const recordHandlers = (parts: IssuerHandlerParts) => {
  const { aggregates, keyring, usedRequests, clock } = parts;
  const publication = openPublications(parts);
  const keyProblem = (error: unknown) =>
    error instanceof InvalidKey ? invalid("INVALID_KEY", "public_key is not a usable X25519 key") : error;

  return {
    publishPolicy: async (request, ctx) => {
      const { policy, document } = request;
      const parsed = parsePolicy(document);
      if (!parsed.ok) throw invalid("INVALID_POLICY", "the policy has mistakes", parsed.problems);
      const key = requestKeyOf(ctx, request.requestId, PublishPolicyRequestSchema, request);
      await usedRequests.claim(key);
      const stream = policyStream(policy);
      const command: PublishPolicy = {
        type: "PublishPolicy",
        policy,
        document,
        actor: ctx.caller.uri,
        request: refOf(key),
      };
      const { state, commit } = await aggregates.policies.handle(stream, command);
      const version = earlier(state.requests, refOf(key))?.version ?? state.version;
      return { version, ...(await publication(stream, version, commit)) };
    },
    registerKey: async (request, ctx) => {
      const { publicKey, proof } = request;
      const subject = ctx.caller.uri;
      const keySha256 = createHash("sha256").update(publicKey).digest();
      if (proof.length === 0) {
        try {
          return { challenge: { ...(await sealChallenge(keyring, subject, publicKey, clock.now())), keySha256 } };
        } catch (error) {
          throw keyProblem(error);
        }
      }
      if (!provesKey(keyring, subject, publicKey, proof, clock.now()))
        throw invalid("WRONG_PROOF", "proof does not open the challenge, or came too late: begin again without");
      const asked = { ...request, proof: new Uint8Array() };
      const key = requestKeyOf(ctx, request.requestId, RegisterKeyRequestSchema, asked);
      const command: RegisterKey = { type: "RegisterKey", subject, publicKey, keySha256, request: refOf(key) };
      const { state, commit } = await aggregates.keys.handle(keyStream(subject), command);
      const version = earlier(state.requests, refOf(key))?.version ?? state.version;
      return { keySha256, ...(await publication(keyStream(subject), version, commit)) };
    },
  } satisfies Partial<Handlers<typeof IssuerService>>;
};

/** Until the log was read, nobody knows what was revoked: every method answers UNAVAILABLE. */
const whenReady = (
  handlers: Handlers<typeof IssuerService>,
  isReady: () => boolean,
): Handlers<typeof IssuerService> => {
  const guarded = Object.entries(handlers).map(([name, handler]) => [
    name,
    (request: never, ctx: CallContext) => {
      if (isReady()) return handler(request, ctx);
      const message = "still reading the log; try again in a moment";
      throw new RpcError({ status: "UNAVAILABLE", reason: "NOT_READY", message, retryDelayMs: 500 });
    },
  ]);
  return Object.fromEntries(guarded) as Handlers<typeof IssuerService>;
};

export const issuerService = (parts: IssuerHandlerParts): BoundService => {
  const handlers = {
    ...commandHandlers(parts),
    ...secretHandlers(parts),
    ...queryHandlers(parts),
    ...recordHandlers(parts),
  };
  return bindService(IssuerService, whenReady(handlers, parts.isReady), { rejections });
};
