import { hash } from "node:crypto";
import {
  clearField,
  clone,
  type DescField,
  type DescMessage,
  getOption,
  hasOption,
  type Message,
  type MessageShape,
  ScalarType,
  toBinary,
} from "@bufbuild/protobuf";
import { type ReflectMessage, reflect } from "@bufbuild/protobuf/reflect";
import { secret } from "@curfew/contracts/gen/curfew/options/v1/options_pb.ts";
import { lengthPrefixed } from "@curfew/runtime/length-prefixed.ts";
import type { CallContext } from "./service-definition.ts";

/** What makes a request the same one when it comes again: whoever else names the same id, or calls another method, has another key. */
export interface RequestKey {
  /** SHA-256 over caller, method and request id, 32 bytes: what a creating command derives its stream id from. */
  readonly key: Uint8Array;
  /** The same in hex, as events carry it (`request_key`). */
  readonly keyHex: string;
  /** SHA-256 in hex of what was asked: the same key with another hash is another request under a used id. */
  readonly requestHash: string;
}

const isSecret = (field: DescField): boolean => hasOption(field, secret) && getOption(field, secret);
const sha256 = (value: string | Uint8Array): Uint8Array => hash("sha256", value, "buffer");

const holders = new Map<DescMessage, boolean>();

/** Whether a secret can stand anywhere in such a message. */
const canHoldSecrets = (desc: DescMessage): boolean => {
  const known = holders.get(desc);
  if (known !== undefined) return known;
  const seen = new Set<DescMessage>();
  const look = (at: DescMessage): boolean => {
    if (seen.has(at)) return false;
    seen.add(at);
    return at.fields.some((field) => isSecret(field) || (field.message !== undefined && look(field.message)));
  };
  const found = look(desc);
  holders.set(desc, found);
  return found;
};

/** Puts hashes in the place of secrets, so that what is hashed over them is not derived from a secret alone. */
const hideSecrets = (message: ReflectMessage): void => {
  for (const field of message.fields) {
    if (!message.isSet(field)) continue;
    if (isSecret(field)) {
      const hashed = sha256(toBinary(message.desc, onlyField(message, field)));
      message.clear(field);
      hidden(message, field, hashed);
    } else if (field.fieldKind === "message") hideSecrets(message.get(field));
    else if (field.fieldKind === "list" && field.listKind === "message")
      for (const item of message.get(field)) hideSecrets(item as ReflectMessage);
  }
};

const onlyField = (message: ReflectMessage, kept: DescField) => {
  const copy = reflect(message.desc, clone(message.desc, message.message));
  for (const field of copy.fields) if (field !== kept) copy.clear(field);
  return copy.message;
};

/** The hash where the secret was, in the form that the field takes. */
const hidden = (message: ReflectMessage, field: DescField, hashed: Uint8Array): void => {
  const text = Buffer.from(hashed).toString("hex");
  if (field.fieldKind === "scalar") message.set(field, field.scalar === ScalarType.STRING ? text : hashed);
  else if (field.fieldKind === "list" && field.listKind === "scalar") message.get(field).add(text);
  else throw new TypeError(`${field.name}: a secret is text or bytes`);
};

const withoutIdAndSecrets = <D extends DescMessage>(desc: D, request: MessageShape<D>): MessageShape<D> => {
  const hides = canHoldSecrets(desc);
  // What lies deeper is changed only to hide secrets.
  const asked = hides
    ? clone(desc, request)
    : (Object.assign(Object.create(Object.getPrototypeOf(request)), request) as MessageShape<D>);
  const idField = desc.field.requestId;
  if (idField) clearField(asked as Message, idField);
  if (hides) hideSecrets(reflect(desc, asked));
  return asked;
};

/**
 * The key of a mutation (AIP-155; design "Idempotency"). `request` is what the handler got; leave out what may differ between the
 * calls that belong together by clearing it first. Unknown fields do not count.
 */
export const requestKeyOf = <D extends DescMessage>(
  ctx: Pick<CallContext, "caller" | "method">,
  requestId: string,
  desc: D,
  request: MessageShape<D>,
): RequestKey => {
  // A UUID is the same in capitals.
  const key = sha256(lengthPrefixed(ctx.caller.uri, ctx.method, requestId.toLowerCase()));
  const bytes = toBinary(desc, withoutIdAndSecrets(desc, request), { writeUnknownFields: false });
  return {
    key,
    keyHex: Buffer.from(key).toString("hex"),
    requestHash: Buffer.from(sha256(lengthPrefixed(desc.typeName, bytes))).toString("hex"),
  };
};
