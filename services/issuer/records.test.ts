import { specFor } from "@curfew/decider/spec.ts";
import { expect, test } from "vitest";
import {
  identityDecider,
  keyDecider,
  keyStream,
  type PublishPolicy,
  policyDecider,
  type RegisterKey,
} from "./domain/records.ts";

const actor = "spiffe://test.example/person/ada";
const publish = (document: string, key: string): PublishPolicy => ({
  type: "PublishPolicy",
  policy: "tokens",
  document,
  actor,
  request: { keyHex: key, hash: document },
});
const register = (byte: number, key: string): RegisterKey => ({
  type: "RegisterKey",
  subject: "spiffe://test.example/workload/billing",
  publicKey: Buffer.alloc(32, byte),
  keySha256: Buffer.alloc(32, byte + 100),
  request: { keyHex: key, hash: String(byte) },
});

test("a policy's versions count from 1; the document that is in force already makes none", () => {
  const policies = specFor(policyDecider);
  const [first] = policyDecider.decide(policyDecider.initial, publish("rules: []", "k1"));
  expect(first).toMatchObject({ policy: "tokens", version: 1, publishedBy: { spiffeId: actor }, requestKey: "k1" });
  if (!first) return;
  policies([first]).when(publish("rules: []", "k2")).then([]);
  policies([first]).when(publish("rules: []", "k1")).then([]);
  policies([first])
    .when({ ...publish("rules: [] # other", "k1") })
    .thenRejected("REQUEST_ID_REUSED");
  policies([first])
    .when(publish("rules: [] # other", "k2"))
    .thenEvents(([event]) => {
      expect(event).toMatchObject({ version: 2 });
    });
});

test("a stored document that cannot be read any more allows nothing", () => {
  const [event] = policyDecider.decide(policyDecider.initial, publish("rules: [{ field: of tomorrow }]", "k1"));
  const state = event && policyDecider.evolve(policyDecider.initial, event);
  expect(state?.inForce).toEqual({ name: "tokens", version: 1, rules: [] });
});

test("a key is registered once; another takes its place", () => {
  const keys = specFor(keyDecider);
  const [first] = keyDecider.decide(keyDecider.initial, register(1, "k1"));
  if (!first) throw new Error("no event");
  keys([first]).when(register(1, "k1")).then([]);
  keys([first]).when(register(1, "k2")).then([]);
  keys([first]).when(register(2, "k1")).thenRejected("REQUEST_ID_REUSED");
  keys([first])
    .when(register(2, "k2"))
    .thenEvents(([event]) => {
      expect(event).toMatchObject({ publicKey: Buffer.alloc(32, 2) });
    });
  expect(keyStream("spiffe://test.example/workload/billing")).toMatch(/^keys\/[0-9a-f]{64}$/);
});

test("an identity is recorded once", () => {
  const record = {
    type: "RecordIdentity" as const,
    spiffeId: "spiffe://test.example/workload/billing",
    thumbprint: "t",
    notAfterMs: 2_000,
    createdAtMs: 1_000,
  };
  const [event] = identityDecider.decide(identityDecider.initial, record);
  expect(event).toMatchObject({ spiffeId: record.spiffeId, certificateThumbprint: "t" });
  if (event) specFor(identityDecider)([event]).when(record).then([]);
});
