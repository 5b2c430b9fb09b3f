import { afterEach, beforeEach, expect } from "vitest";
import type { AccessRequest } from "../access-request.ts";
import { Denied } from "../denied.ts";
import { type LocalVerifier, type LocalVerifierOptions, openLocalVerifier } from "../local-verifier.ts";
import type { Use } from "../open-use.ts";
import {
  type FakeRevocation,
  type FakeSuite,
  openFakeRevocation,
  openFakeSuite,
  openJumpyClock,
} from "./fake-suite.ts";
import { type FakeToken, type FakeVerifier, openFakeVerifier } from "./fake-verifier.ts";

/** An SDK, and the fake suite that it talks to: new for each test of the file that imports this. */

export let suite: FakeSuite;
export let revocation: FakeRevocation;
export let verifier: FakeVerifier;
export let time: ReturnType<typeof openJumpyClock>;
export let addresses: { verifier: string; revocation: string };
export let stopVerifier: () => Promise<void>;

beforeEach(async () => {
  suite = await openFakeSuite();
  time = openJumpyClock();
  revocation = openFakeRevocation();
  verifier = openFakeVerifier(time.clock);
  const watched = await suite.serve("revocation", revocation.service());
  const asked = await suite.serve("verifier", verifier.service());
  stopVerifier = asked.stop;
  addresses = { verifier: asked.address, revocation: watched.address };
});
afterEach(() => suite.close());

export const until = (what: () => unknown) => expect.poll(what, { timeout: 10_000, interval: 10 });

export const openSdk = async (options: Partial<LocalVerifierOptions> = {}): Promise<LocalVerifier> => {
  const { caPem, trustDomain } = suite;
  const sdk = openLocalVerifier({
    verifier: [addresses.verifier],
    revocation: [addresses.revocation],
    identity: await suite.identity("/workload/crm"),
    caPem,
    trustDomain,
    clock: time.clock,
    ...options,
  });
  suite.closers.push(() => sdk.close());
  return sdk;
};

export const openLiveSdk = async (options: Partial<LocalVerifierOptions> = {}): Promise<LocalVerifier> => {
  const sdk = await openSdk(options);
  await sdk.whenLive(AbortSignal.timeout(10_000));
  return sdk;
};

export const request: AccessRequest = {
  scope: "invoices:read",
  resource: "invoices/7",
  purpose: "billing",
  dataCategories: ["contact"],
  controller: "acme",
  maxPeople: 1,
  maxRecords: 10,
};
export const idOf = (use: Use) => use.useId;
export const read = (sdk: LocalVerifier, token: FakeToken, more: Partial<AccessRequest> = {}) =>
  sdk.authorize(token.secret, { ...request, ...more }, idOf);
/** The reason why, having checked that the access did not run. */
export const denial = async (sdk: LocalVerifier, token: FakeToken, more: Partial<AccessRequest> = {}, options = {}) => {
  const denied = await sdk
    .authorize(token.secret, { ...request, ...more }, () => expect.unreachable("the access ran"), options)
    .then(
      () => expect.unreachable("it was allowed"),
      (error: unknown) => error,
    );
  expect(denied).toBeInstanceOf(Denied);
  return (denied as Denied).reason;
};
/** In the cache from here on. */
export const seen = async (sdk: LocalVerifier, options: Partial<FakeToken> = {}): Promise<FakeToken> => {
  const token = verifier.token(options);
  await read(sdk, token);
  const { asked } = verifier;
  await read(sdk, token);
  expect(verifier.asked).toBe(asked);
  return token;
};
export const revokedPush = ({ tokenId }: { tokenId: string }) => ({
  tokenId,
  revocationEventId: `revocation of ${tokenId}`,
});
