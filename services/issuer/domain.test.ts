import { create } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { Delivery, DigestSchema, GrantSchema } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import {
  SecretCollectedSchema,
  SecretUncollectedSchema,
  TokenExpiredSchema,
  type TokenIssued,
  type TokenRotated,
} from "@curfew/contracts/gen/curfew/events/v1/tokens_pb.ts";
import { fold, Rejection } from "@curfew/decider/decider.ts";
import { specFor } from "@curfew/decider/spec.ts";
import { describe, expect, test } from "vitest";
import type { RejectionCode } from "./domain/requests.ts";
import type { TokenEvent } from "./domain/token-state.ts";
import { type IssueToken, type RotateToken, type TokenCommand, tokenDecider } from "./domain.ts";
import type { Policy } from "./policy.ts";
import { parsePolicy } from "./policy-document.ts";

const hourMs = 3_600_000;
const start = Date.UTC(2026, 0, 1);
const subject = "spiffe://test.example/workload/billing";
const actor = subject;
const tokenId = "tok_00000000-0000-8000-8000-000000000001";

const policyOf = (fields: string, version = 1): Policy => {
  const parsed = parsePolicy(`
rules:
  - name: read-invoices
    subjects: [workload/billing]
    scopes: [invoices:read]
    resources: [invoices/*]
    audiences: [invoices]
    purposes: [billing]
    ${fields}
`);
  if (!parsed.ok) throw new Error(JSON.stringify(parsed.problems));
  return { name: "tokens", version, rules: parsed.rules };
};
const policy = policyOf("delivery: [sealed, direct]");

let minted = 0;
const secret = () => {
  minted += 1;
  return {
    digest: create(DigestSchema, { pepperId: "p1", value: Buffer.alloc(32, minted) }),
    keySha256: Buffer.alloc(32, 7),
  };
};
const issue = (more: Partial<IssueToken> = {}): IssueToken => ({
  type: "IssueToken",
  tokenId,
  subject,
  grant: create(GrantSchema, {
    scopes: ["invoices:read"],
    resources: ["invoices/*"],
    audiences: ["invoices"],
    purposes: ["billing"],
  }),
  delivery: Delivery.SEALED,
  ownThumbprint: "own",
  policies: [policy],
  secret: secret(),
  request: { keyHex: "k1", hash: "h1" },
  nowMs: start,
  ...more,
});
const rotate = (more: Partial<RotateToken> = {}): RotateToken => ({
  type: "RotateToken",
  overlapMs: undefined,
  delivery: Delivery.UNSPECIFIED,
  policies: [policy],
  secret: secret(),
  revoked: false,
  actor,
  request: { keyHex: "k2", hash: "h2" },
  nowMs: start + 1_000,
  ...more,
});
const byTheClock = (nowMs: number, more: Partial<RotateToken> = {}) => rotate({ request: undefined, nowMs, ...more });

const decide = (given: readonly TokenEvent[], command: TokenCommand) =>
  tokenDecider.decide(fold(tokenDecider, given), command);
const issuedBy = (command: IssueToken) => decide([], command)[0] as TokenIssued;
const rotatedBy = (given: readonly TokenEvent[], command: RotateToken) => decide(given, command)[0] as TokenRotated;
const ms = (at: TokenIssued["lineageExpiresAt"]) => (at ? Number(at.seconds) * 1_000 + at.nanos / 1e6 : 0);

const sealed = issuedBy(issue());
const direct = issuedBy(issue({ delivery: Delivery.DIRECT }));
const collected = create(SecretCollectedSchema, { tokenId, generation: 1 });
const uncollected = create(SecretUncollectedSchema, {
  tokenId,
  generation: 1,
  expiresAt: timestampFromMs(start + hourMs),
});
const expired = create(TokenExpiredSchema, { tokenId, expiredAt: timestampFromMs(start + hourMs) });
const given = specFor(tokenDecider);

describe("issuing", () => {
  test("takes everything from the rule that allows it, and names it", () => {
    expect(sealed).toMatchObject({
      tokenId,
      subject,
      policy: "tokens",
      policyVersion: 1,
      policyRule: "read-invoices",
      grant: { certificateThumbprint: "own", ttl: { seconds: 3_600n } },
      generation: { number: 1, delivery: Delivery.SEALED, keySha256: Buffer.alloc(32, 7) },
      issuedBy: { spiffeId: subject },
      requestKey: "k1",
      requestHash: "h1",
    });
    expect(ms(sealed.generation?.expiresAt)).toBe(start + hourMs);
    expect(ms(sealed.lineageExpiresAt)).toBe(start + 30 * 24 * hourMs);
    expect(direct.generation?.keySha256).toHaveLength(0);
  });

  test("twice by the same request changes nothing, even when policy has changed and the token expired", () => {
    given([sealed])
      .when(issue({ policies: [] }))
      .then([]);
    given([sealed, expired])
      .when(issue({ policies: [] }))
      .then([]);
  });

  test("never outlives the lineage", () => {
    const short = policyOf("ttl_max: 2h\n    lineage_max: 90m");
    const event = issuedBy(issue({ policies: [short] }));
    expect(ms(event.generation?.expiresAt)).toBe(start + 1.5 * hourMs);
    expect(ms(event.lineageExpiresAt)).toBe(start + 1.5 * hourMs);
  });
});

