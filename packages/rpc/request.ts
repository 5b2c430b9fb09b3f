import { create, type DescMessage, fromBinary, type MessageShape, toBinary } from "@bufbuild/protobuf";
import { pathToString } from "@bufbuild/protobuf/reflect";
import { createValidator, type Violation } from "@bufbuild/protovalidate";
import { openCertainlyValid } from "./certainly-valid.ts";
import { type FieldViolation, RpcError } from "./errors.ts";
import { bufferOf } from "./service-definition.ts";
import { malformedFields, secretInField } from "./well-formed.ts";

const compiled = new Map<string, RegExp>();

/** The patterns are our own protos' and simple: V8 matches them in a tenth of the time that an RE2 written in JavaScript takes. */
const regexMatch = (pattern: string, against: string): boolean => {
  let regex = compiled.get(pattern);
  if (!regex) {
    regex = new RegExp(pattern, "u");
    compiled.set(pattern, regex);
  }
  return regex.test(against);
};

const validator = createValidator({ regexMatch });
const certainlyValid = openCertainlyValid(regexMatch);
/** More than this tells a caller nothing new. */
const maxFieldViolations = 20;

const fieldViolation = (violation: Violation) => ({
  field: pathToString(violation.field),
  description: violation.message,
  // google.rpc.BadRequest wants [A-Z][A-Z0-9_]+: `string.min_len` becomes STRING_MIN_LEN.
  reason: violation.ruleId.toUpperCase().replace(/[^A-Z0-9]+/g, "_"),
});

const invalid = (fieldViolations: readonly FieldViolation[]): RpcError => {
  const named = fieldViolations.map((v) => (v.field ? `${v.field}: ${v.description}` : v.description));
  const message = `invalid request: ${named.slice(0, 3).join("; ")}`;
  const reason = fieldViolations.some((v) => v.reason === secretInField) ? secretInField : "INVALID_REQUEST";
  return new RpcError({ status: "INVALID_ARGUMENT", reason, message, fieldViolations });
};

/** Decodes a request and checks the rules of its proto. Throws RpcError INVALID_ARGUMENT, with a BadRequest for broken rules. */
export const parseRequest = <D extends DescMessage>(desc: D, bytes: Uint8Array): MessageShape<D> => {
  let message: MessageShape<D>;
  try {
    message = fromBinary(desc, bytes);
  } catch (cause) {
    throw new RpcError(
      { status: "INVALID_ARGUMENT", reason: "MALFORMED_REQUEST", message: `not a ${desc.typeName}` },
      { cause },
    );
  }
  const malformed = malformedFields(desc, message);
  if (malformed.length > 0) throw invalid(malformed);
  if (certainlyValid(desc, message)) return message;
  const result = validator.validate(desc, message);
  if (result.kind === "error") throw result.error;
  if (result.kind === "invalid") throw invalid(result.violations.slice(0, maxFieldViolations).map(fieldViolation));
  return message;
};

/** Encodes what a handler answered, a plain init object or the bytes themselves. Throws on what does not fit the descriptor. */
export const encodeResponse = (desc: DescMessage, response: unknown): Buffer =>
  bufferOf(
    response instanceof Uint8Array ? response : toBinary(desc, create(desc, response as Record<string, unknown>)),
  );
