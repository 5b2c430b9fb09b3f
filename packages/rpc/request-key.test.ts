import { create } from "@bufbuild/protobuf";
import {
  CreateTokenRequestSchema,
  type RegisterKeyRequest,
  RegisterKeyRequestSchema,
} from "@curfew/contracts/gen/curfew/issuer/v1/issuer_pb.ts";
import { VerifyTokenRequestSchema } from "@curfew/contracts/gen/curfew/verifier/v1/verifier_pb.ts";
import { describe, expect, test } from "vitest";
import type { Caller } from "./identity.ts";
import { requestKeyOf } from "./request-key.ts";
import { EchoMessageSchema } from "./testing/echo.ts";

const caller = (name: string): Caller => ({ kind: "workload", name, uri: `spiffe://t/workload/${name}` });
const ctx = { caller: caller("billing"), method: "a.B/C" };
const id = "018f0000-0000-7000-8000-00000000000a";
const asked = (resource: string) =>
  create(CreateTokenRequestSchema, { requestId: id, grant: { scopes: ["invoices:read"], resources: [resource] } });
const keyOf = (context = ctx, requestId = id, request = asked("a")) =>
  requestKeyOf(context, requestId, CreateTokenRequestSchema, request);

describe("the key", () => {
  test("is the same for the same caller, method and id, whatever was asked", () => {
    expect(keyOf()).toEqual(keyOf());
    expect(keyOf().key).toHaveLength(32);
    expect(keyOf().keyHex).toBe(Buffer.from(keyOf().key).toString("hex"));
    expect(keyOf(ctx, id, asked("b")).keyHex).toBe(keyOf().keyHex);
    expect(keyOf(ctx, id.toUpperCase()).keyHex).toBe(keyOf().keyHex);
  });

  test("is another's for another caller, method or id, also where the parts run together alike", () => {
    const keys = [
      keyOf(),
      keyOf({ ...ctx, caller: caller("billing2") }),
      keyOf({ ...ctx, method: "a.B/D" }),
      keyOf(ctx, id.replace("a", "b")),
      keyOf({ ...ctx, method: "a.B/C0" }, id.slice(1)),
    ];
    expect(new Set(keys.map((k) => k.keyHex)).size).toBe(keys.length);
  });
});

describe("the hash of the request", () => {
  test("tells another request under the same id, and leaves the id out", () => {
    expect(keyOf(ctx, id, asked("b")).requestHash).not.toBe(keyOf().requestHash);
    expect(keyOf(ctx, id, { ...asked("a"), requestId: "x" }).requestHash).toBe(keyOf().requestHash);
  });

  test("of a request that holds no secret leaves it as it was", () => {
    const request = asked("a");
    keyOf(ctx, id, request);
    expect(request).toEqual(asked("a"));
  });

  test("counts secrets without the request being changed, at any depth and within a oneof", () => {
    const register = (proof: string) =>
      create(RegisterKeyRequestSchema, { publicKey: new Uint8Array(32), proof: Buffer.from(proof) });
    const hashOf = (request: RegisterKeyRequest) =>
      requestKeyOf(ctx, id, RegisterKeyRequestSchema, request).requestHash;
    expect(hashOf(register("one"))).not.toBe(hashOf(register("two")));
    const request = register("one");
    hashOf(request);
    expect(request).toEqual(register("one"));

    const verify = (value: string) =>
      requestKeyOf(
        ctx,
        id,
        VerifyTokenRequestSchema,
        create(VerifyTokenRequestSchema, { credential: { case: "secret", value } }),
      ).requestHash;
    expect(verify("one")).not.toBe(verify("two"));

    const nested = (password: string) =>
      requestKeyOf(
        ctx,
        id,
        EchoMessageSchema,
        create(EchoMessageSchema, { nested: { many: [{ password }] }, passwords: [password] }),
      ).requestHash;
    expect(nested("one")).toBe(nested("one"));
    expect(nested("one")).not.toBe(nested("two"));
  });
});