describe("rotating on request", () => {
  test("makes the next generation by the policy of today, the one before ending with the overlap", () => {
    const event = rotatedBy([sealed], rotate({ overlapMs: 60_000, policies: [{ ...policy, version: 5 }] }));
    expect(event).toMatchObject({
      tokenId,
      subject,
      generation: { number: 2, delivery: Delivery.SEALED },
      policyVersion: 5,
      rotatedBy: { spiffeId: actor },
      requestKey: "k2",
    });
    expect(ms(event.previousEndsAt)).toBe(start + 61_000);
    expect(ms(event.generation?.expiresAt)).toBe(start + 1_000 + hourMs);
  });

  test.each([
    ["without an overlap given: the rule's longest", undefined, start + 1_000, start + 1_000 + 600_000],
    ["with overlap 0: at once", 0, start + 1_000, start + 1_000],
    ["never past its own end", 600_000, start + hourMs - 1_000, start + hourMs],
  ])("ends the generation before %s", (_, overlapMs, nowMs, endsMs) => {
    expect(ms(rotatedBy([sealed], rotate({ overlapMs, nowMs })).previousEndsAt)).toBe(endsMs);
  });

  test("gives no generation a life past the lineage's end, which a stricter policy brings nearer", () => {
    const first = issuedBy(issue({ policies: [policyOf("lineage_max: 70m")] }));
    const event = rotatedBy([first], rotate({ nowMs: start + 30 * 60_000 }));
    expect(ms(event.generation?.expiresAt)).toBe(start + 70 * 60_000);
    const stricter = rotatedBy(
      [sealed],
      rotate({ nowMs: start + 30 * 60_000, policies: [policyOf("lineage_max: 40m")] }),
    );
    expect(ms(stricter.generation?.expiresAt)).toBe(start + 40 * 60_000);
  });

  test("twice by the same request changes nothing, also when the token has since expired", () => {
    const event = rotatedBy([sealed], rotate());
    given([sealed, event])
      .when(rotate({ nowMs: start + 2_000 }))
      .then([]);
    given([sealed, event, expired])
      .when(rotate({ nowMs: start + 9 * hourMs }))
      .then([]);
  });

  test("keeps the way of delivery unless told otherwise", () => {
    expect(rotatedBy([direct], rotate()).generation?.delivery).toBe(Delivery.DIRECT);
    expect(rotatedBy([direct], rotate({ delivery: Delivery.SEALED })).generation?.delivery).toBe(Delivery.SEALED);
  });
});

describe("by the clock", () => {
  const twoThirds = start + (2 / 3) * hourMs;

  test("a collected generation is rotated at two thirds of its life, not before, and the next in its turn", () => {
    given([sealed, collected])
      .when(byTheClock(twoThirds - 1))
      .then([]);
    const second = rotatedBy([sealed, collected], byTheClock(twoThirds));
    expect(second).toMatchObject({ generation: { number: 2 }, requestKey: "" });
    given([sealed, collected, second])
      .when(byTheClock(twoThirds + hourMs))
      .then([]);
    const again = create(SecretCollectedSchema, { tokenId, generation: 2 });
    expect(rotatedBy([sealed, collected, second, again], byTheClock(twoThirds + (2 / 3) * hourMs))).toMatchObject({
      generation: { number: 3 },
    });
  });

  test("what was never collected, is delivered directly, cannot live longer or has expired is not rotated", () => {
    given([sealed]).when(byTheClock(twoThirds)).then([]);
    given([direct]).when(byTheClock(twoThirds)).then([]);
    given([sealed, collected, expired]).when(byTheClock(twoThirds)).then([]);
    const last = issuedBy(issue({ policies: [policyOf("lineage_max: 1h")] }));
    given([last, collected]).when(byTheClock(twoThirds)).then([]);
  });

  test("an uncollected secret is reported once, at nine tenths of its life", () => {
    const report = (nowMs: number) => ({ type: "ReportUncollected" as const, nowMs });
    given([sealed])
      .when(report(start + 0.9 * hourMs - 1))
      .then([]);
    given([sealed])
      .when(report(start + 0.9 * hourMs))
      .then([uncollected]);
    given([sealed, uncollected])
      .when(report(start + hourMs))
      .then([]);
    given([sealed, collected])
      .when(report(start + hourMs))
      .then([]);
    given([direct])
      .when(report(start + hourMs))
      .then([]);
  });

  test("a token expires once, when its last generation has ended, with its last use", () => {
    const expire = (nowMs: number, lastUsedMs?: number) => ({ type: "ExpireToken" as const, nowMs, lastUsedMs });
    given([sealed])
      .when(expire(start + hourMs - 1))
      .then([]);
    given([sealed])
      .when(expire(start + hourMs))
      .then([expired]);
    given([sealed])
      .when(expire(start + hourMs, start + 5))
      .thenEvents(([event]) => {
        expect(event).toMatchObject({ lastUsedAt: timestampFromMs(start + 5) });
      });
    given([sealed, expired])
      .when(expire(start + 2 * hourMs))
      .then([]);
    const second = rotatedBy([sealed], rotate({ nowMs: start + 60_000 }));
    given([sealed, second])
      .when(expire(start + hourMs))
      .then([]);
  });
});

