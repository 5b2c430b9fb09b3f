declare const brand: unique symbol;

/** `tok_` and a lower-case UUIDv8. Public: the only name of a token that is logged, keyed or shown. */
export type TokenId = string & { readonly [brand]: "TokenId" };

const shape = /^tok_[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/;
const LENGTH = 40;
const KEY_BYTES = 16;

/** The id the request key leads to: its first 122 bits, in order, in the free bits of a UUIDv8 (RFC 9562, 5.8). Throws below 16 bytes. */
export const tokenIdFrom = (requestKey: Uint8Array): TokenId => {
  if (requestKey.length < KEY_BYTES) throw new RangeError(`tokenIdFrom: at least ${KEY_BYTES} bytes wanted`);
  const bits = BigInt(`0x${Buffer.from(requestKey.subarray(0, KEY_BYTES)).toString("hex")}`) >> 6n;
  const a = bits >> 74n;
  const b = (bits >> 62n) & 0xfffn;
  const c = bits & ((1n << 62n) - 1n);
  const hex = ((a << 80n) | (8n << 76n) | (b << 64n) | (2n << 62n) | c).toString(16).padStart(32, "0");
  return `tok_${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}` as TokenId;
};

/** The id, or undefined for anything else. Never throws. */
export const parseTokenId = (text: unknown): TokenId | undefined =>
  typeof text === "string" && text.length === LENGTH && shape.test(text) ? (text as TokenId) : undefined;

/** Throws a TypeError for anything but a token id. The text is not repeated: it may be a secret put in the wrong field. */
export function assertTokenId(text: unknown): asserts text is TokenId {
  if (parseTokenId(text) === undefined) throw new TypeError("not a token id");
}
