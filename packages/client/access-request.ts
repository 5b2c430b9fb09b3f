import { isIP } from "node:net";
import { Action } from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import { findSecrets } from "@curfew/token-format/scan.ts";

/** One intended use, as the resource service declares it before it touches anything. */
export interface AccessRequest {
  /** resource:verb, `invoices:read`. */
  readonly scope: string;
  /** Segments joined by "/"; opaque ids only, never personal data. */
  readonly resource: string;
  /** Why (GDPR Art. 5(1)(b)): `billing`. */
  readonly purpose: string;
  /** Kinds of personal data; absent: none. */
  readonly dataCategories?: readonly string[];
  /** Id of the controller whose data it is. */
  readonly controller: string;
  /** At most so many people are touched: what counts while the access is not completed. */
  readonly maxPeople: number;
  readonly maxRecords: number;
  /** Default read. */
  readonly action?: "read" | "write" | "delete";
  /** IPv4 or IPv6 address of whoever presented the token; recorded as a pseudonym, and sealed to its owner. */
  readonly sourceAddress?: string;
  /** SHA-256 of the presenter's client certificate, base64url. */
  readonly presenterThumbprint?: string;
  /** ISO 3166-1 alpha-2. */
  readonly sourceCountry?: string;
}

/** A data subject of the request's controller, as the resource service knows them. */
export interface Person {
  /** `customer-id`, `email`, … */
  readonly identifierType: string;
  /** Normalised by the resource service: the same person, the same value; 1 to 512 bytes. */
  readonly value: string;
}

/** `curfew.verifier.v1.UseRequest` as a plain object: encoding is put off until it is sent. */
export type UseFields = ReturnType<typeof parseAccessRequest>;
/** `curfew.verifier.v1.Person`. */
export type PersonFields = ReturnType<typeof parsePerson>;

/** An AccessRequest, or what `touched` was given, that the protos' rules refuse: a mistake in the resource service. */
export class InvalidRequest extends TypeError {
  override name = "InvalidRequest";
}

const name = /^[a-z0-9][a-z0-9-]{0,62}$/;
const scopeForm = /^[a-z0-9][a-z0-9-]{0,62}:[a-z0-9][a-z0-9-]{0,62}$/;
const resourceForm = /^[A-Za-z0-9._~-]+(\/[A-Za-z0-9._~-]+)*$/;
const thumbprintForm = /^([A-Za-z0-9_-]{43})?$/;
const countryForm = /^([A-Z]{2})?$/;
const maxCategories = 32;
const actions = { read: Action.READ, write: Action.WRITE, delete: Action.DELETE } as const;

const must = (fine: boolean, field: string, rule: string): void => {
  if (!fine) throw new InvalidRequest(`${field}: ${rule}`);
};

const isName = (text: unknown): boolean => typeof text === "string" && name.test(text);
const isShort = (text: unknown): boolean => typeof text === "string" && text.length <= 64 && text.isWellFormed();

const isAddress = (text: unknown): boolean =>
  isShort(text) && isIP(text as string) !== 0 && !(text as string).includes("%");

/** What every secret of ours begins with: most texts are known at this glance to hold none. */
const secretPrefix = "cfw";
const mustHoldNoSecret = (field: string, text: string): void =>
  must(
    !text.includes(secretPrefix) || findSecrets(text).length === 0,
    field,
    "no secret; revoke the one that it holds",
  );

const count = (field: string, value: number, most: number): bigint => {
  must(Number.isSafeInteger(value) && value >= 0 && value <= most, field, `a whole number from 0 to ${most}`);
  return BigInt(value);
};

/**
 * The request with the rules of `curfew.verifier.v1.UseRequest` applied by hand, ten times as fast as from the descriptor; a test
 * holds the two together. One bad request must not spoil the batch it travels in. Throws InvalidRequest, which repeats no value.
 */
export const parseAccessRequest = (request: AccessRequest) => {
  const { scope, resource, purpose, controller, dataCategories = [], action = "read" } = request;
  const { sourceAddress = "", presenterThumbprint = "", sourceCountry = "" } = request;
  must(typeof scope === "string" && scopeForm.test(scope), "scope", "resource:verb, lower case");
  must(
    typeof resource === "string" && resource.length <= 256 && resourceForm.test(resource),
    "resource",
    'segments of letters, digits, ".", "_", "~", "-", joined by "/", at most 256 characters',
  );
  must(isName(purpose), "purpose", "lower-case letters, digits and hyphens");
  must(isName(controller), "controller", "lower-case letters, digits and hyphens");
  must(
    Array.isArray(dataCategories) && dataCategories.length <= maxCategories && dataCategories.every(isName),
    "dataCategories",
    `at most ${maxCategories} names of lower-case letters, digits and hyphens`,
  );
  must(new Set(dataCategories).size === dataCategories.length, "dataCategories", "each once");
  must(Object.hasOwn(actions, action), "action", "read, write or delete");
  must(sourceAddress === "" || isAddress(sourceAddress), "sourceAddress", "an IPv4 or IPv6 address without a zone");
  must(
    typeof presenterThumbprint === "string" && thumbprintForm.test(presenterThumbprint),
    "presenterThumbprint",
    "a SHA-256, base64url",
  );
  // The others have no room or no characters for one.
  mustHoldNoSecret("resource", resource);
  mustHoldNoSecret("presenterThumbprint", presenterThumbprint);
  must(typeof sourceCountry === "string" && countryForm.test(sourceCountry), "sourceCountry", "two capital letters");
  return {
    scope,
    resource,
    purpose,
    // A copy: the caller's array may change before it is sent.
    dataCategories: dataCategories.slice(),
    controller,
    maxPeople: count("maxPeople", request.maxPeople, 1_000_000_000),
    maxRecords: count("maxRecords", request.maxRecords, 1_000_000_000_000),
    action: actions[action],
    sourceAddress,
    presenterThumbprint,
    sourceCountry,
  };
};

const maxValueBytes = 512;

/** A person with the rules of `curfew.verifier.v1.Person` applied. Throws InvalidRequest, which repeats no value. */
export const parsePerson = ({ identifierType, value }: Person, controller: string) => {
  must(isName(identifierType), "person.identifierType", "lower-case letters, digits and hyphens");
  must(
    typeof value === "string" && value !== "" && Buffer.byteLength(value) <= maxValueBytes,
    "person.value",
    `1 to ${maxValueBytes} bytes`,
  );
  // Lone surrogates would all become the same replacement character: different people, one pseudonym.
  must(value.isWellFormed() && !/\p{Cc}/u.test(value), "person.value", "valid Unicode without control characters");
  return { controller, identifierType, value };
};

/** Throws InvalidRequest. */
export const parseCount = (field: string, value: number): number => Number(count(field, value, 1_000_000_000_000));