describe("confirming", () => {
  const confirm = (generation: number) => ({ type: "ConfirmSecret" as const, generation });

  test("is recorded once, for the newest generation, also after it was reported", () => {
    given([sealed]).when(confirm(1)).then([collected]);
    given([sealed, uncollected]).when(confirm(1)).then([collected]);
    given([sealed, collected]).when(confirm(1)).then([]);
    given([sealed, rotatedBy([sealed], rotate())])
      .when(confirm(1))
      .then([]);
    given([sealed, expired]).when(confirm(1)).then([]);
    given([direct]).when(confirm(1)).then([]);
  });
});

describe("every rejection", () => {
  const other = { keyHex: "k1", hash: "another" };
  const cases = {
    REQUEST_ID_REUSED: [
      [[sealed], issue({ request: other })],
      [[sealed], issue({ request: { keyHex: "k9", hash: "h1" } })],
      [[sealed, rotatedBy([sealed], rotate())], rotate({ request: { keyHex: "k2", hash: "another" } })],
      [[sealed], rotate({ request: other })],
    ],
    POLICY_REFUSED: [
      [[], issue({ policies: [] })],
      [[], issue({ subject: "spiffe://test.example/workload/other" })],
      [[sealed], rotate({ policies: [] })],
      [[sealed], rotate({ overlapMs: 600_001 })],
      [[direct], rotate({ policies: [policyOf("")] })],
      [[sealed, collected], byTheClock(start + (2 / 3) * hourMs, { policies: [] })],
    ],
    NO_KEY_REGISTERED: [
      [[], issue({ secret: { ...secret(), keySha256: undefined } })],
      [[sealed], rotate({ secret: { ...secret(), keySha256: undefined } })],
    ],
    TOKEN_NOT_FOUND: [
      [[], rotate()],
      [[], { type: "ConfirmSecret", generation: 1 }],
    ],
    TOKEN_EXPIRED: [
      [[sealed], rotate({ nowMs: start + hourMs })],
      [[sealed, expired], rotate()],
    ],
    TOKEN_REVOKED: [
      [[sealed], rotate({ revoked: true })],
      [[sealed, collected], byTheClock(start + (2 / 3) * hourMs, { revoked: true })],
    ],
    LINEAGE_ENDED: [[[sealed], rotate({ nowMs: start + 1_000, policies: [policyOf("lineage_max: 1s")] })]],
    NO_SUCH_GENERATION: [[[sealed], { type: "ConfirmSecret", generation: 2 }]],
  } satisfies Record<RejectionCode, [readonly TokenEvent[], TokenCommand][]>;

  test.each(Object.entries(cases))("%s", (code, examples) => {
    for (const [events, command] of examples as [readonly TokenEvent[], TokenCommand][])
      given(events).when(command).thenRejected(code);
  });

  test("of policy names the rule, and says what it does not allow", () => {
    let caught: unknown;
    try {
      decide([], issue({ delivery: Delivery.DIRECT, policies: [policyOf("")] }));
    } catch (error) {
      caught = error;
    }
    expect(caught).toBeInstanceOf(Rejection);
    expect((caught as Rejection).message).toBe(
      "rule read-invoices of policy tokens (version 1): delivery direct is not allowed",
    );
    expect((caught as Rejection).details).toMatchObject({ policy: "tokens", version: "1", rule: "read-invoices" });
  });
});

test("of a hundred and one requests the oldest is forgotten, the others are known", () => {
  const events: TokenEvent[] = [sealed];
  for (let i = 0; i < 100; i += 1)
    events.push(rotatedBy(events, rotate({ request: { keyHex: `r${i}`, hash: "h" }, nowMs: start + i })));
  given(events)
    .when(rotate({ request: { keyHex: "r0", hash: "h" } }))
    .then([]);
  const [forgotten] = decide(events, rotate({ request: { keyHex: "k1", hash: "h1" } }));
  expect(forgotten).toMatchObject({ generation: { number: 102 } });
});
