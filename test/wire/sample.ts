import { create, type DescField, type DescMessage, type Message, ScalarType } from "@bufbuild/protobuf";
import { reflect } from "@bufbuild/protobuf/reflect";

/**
 * A message with every field set, always alike: scalars by their field number, lists with two items, enums with their last value. Fields of
 * a oneof come one after another, so the last one stays.
 */
export const sampleOf = (desc: DescMessage): Message => {
  const message = reflect(desc, create(desc));
  for (const field of desc.fields) {
    if (field.fieldKind === "list") {
      const list = message.get(field);
      for (const nth of [1, 2]) list.add(single(field, nth) as never);
    } else if (field.fieldKind === "map") {
      throw new TypeError(`${desc.typeName}.${field.name}: maps have no one order, so they have no golden bytes`);
    } else message.set(field, single(field, 1) as never);
  }
  return message.message;
};

const single = (field: Exclude<DescField, { fieldKind: "map" }>, nth: number): unknown => {
  if (field.message) return reflect(field.message, sampleOf(field.message));
  if (field.enum) return field.enum.values.at(-1)?.number;
  const n = field.number * 100 + nth;
  switch (field.scalar) {
    case ScalarType.STRING:
      return `${field.name} ${nth}`;
    case ScalarType.BYTES:
      return Uint8Array.of(field.number, nth, 0, 255);
    case ScalarType.BOOL:
      return true;
    case ScalarType.DOUBLE:
    case ScalarType.FLOAT:
      return n + 0.5;
    case ScalarType.INT64:
    case ScalarType.UINT64:
    case ScalarType.SINT64:
    case ScalarType.FIXED64:
    case ScalarType.SFIXED64:
      return BigInt(n) * 10_000_000n; // past 32 bits, and as seconds still a time
    default:
      return n;
  }
};
