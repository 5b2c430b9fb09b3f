import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseTimestamps } from "@curfew/auditor/public-log/timestamp-settings.ts";
import { openTimestampRows, openTimestamps, timestampOf } from "@curfew/auditor/public-log/timestamps.ts";
import { quiet, seal, shard } from "@curfew/auditor/testing/rig.ts";
import { openDirectory } from "@curfew/ledger/directory.ts";
import { openTimestamp, readAuthorities } from "@curfew/ledger/timestamp.ts";
import { type Clock, systemClock } from "@curfew/runtime/clock.ts";
import { openOutbound } from "@curfew/runtime/outbound.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { memoryStore } from "@curfew/simulation/memory-store.ts";
import { virtualClock } from "@curfew/simulation/virtual-clock.ts";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { openTsa, serveTsa, type Tsa } from "../tools/tsa.ts";

/** The daily timestamp over the published checkpoint, by `openssl ts` over HTTP; our clock is a virtual one. */

const hourMs = 3_600_000;
const dayMs = 24 * hourMs;
let tsa: Tsa;
let stranger: Tsa;
let dir = "";
beforeAll(async () => {
  [tsa, stranger] = await Promise.all([openTsa(), openTsa()]);
});
afterAll(() => {
  tsa.close();
  stranger.close();
});
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "curfew-stamped-"));
});
const undo: (() => unknown)[] = [];
afterEach(async () => {
  for (const step of undo.splice(0).reverse()) await step();
  rmSync(dir, { recursive: true });
});

const open = async (answer?: (reply: Buffer) => Buffer, authority = tsa) => {
  const server = await serveTsa(authority, answer);
  undo.push(() => server.close());
  const virtual = virtualClock(Date.UTC(2026, 10, 27, 22));
  let asleep = 0;
  const clock: Clock = {
    ...virtual,
    async sleep(ms, signal) {
      asleep += 1;
      await virtual.sleep(ms, signal);
      asleep -= 1;
    },
  };
  /** Lets time pass while nothing else is done: the authority is a real one and takes its own. */
  const advance = async (ms: number) => {
    for (let left = ms; left > 0; left -= 60_000) {
      await expect.poll(() => asleep, { timeout: 30_000, interval: 1 }).toBe(1);
      await virtual.advance(Math.min(left, 60_000));
    }
    await expect.poll(() => asleep, { timeout: 30_000, interval: 1 }).toBe(1);
  };
  const rows = await openTimestampRows(memoryStore());
  const files = openDirectory(dir, { clock, random: systemRandom });
  const nextFiles = openDirectory(join(dir, "next"), { clock, random: systemRandom });
  const next = { year: shard.year + 1, first: 7 };
  let isTurned = false;
  const said: unknown[] = [];
  const timestamps = openTimestamps({
    url: server.url,
    authorities: readAuthorities(tsa.caPem),
    allow: [],
    files: (year) => (year === shard.year ? files : nextFiles),
    shard: () => (isTurned ? next : shard),
    seal,
    rows,
    outbound: openOutbound({ allow: [server.host], clock: systemClock }),
    clock,
    random: systemRandom,
    log: { ...quiet, warn: (fields, text) => void said.push(text ?? fields) },
  });
  const stop = new AbortController();
  const running = timestamps.run(stop.signal);
  undo.push(async () => {
    stop.abort();
    await running;
  });
  const publish = (size: number) =>
    files.write([{ path: "checkpoint", bytes: Buffer.from(seal.sign(shard, size, Buffer.alloc(32, size))) }]);
  /** The next shard is there, and as many entries in the ledger. */
  const turn = async (size: number) => {
    isTurned = true;
    const bytes = Buffer.from(seal.sign(next, size, Buffer.alloc(32, size)));
    await nextFiles.write([{ path: "checkpoint", bytes }]);
  };
  const sizes = async () => (await rows.find({ limit: 10 })).map(({ size }) => size);
  return { server, clock, advance, rows, timestamps, publish, turn, sizes, said };
};

