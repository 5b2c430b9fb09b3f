import { execFileSync } from "node:child_process";
import {
  NONCE_BYTES,
  openTimestamp,
  readAuthorities,
  TimestampRefused,
  timestampQuery,
} from "@curfew/ledger/timestamp.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openTsa, type Tsa } from "../tools/tsa.ts";

/** RFC 3161 as OpenSSL speaks it: what its authority answers is opened here, what we ask is answered there, and each refuses what the other does. */

let tsa: Tsa;
let rsa: Tsa;
let other: Tsa;
beforeAll(async () => {
  [tsa, rsa, other] = await Promise.all([
    openTsa(),
    openTsa({ rsa: true, config: "ess_cert_id_alg = sha1" }),
    openTsa(),
  ]);
});
afterAll(() => {
  for (const each of [tsa, rsa, other]) each.close();
});

const data = Buffer.from("a checkpoint\n");
const nonce = systemRandom(NONCE_BYTES);
const query = timestampQuery(data, nonce);
const authoritiesOf = (of: Tsa) => readAuthorities(of.caPem);
const opened = (response: Uint8Array, more: Partial<Parameters<typeof openTimestamp>[1]> = {}) =>
  openTimestamp(response, { data, nonce, authorities: authoritiesOf(tsa), ...more });
const refusal = (...of: Parameters<typeof opened>) =>
  opened(...of).then(
    () => "accepted",
    (error: unknown) => {
      expect(error).toBeInstanceOf(TimestampRefused);
      return (error as Error).message;
    },
  );

describe.skipIf(process.env.ABSENT_PROGRAMS?.includes("openssl"))("a timestamp by openssl ts", () => {
  it("is asked for and opened, whatever key signs; OpenSSL agrees", async () => {
    for (const authority of [tsa, rsa]) {
      const before = Math.floor(Date.now() / 1_000) * 1_000;
      const response = await authority.reply(query);
      const { timeMs, policy } = await opened(response, { authorities: authoritiesOf(authority) });
      expect(timeMs).toBeGreaterThanOrEqual(before);
      expect(timeMs).toBeLessThanOrEqual(Date.now());
      expect(policy).toBe("1.3.6.1.4.1.99999.1");
      expect(await authority.accepts(response, { query })).toBe(true);
      expect(await authority.accepts(response, { data })).toBe(true);
      // For a bundle: no query any more.
      const later = { data, authorities: authoritiesOf(authority) };
      expect(await openTimestamp(response, later)).toEqual({ timeMs, policy });
    }
  });

  it("is refused over other data, for another query, of another authority", async () => {
    const response = await tsa.reply(query);
    expect(await refusal(response, { data: Buffer.from("other\n") })).toBe("the timestamp is of something else");
    expect(await refusal(response, { nonce: systemRandom(NONCE_BYTES) })).toBe("the timestamp is of another query");
    const strangers = authoritiesOf(other);
    expect(await refusal(response, { authorities: strangers })).toBe(
      "the signature does not lead to a trusted authority",
    );
    expect(await refusal(response, { authorities: [] })).toBe("the signature does not lead to a trusted authority");
    expect(await other.accepts(response, { data })).toBe(false);
    // One trusted authority of several is enough.
    await opened(response, { authorities: [...strangers, ...authoritiesOf(tsa)] });
  });

  it("is refused where the authority refuses, inside of an answer that looks well", async () => {
    const sha1 = execFileSync("openssl", ["ts", "-query", "-digest", "a".repeat(40), "-sha1"], {
      stdio: ["ignore", "pipe", "ignore"],
    });
    expect(await refusal(await tsa.reply(sha1))).toBe("the authority does not grant a timestamp");
    expect(await refusal(await tsa.reply(Buffer.from("garbage")))).toBe("the authority does not grant a timestamp");
    const sha512 = execFileSync("openssl", ["ts", "-query", "-digest", "a".repeat(128), "-sha512", "-cert"], {
      stdio: ["ignore", "pipe", "ignore"],
    });
    expect(await refusal(await tsa.reply(sha512))).toBe("the timestamp is not over a SHA-256 hash");
  });

  it("with anything after it is refused, which OpenSSL lets pass", async () => {
    const response = await tsa.reply(query);
    const longer = Buffer.concat([response, Buffer.of(0)]);
    expect(await tsa.accepts(longer, { query })).toBe(true);
    expect(await refusal(longer)).toBe("the answer is malformed");
    expect(await refusal(response.subarray(0, -1))).toBe("the answer is malformed");
  });

  it("with any byte changed is refused, or is still the same one", async () => {
    const response = await tsa.reply(query);
    const { timeMs } = await opened(response);
    let [refused, same] = [0, 0];
    for (let at = 0; at < response.length; at += 3) {
      const changed = Buffer.from(response);
      changed[at] = (changed[at] as number) ^ (1 << (at % 8));
      const outcome = await opened(changed).then(
        (found) => found.timeMs,
        (error: unknown) => {
          expect(error).toBeInstanceOf(TimestampRefused);
          return undefined;
        },
      );
      if (outcome === undefined) refused += 1;
      else {
        expect(outcome).toBe(timeMs);
        same += 1;
      }
    }
    expect(refused).toBeGreaterThan(300);
    expect(same).toBeLessThan(refused / 4);
  });

  it("bytes of any kind are refused, never anything else", async () => {
    const nested = Buffer.concat([
      ...Array.from({ length: 16_000 }, () => Buffer.from([0x30, 0x80])),
      Buffer.alloc(32_000),
    ]);
    expect(await refusal(nested)).toBe("the answer is malformed");
    expect(await refusal(Buffer.alloc(70_000))).toContain("over 65536 bytes");
    const property = fc.asyncProperty(fc.uint8Array({ maxLength: 200 }), async (bytes) => {
      expect(await refusal(bytes)).toBe("the answer is malformed");
    });
    await fc.assert(property, { numRuns: 1_000, seed: 3_161 });
    expect(() => readAuthorities("no PEM")).toThrow("there is no PEM certificate");
    expect(() => readAuthorities("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----")).toThrow("malformed");
  });
});
