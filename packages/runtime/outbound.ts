import { lookup } from "node:dns/promises";
import http from "node:http";
import https from "node:https";
import { isIP } from "node:net";
import ipaddr from "ipaddr.js";
import type { Clock } from "./clock.ts";

/**
 * The one HTTP client that calls out (design "Outbound calls"). The name is resolved here, every address it has is checked, and the
 * connection goes to what was checked, so a second DNS answer changes nothing. Errors name host and port only: the path of a
 * webhook is often its secret.
 */

/** The rules forbid the call: nothing was sent. Repeating it is pointless. */
export class OutboundRefused extends Error {
  override name = "OutboundRefused";
}

/** The network, the peer or a limit ended the call: it may or may not have arrived. */
export class OutboundFailed extends Error {
  override name = "OutboundFailed";
}

export interface OutboundResult {
  /** 200 to 299. A redirect is not followed and so is a failure. */
  readonly ok: boolean;
  readonly status: number;
  readonly headers: http.IncomingHttpHeaders;
  readonly body: Buffer;
}

export interface OutboundRequest {
  readonly headers: Readonly<Record<string, string>>;
  readonly body: string | Uint8Array;
  /** For the whole call; at most, and by default, 10 s. */
  readonly timeoutMs?: number;
}

export interface Outbound {
  /** Sends one POST. Throws OutboundRefused or OutboundFailed; any answer of the peer is a result. */
  post(url: string, request: OutboundRequest): Promise<OutboundResult>;
  /** The same with another method. */
  call(method: "GET" | "PUT" | "DELETE" | "POST", url: string, request: OutboundRequest): Promise<OutboundResult>;
}

/** All addresses of a host, as dns.lookup gives them. */
export type Resolve = (host: string) => Promise<readonly string[]>;

const defaultBodyBytes = 1024 * 1024;
const maxTimeoutMs = 10_000;
const maxUrlLength = 2048;
const ownHeaders = ["host", "connection", "content-length", "transfer-encoding", "expect", "upgrade"];
/** What an exception in `allow` may open; link-local (cloud metadata), multicast and tunnels stay shut for everyone. */
const exceptional = ["loopback", "private", "uniqueLocal", "carrierGradeNat"];

const systemResolve: Resolve = async (host) => (await lookup(host, { all: true })).map((a) => a.address);

/** The range of an address; "unicast" alone is public. Everything outside 2000::/3 that has no name of its own is "reserved". */
const rangeOf = (address: string): string => {
  if (!ipaddr.isValid(address)) return "invalid";
  const ip = ipaddr.parse(address);
  const range = ip.range();
  return range === "unicast" && ip.kind() === "ipv6" && ((ip.toByteArray()[0] ?? 0) & 0xe0) !== 0x20
    ? "reserved"
    : range;
};

interface Target {
  readonly url: URL;
  /** Without brackets. */
  readonly host: string;
  readonly name: string;
  readonly listed: boolean;
}

const parseTarget = (text: string, allow: ReadonlySet<string>): Target => {
  // The URL parser turns decimal, octal, hexadecimal and short IPv4 forms into dotted ones, so they are checked as addresses.
  const url = text.length <= maxUrlLength ? URL.parse(text) : null;
  if (!url) throw new OutboundRefused("not a URL");
  if (url.protocol !== "https:" && url.protocol !== "http:") throw new OutboundRefused("only https may be called");
  if (url.username || url.password) throw new OutboundRefused("a URL with a user name or password is refused");
  const name = `${url.hostname}:${url.port || (url.protocol === "https:" ? 443 : 80)}`;
  const listed = allow.has(name);
  if (url.protocol === "http:" && !listed) throw new OutboundRefused(`http to ${name} is refused: it is not listed`);
  return { url, host: url.hostname.replace(/^\[|\]$/g, ""), name, listed };
};

const check = (target: Target, addresses: readonly string[]): void => {
  if (addresses.length === 0) throw new OutboundFailed(`${target.name} has no address`);
  for (const address of addresses) {
    const range = rangeOf(address);
    if (target.url.protocol === "http:" && range !== "loopback")
      throw new OutboundRefused(`http to ${target.name} is refused: its address is ${range}, not loopback`);
    if (range !== "unicast" && !(target.listed && exceptional.includes(range)))
      throw new OutboundRefused(`${target.name} is refused: its address is ${range}`);
  }
};