describe.skipIf(process.env.ABSENT_PROGRAMS?.includes("openssl"))("the daily timestamp", () => {
  it("comes once a day over what is published, if it has grown, and is whole for a stranger with OpenSSL", async () => {
    const { server, advance, rows, timestamps, publish, sizes } = await open();
    await advance(hourMs);
    expect(server.asked()).toBe(0); // nothing is published
    await publish(5);
    await advance(60_000);
    expect(await sizes()).toEqual([5]);
    await publish(6);
    await advance(50 * 60_000); // the day is not over
    expect([server.asked(), await sizes()]).toEqual([1, [5]]);
    await advance(hourMs);
    expect(await sizes()).toEqual([5, 6]);
    await advance(2 * dayMs);
    expect([server.asked(), await sizes()]).toEqual([2, [5, 6]]); // it has not grown

    const [row] = await rows.find({ limit: 1 });
    if (!row) throw new Error("there is no row");
    expect(row.checkpoint).toBe(seal.sign(shard, 5, Buffer.alloc(32, 5)));
    const data = Buffer.from(row.checkpoint);
    expect(await tsa.accepts(row.response, { query: row.query })).toBe(true);
    expect(await tsa.accepts(row.response, { data })).toBe(true);
    const authorities = readAuthorities(tsa.caPem);
    expect(await openTimestamp(row.response, { data, authorities })).toMatchObject({ timeMs: row.timeMs });
    expect(await timestamps.status()).toMatchObject({ newest: { size: 6 } });
    expect(await Promise.all([0, 5, 6, 7].map((size) => timestampOf(rows, size).then((found) => found?.size)))).toEqual(
      [5, 5, 6, undefined],
    );
  });

  it("over the end of a year comes before that of the next one: bundles of that year have no other", async () => {
    const { advance, rows, publish, turn, sizes } = await open();
    await publish(5);
    await advance(60_000);
    await publish(7);
    await turn(9);
    await advance(dayMs);
    expect(await sizes()).toEqual([5, 7]);
    await advance(dayMs);
    expect(await sizes()).toEqual([5, 7, 9]);
    expect((await rows.find({ limit: 9 })).map((row) => row.shard.year - shard.year)).toEqual([0, 0, 1]);
  });

  it("that cannot be had is asked for less and less often, said once, and made good", async () => {
    const { server, clock, advance, timestamps, publish, sizes, said } = await open();
    server.down();
    await publish(5);
    const atMinute: number[] = [];
    const startMs = clock.now();
    for (let asked = 0; clock.now() < startMs + dayMs / 4; asked = server.asked()) {
      await advance(60_000);
      if (server.asked() > asked) atMinute.push((clock.now() - startMs) / 60_000);
    }
    expect(atMinute.slice(1).map((minute, i) => minute - (atMinute[i] as number))).toEqual([
      1, 2, 4, 8, 16, 32, 60, 60, 60, 60,
    ]);
    const { failing } = await timestamps.status();
    expect(failing?.said).toBe("the authority answers with HTTP status 503");
    expect(failing?.sinceMs).toBeLessThanOrEqual(startMs + 60_000);
    expect(said).toEqual(["no timestamp for the ledger: trying again, less and less often"]);
    server.up();
    await advance(hourMs);
    expect(await sizes()).toEqual([5]);
    expect((await timestamps.status()).failing).toBeUndefined();
    expect(said.at(-1)).toBe("the time-stamp authority answers again");
  });

  it.each<[string, (reply: Buffer) => Buffer, string]>([
    ["a bit was changed", (reply) => reply.fill(~(reply.at(-1) ?? 0), reply.length - 1), "the signature does not hold"],
    ["it is garbage", () => Buffer.from("garbage"), "the answer is malformed"],
    ["it is too long", () => Buffer.alloc(100_000), "the answer has over 65536 bytes"],
  ])("is not kept where %s", async (_what, answer, said) => {
    const { advance, timestamps, publish, sizes } = await open(answer);
    await publish(5);
    await advance(60_000);
    expect((await timestamps.status()).failing?.said).toBe(said);
    expect(await sizes()).toEqual([]);
  });

  it("is not kept where another than the trusted authority signed it", async () => {
    const { advance, timestamps, publish, sizes } = await open(undefined, stranger);
    await publish(5);
    await advance(60_000);
    expect((await timestamps.status()).failing?.said).toBe("the signature does not lead to a trusted authority");
    expect(await sizes()).toEqual([]);
  });

  it("is asked of whom curfew.yaml names", () => {
    expect(parseTimestamps(undefined)).toBeUndefined();
    const url = "https://tsa.example/";
    expect(parseTimestamps({ url, ca_file: tsa.caFile })).toMatchObject({
      url,
      authorities: [expect.anything()],
      allow: [],
    });
    expect(() => parseTimestamps({ url })).toThrow("required together");
    expect(() => parseTimestamps({ url: "ftp://x/", ca_file: tsa.caFile })).toThrow("timestamps.url must be a URL");
    writeFileSync(join(dir, "ca.pem"), "nothing");
    expect(() => parseTimestamps({ url, ca_file: join(dir, "ca.pem") })).toThrow("there is no PEM certificate");
    expect(() => parseTimestamps({ url, ca_file: join(dir, "none.pem") })).toThrow("path of an existing file");
  });
});
