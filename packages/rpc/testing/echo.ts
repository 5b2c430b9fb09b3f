import { createFileRegistry, createRegistry, fromJson, type JsonValue, type Message } from "@bufbuild/protobuf";
import type { GenMessage, GenService } from "@bufbuild/protobuf/codegenv2";
import { type Any, FileDescriptorProtoSchema, file_google_protobuf_any } from "@bufbuild/protobuf/wkt";
import { field, file_buf_validate_validate } from "@bufbuild/protovalidate/gen/buf/validate/validate_pb.js";
import { file_curfew_options_v1_options, secret } from "@curfew/contracts/gen/curfew/options/v1/options_pb.ts";

/** A message and a service of all four kinds of method, with rules and secrets, described here so that no product proto is a test's. */
export type EchoMessage = Message<"curfew.testing.v1.EchoMessage"> & {
  text: string;
  password: string;
  nested?: EchoMessage;
  many: EchoMessage[];
  byName: { [key: string]: EchoMessage };
  any?: Any;
  passwords: string[];
  count: bigint;
};

const messageName = "curfew.testing.v1.EchoMessage";
const secretOption = { "[curfew.options.v1.secret]": true };
const ofMessage = (name: string, number: number, label = "LABEL_OPTIONAL", typeName = messageName) => ({
  name,
  jsonName: name.replace(/_(.)/g, (_, letter: string) => letter.toUpperCase()),
  number,
  label,
  type: "TYPE_MESSAGE",
  typeName: `.${typeName}`,
});
const scalar = (name: string, number: number, type: string, options: JsonValue = {}, label = "LABEL_OPTIONAL") => ({
  name,
  jsonName: name.replace(/_(.)/g, (_, letter: string) => letter.toUpperCase()),
  number,
  label,
  type,
  options,
});
const method = (name: string, clientStreaming: boolean, serverStreaming: boolean, idempotencyLevel?: string) => ({
  name,
  inputType: `.${messageName}`,
  outputType: `.${messageName}`,
  clientStreaming,
  serverStreaming,
  options: idempotencyLevel ? { idempotencyLevel } : {},
});

const file = fromJson(
  FileDescriptorProtoSchema,
  {
    name: "curfew/testing/v1/echo.proto",
    package: "curfew.testing.v1",
    syntax: "proto3",
    dependency: ["buf/validate/validate.proto", "curfew/options/v1/options.proto", "google/protobuf/any.proto"],
    messageType: [
      {
        name: "EchoMessage",
        field: [
          scalar("text", 1, "TYPE_STRING", {
            "[buf.validate.field]": { string: { maxLen: "2000000", notContains: "!" } },
          }),
          scalar("password", 2, "TYPE_STRING", secretOption),
          ofMessage("nested", 3),
          ofMessage("many", 4, "LABEL_REPEATED"),
          ofMessage("by_name", 5, "LABEL_REPEATED", `${messageName}.ByNameEntry`),
          ofMessage("any", 6, "LABEL_OPTIONAL", "google.protobuf.Any"),
          scalar("passwords", 7, "TYPE_STRING", secretOption, "LABEL_REPEATED"),
          scalar("count", 8, "TYPE_INT64"),
        ],
        nestedType: [
          {
            name: "ByNameEntry",
            field: [scalar("key", 1, "TYPE_STRING"), ofMessage("value", 2)],
            options: { mapEntry: true },
          },
        ],
      },
    ],
    service: [
      {
        name: "EchoService",
        method: [
          method("Echo", false, false),
          method("EchoAgain", false, false, "IDEMPOTENT"),
          method("Count", false, true),
          method("Join", true, false),
          method("Talk", true, true),
        ],
      },
    ],
  },
  { registry: createRegistry(field, secret) },
);

const known = [file_buf_validate_validate, file_curfew_options_v1_options, file_google_protobuf_any];
const registry = createFileRegistry(file, (path) => known.find((f) => f.proto.name === path)?.proto ?? find(path));

/** Dependencies of dependencies, by name. */
function find(path: string) {
  for (const f of known) {
    const found = f.dependencies.find((d) => d.proto.name === path);
    if (found) return found.proto;
  }
  return undefined;
}

type Method<K extends "unary" | "server_streaming" | "client_streaming" | "bidi_streaming"> = {
  methodKind: K;
  input: GenMessage<EchoMessage>;
  output: GenMessage<EchoMessage>;
};

export const EchoMessageSchema = registry.getMessage(messageName) as GenMessage<EchoMessage>;
export const EchoService = registry.getService("curfew.testing.v1.EchoService") as unknown as GenService<{
  echo: Method<"unary">;
  echoAgain: Method<"unary">;
  count: Method<"server_streaming">;
  join: Method<"client_streaming">;
  talk: Method<"bidi_streaming">;
}>;
