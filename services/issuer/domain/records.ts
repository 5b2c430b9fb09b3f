import { createHash } from "node:crypto";
import { create } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import {
  type IdentityCreated,
  IdentityCreatedSchema,
  type KeyRegistered,
  KeyRegisteredSchema,
  type PolicyPublished,
  PolicyPublishedSchema,
} from "@curfew/contracts/gen/curfew/events/v1/tokens_pb.ts";
import type { Decider } from "@curfew/decider/decider.ts";
import type { Policy } from "../policy.ts";
import { parsePolicy } from "../policy-document.ts";
import { earlier, type RequestRef, remember, type SeenRequest } from "./requests.ts";

/** What the issuer keeps besides tokens: policies, the workloads' keys, the identities that were made. */

export interface PolicyState {
  /** 0: never published. */
  readonly version: number;
  readonly document: string;
  readonly inForce: Policy | undefined;
  readonly requests: readonly SeenRequest[];
}

export interface PublishPolicy {
  readonly type: "PublishPolicy";
  readonly policy: string;
  /** Well-formed: `parsePolicy` found no mistake. */
  readonly document: string;
  /** SPIFFE ID. */
  readonly actor: string;
  readonly request: RequestRef;
}

export const policyStream = (policy: string) => `policies/${policy}`;

export const policyDecider: Decider<PolicyState, PublishPolicy, PolicyPublished> = {
  initial: { version: 0, document: "", inForce: undefined, requests: [] },
  decide(state, { policy, document, actor, request }) {
    if (earlier(state.requests, request)) return [];
    if (state.version > 0 && state.document === document) return [];
    return [
      create(PolicyPublishedSchema, {
        policy,
        version: state.version + 1,
        document,
        publishedBy: { spiffeId: actor },
        requestKey: request.keyHex,
        requestHash: request.hash,
      }),
    ];
  },
  evolve(state, event) {
    const parsed = parsePolicy(event.document);
    return {
      version: event.version,
      document: event.document,
      // A document that an older program took and we do not understand allows nothing.
      inForce: { name: event.policy, version: event.version, rules: parsed.ok ? parsed.rules : [] },
      requests: remember(state.requests, event, event.version),
    };
  },
};

export interface KeyState {
  /** Commits in the stream; 0: no key is registered. */
  readonly version: number;
  readonly publicKey: Uint8Array;
  readonly keySha256: Uint8Array;
  readonly requests: readonly SeenRequest[];
}

/** The subject has proved that it holds the private key. */
export interface RegisterKey {
  readonly type: "RegisterKey";
  readonly subject: string;
  readonly publicKey: Uint8Array;
  readonly keySha256: Uint8Array;
  readonly request: RequestRef;
}

/** By the hash: a stream's id is opaque. */
export const keyStream = (subject: string) => `keys/${createHash("sha256").update(subject).digest("hex")}`;

export const keyDecider: Decider<KeyState, RegisterKey, KeyRegistered> = {
  initial: { version: 0, publicKey: new Uint8Array(), keySha256: new Uint8Array(), requests: [] },
  decide(state, { subject, publicKey, keySha256, request }) {
    if (earlier(state.requests, request)) return [];
    if (Buffer.compare(state.publicKey, publicKey) === 0) return [];
    const requestOf = { requestKey: request.keyHex, requestHash: request.hash };
    return [create(KeyRegisteredSchema, { subject, publicKey, keySha256, ...requestOf })];
  },
  evolve: ({ version, requests }, event) => ({
    version: version + 1,
    publicKey: event.publicKey,
    keySha256: event.keySha256,
    requests: remember(requests, event, version + 1),
  }),
};

export interface IdentityState {
  readonly recorded: boolean;
}

export interface RecordIdentity {
  readonly type: "RecordIdentity";
  readonly spiffeId: string;
  /** SHA-256 of the DER certificate, base64url. */
  readonly thumbprint: string;
  readonly notAfterMs: number;
  readonly createdAtMs: number;
}

export const identityStream = (thumbprint: string) => `identities/${thumbprint}`;

export const identityDecider: Decider<IdentityState, RecordIdentity, IdentityCreated> = {
  initial: { recorded: false },
  decide: ({ recorded }, { spiffeId, thumbprint, notAfterMs, createdAtMs }) =>
    recorded
      ? []
      : [
          create(IdentityCreatedSchema, {
            spiffeId,
            certificateThumbprint: thumbprint,
            notAfter: timestampFromMs(notAfterMs),
            createdAt: timestampFromMs(createdAtMs),
          }),
        ],
  evolve: () => ({ recorded: true }),
};
