import { create, createRegistry, toBinary } from "@bufbuild/protobuf";
import { AnySchema, anyPack } from "@bufbuild/protobuf/wkt";
import { VerifyTokenRequestSchema } from "@curfew/contracts/gen/curfew/verifier/v1/verifier_pb.ts";
import { expect, test } from "vitest";
import { redact } from "./redact.ts";
import { EchoMessageSchema } from "./testing/echo.ts";

const hidden = "s3cr3t";
const leaf = () => create(EchoMessageSchema, { text: "shown", password: hidden });

test("secret fields are masked at any depth, in lists, maps and lists of their own; others stay", () => {
  const message = create(EchoMessageSchema, {
    text: "top",
    passwords: [hidden, hidden],
    nested: { nested: leaf(), count: 9007199254740993n },
    many: [leaf(), { text: "plain" }],
    byName: { one: leaf() },
  });
  const safe = redact(EchoMessageSchema, message);
  const shown = { text: "shown", password: "[secret]" };
  expect(safe).toEqual({
    text: "top",
    passwords: "[secret]",
    nested: { nested: shown, count: "9007199254740993" },
    many: [shown, { text: "plain" }],
    byName: { one: shown },
  });
  expect(JSON.stringify(safe)).not.toContain(hidden);
  expect(message.passwords).toEqual([hidden, hidden]);
});

test("an Any is opened and redacted when its type is known, and masked whole when not", () => {
  const message = create(EchoMessageSchema, { any: anyPack(EchoMessageSchema, leaf()) });
  const type = "type.googleapis.com/curfew.testing.v1.EchoMessage";
  const known = redact(EchoMessageSchema, message, createRegistry(EchoMessageSchema));
  expect(known).toEqual({ any: { "@type": type, text: "shown", password: "[secret]" } });
  expect(redact(EchoMessageSchema, message)).toEqual({ any: { "@type": type, value: "[secret]" } });
});

test("an Any whose bytes are not its type's is masked whole", () => {
  const any = create(AnySchema, {
    typeUrl: `type.googleapis.com/${EchoMessageSchema.typeName}`,
    value: Uint8Array.of(255),
  });
  const safe = redact(EchoMessageSchema, create(EchoMessageSchema, { any }), createRegistry(EchoMessageSchema));
  expect(safe).toEqual({ any: { "@type": any.typeUrl, value: "[secret]" } });
});

test("nesting without end is cut", () => {
  let message = leaf();
  for (let i = 0; i < 50; i += 1) message = create(EchoMessageSchema, { nested: message });
  expect(JSON.stringify(redact(EchoMessageSchema, message))).not.toContain("shown");
  expect(toBinary(EchoMessageSchema, message).length).toBeGreaterThan(50);
});

test("the secret of a real request is masked in each form it can be presented in", () => {
  const bySecret = create(VerifyTokenRequestSchema, { credential: { case: "secret", value: hidden } });
  expect(redact(VerifyTokenRequestSchema, bySecret)).toEqual({ secret: "[secret]" });
  const byDigest = create(VerifyTokenRequestSchema, {
    credential: { case: "secretSha256", value: new Uint8Array(32) },
  });
  expect(redact(VerifyTokenRequestSchema, byDigest)).toEqual({ secretSha256: "[secret]" });
});
