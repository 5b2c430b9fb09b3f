import { isIPv4, isIPv6 } from "node:net";

/** A network address, written in one way only, and the network that it is merged under. */
export interface Address {
  readonly text: string;
  /** The /24 or /48, in CIDR notation. */
  readonly network: string;
}

/** The eight groups of an IPv6 address that `isIPv6` accepts, without a zone. */
const groupsOf = (text: string): number[] => {
  const tail = /^(.*:)(\d+)\.(\d+)\.(\d+)\.(\d+)$/.exec(text);
  const pair = (a: string | undefined, b: string | undefined) => ((Number(a) << 8) | Number(b)).toString(16);
  const hex = tail ? `${tail[1]}${pair(tail[2], tail[3])}:${pair(tail[4], tail[5])}` : text;
  const [head = "", rest] = hex.split("::");
  const numbers = (part: string) => (part === "" ? [] : part.split(":").map((group) => Number.parseInt(group, 16)));
  const before = numbers(head);
  if (rest === undefined) return before;
  const after = numbers(rest);
  return [...before, ...Array<number>(8 - before.length - after.length).fill(0), ...after];
};

const ofIPv4 = (text: string): Address => ({ text, network: `${text.slice(0, text.lastIndexOf("."))}.0/24` });

/** Reads an IPv4 or IPv6 address; an IPv4-mapped one is the IPv4 one (RFC 4291, 2.5.5.2). Undefined for anything else, zones included. */
export const parseAddress = (text: string): Address | undefined => {
  if (isIPv4(text)) return ofIPv4(text);
  if (!isIPv6(text) || text.includes("%")) return undefined;
  const groups = groupsOf(text);
  const [, , , , , mark = 0, high = 0, low = 0] = groups;
  if (mark === 0xffff && groups.slice(0, 5).every((group) => group === 0))
    return ofIPv4([high >> 8, high & 255, low >> 8, low & 255].join("."));
  const hex = groups.map((group) => group.toString(16));
  return { text: hex.join(":"), network: `${hex.slice(0, 3).join(":")}::/48` };
};