const checkHeaders = (headers: Readonly<Record<string, string>>): void => {
  for (const [name, value] of Object.entries(headers)) {
    if (ownHeaders.includes(name.toLowerCase())) throw new OutboundRefused(`header ${name} is not the caller's to set`);
    try {
      http.validateHeaderName(name);
      http.validateHeaderValue(name, value);
    } catch {
      throw new OutboundRefused("a header has characters that are not allowed");
    }
  }
};

const send = (
  target: Target,
  addresses: readonly string[],
  request: {
    readonly method: string;
    readonly headers: Readonly<Record<string, string>>;
    readonly body: Uint8Array;
    readonly maxBodyBytes: number;
  },
  options: { readonly signal: AbortSignal; readonly ca?: readonly string[] | undefined },
): Promise<OutboundResult> =>
  new Promise((resolve, reject) => {
    const fail = (why: string) => reject(new OutboundFailed(`${target.name}: ${why}`));
    const checked = addresses.map((address) => ({ address, family: isIP(address) }));
    const call = (target.url.protocol === "https:" ? https : http).request(target.url, {
      method: request.method,
      headers: { ...request.headers, "content-length": request.body.length },
      signal: options.signal,
      agent: false,
      lookup: (_host, { all }, done) => {
        const [first] = checked;
        if (all) done(null, checked);
        else done(null, first?.address ?? "", first?.family ?? 0);
      },
      ...(options.ca ? { ca: [...options.ca] } : {}),
    });
    call.on("error", (e: NodeJS.ErrnoException) => fail(e.code ?? e.name));
    call.on("response", (response) => {
      const chunks: Buffer[] = [];
      let size = 0;
      response.on("data", (chunk: Buffer) => {
        size += chunk.length;
        if (size <= request.maxBodyBytes) return chunks.push(chunk);
        fail(`the answer is larger than ${request.maxBodyBytes} bytes`);
        call.destroy();
      });
      response.on("error", (e: NodeJS.ErrnoException) => fail(e.code ?? e.name));
      response.on("end", () => {
        const status = response.statusCode ?? 0;
        const ok = status >= 200 && status < 300;
        resolve({ ok, status, headers: response.headers, body: Buffer.concat(chunks) });
      });
    });
    call.end(request.body);
  });

/**
 * `allow` lists "host:port" exceptions, as they stand in the URL, for which private addresses, and on loopback http, are permitted;
 * `ca` replaces the trusted authorities (PEM).
 */
export const openOutbound = (options: {
  readonly allow: readonly string[];
  readonly clock: Clock;
  readonly resolve?: Resolve;
  readonly ca?: readonly string[];
  /** Of a request and of an answer; default 1 MiB. */
  readonly maxBodyBytes?: number;
}): Outbound => {
  const maxBodyBytes = options.maxBodyBytes ?? defaultBodyBytes;
  const allow = new Set(options.allow.map((entry) => entry.toLowerCase()));
  const resolve = options.resolve ?? systemResolve;
  const call: Outbound["call"] = async (method, text, request) => {
    const target = parseTarget(text, allow);
    const body = typeof request.body === "string" ? Buffer.from(request.body, "utf8") : request.body;
    if (body.length > maxBodyBytes) throw new OutboundRefused(`a body over ${maxBodyBytes} bytes is refused`);
    checkHeaders(request.headers);
    const timeoutMs = Math.min(request.timeoutMs ?? maxTimeoutMs, maxTimeoutMs);
    const over = new AbortController();
    const done = new AbortController();
    const late = options.clock.sleep(timeoutMs, done.signal).then((): never => {
      over.abort();
      throw new OutboundFailed(`${target.name}: no complete answer within ${timeoutMs} ms`);
    });
    const sending = async () => {
      const addresses = isIP(target.host) ? [target.host] : await resolveAll(target, resolve);
      check(target, addresses);
      return await send(
        target,
        addresses,
        { method, headers: request.headers, body, maxBodyBytes },
        { signal: over.signal, ca: options.ca },
      );
    };
    try {
      return await Promise.race([sending(), late]);
    } finally {
      done.abort();
    }
  };
  return { call, post: (url, request) => call("POST", url, request) };
};

const resolveAll = async (target: Target, resolve: Resolve): Promise<readonly string[]> => {
  try {
    return await resolve(target.host);
  } catch (e) {
    throw new OutboundFailed(`${target.name}: ${(e as NodeJS.ErrnoException).code ?? "cannot be resolved"}`);
  }
};
