import type { MessageShape } from "@bufbuild/protobuf";
import { type DescField, type DescMessage, getOption, hasOption, type Registry, toJson } from "@bufbuild/protobuf";
import { type ReflectMessage, reflect } from "@bufbuild/protobuf/reflect";
import { type Any, anyUnpack } from "@bufbuild/protobuf/wkt";
import { secret } from "@curfew/contracts/gen/curfew/options/v1/options_pb.ts";

/** JSON-safe: what a log line may hold. */
export type Redacted = null | boolean | number | string | Redacted[] | { [key: string]: Redacted };

const mask = "[secret]";
/** Protobuf parsers stop at 100; nothing of ours is nested deeper than a few. */
const maxDepth = 32;

/** Whether the field is marked `(curfew.options.v1.secret)`. */
export const isSecret = (field: DescField): boolean => hasOption(field, secret) && getOption(field, secret);

const redactScalar = (value: unknown): Redacted => {
  if (typeof value === "bigint") return value.toString();
  if (value instanceof Uint8Array) return Buffer.from(value).toString("base64");
  if (typeof value === "number" && !Number.isFinite(value)) return String(value);
  return value as Redacted;
};

type Walk = (message: ReflectMessage, depth: number) => Redacted;

const redactField = (
  message: ReflectMessage,
  field: DescField,
  walk: (nested: ReflectMessage) => Redacted,
): Redacted => {
  if (isSecret(field)) return mask;
  const one = (value: unknown, desc: { message?: unknown; enum?: unknown }): Redacted => {
    if (desc.message) return walk(value as ReflectMessage);
    if (field.enum && desc.enum) return field.enum.value[value as number]?.name ?? (value as number);
    return redactScalar(value);
  };
  switch (field.fieldKind) {
    case "list":
      return [...message.get(field)].map((value) => one(value, field));
    case "map":
      return Object.fromEntries([...message.get(field)].map(([key, value]) => [String(key), one(value, field)]));
    default:
      return one(message.get(field), field);
  }
};

const unpack = (any: Any, registry: Registry | undefined): ReflectMessage | undefined => {
  try {
    const inner = registry && anyUnpack(any, registry);
    const desc = inner && registry.getMessage(inner.$typeName);
    return desc && reflect(desc, inner);
  } catch {
    return undefined; // bytes that are not of the type they claim
  }
};

/** What is inside an Any is only shown when its type is known, and then redacted too. */
const redactAny = (any: Any, registry: Registry | undefined, walk: (nested: ReflectMessage) => Redacted): Redacted => {
  const inner = unpack(any, registry);
  if (!inner) return { "@type": any.typeUrl, value: mask };
  const value = walk(inner);
  return typeof value === "object" && value !== null && !Array.isArray(value)
    ? { "@type": any.typeUrl, ...value }
    : { "@type": any.typeUrl, value };
};

/**
 * A copy of `message` for logs, in which every field marked `(curfew.options.v1.secret)` is `"[secret]"`, at any depth, in lists,
 * maps and Any. Field names as in the proto's JSON form; only set fields; unknown fields are left out. A registry is needed to
 * look into an Any: without it, or for a type it does not know, the content is masked whole.
 */
export const redact = <D extends DescMessage>(desc: D, message: MessageShape<D>, registry?: Registry): Redacted => {
  const walk: Walk = (nested, depth) => {
    if (depth > maxDepth) return mask;
    const deeper = (inner: ReflectMessage) => walk(inner, depth + 1);
    if (nested.desc.typeName === "google.protobuf.Any") return redactAny(nested.message as Any, registry, deeper);
    // Timestamp, Duration, wrappers, Struct: no options inside, and a JSON form of their own.
    if (nested.desc.file.proto.package === "google.protobuf") return toJson(nested.desc, nested.message) as Redacted;
    const set = nested.fields.filter((field) => nested.isSet(field));
    return Object.fromEntries(set.map((field) => [field.jsonName, redactField(nested, field, deeper)]));
  };
  return walk(reflect(desc, message), 0);
};
