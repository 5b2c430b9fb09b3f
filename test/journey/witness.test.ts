import { generateKeyPairSync, hash } from "node:crypto";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, statSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openWitnessServer } from "@curfew/cli/witness-server.ts";
import { openWitnessState } from "@curfew/cli/witness-state.ts";
import { formatAddCheckpoint } from "@curfew/ledger/add-checkpoint.ts";
import { openCheckpoint, signCheckpoint } from "@curfew/ledger/checkpoint.ts";
import { writeLog } from "@curfew/ledger/log.test-data.ts";
import {
  cosignatureSeconds,
  noteCosigner,
  noteSigner,
  parseVerifierKey,
  verifierKeyText,
} from "@curfew/ledger/note-key.ts";
import { tileNodes } from "@curfew/ledger/tile-nodes.ts";
import { proveConsistency } from "@curfew/ledger/tree.ts";
import { openLog } from "@curfew/runtime/log.ts";
import { seededRandom } from "@curfew/simulation/seeded-random.ts";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { type OwnWitness, openOwnWitness, WitnessEnded } from "../tools/own-witness.ts";

/** `curfew witness`, the process: what it remembers through whatever happens to it. What it decides is tested with packages/ledger/witness.ts. */

const origin = "log.example/2026";
const { privateKey } = generateKeyPairSync("ed25519");
const vkey = verifierKeyText(origin, privateKey);
const last = 200;
const sizes = Array.from({ length: last }, (_, i) => i + 1);
const log = writeLog(sizes);
const fork = writeLog(sizes, (i) => Buffer.from(`other ${i}`));

const checkpointAt = (size: number, of = log) =>
  signCheckpoint({ origin, size, root: of.rootAt(size) }, [noteSigner(origin, privateKey)]);
const requestFor = async (old: number, size: number, of = log) =>
  formatAddCheckpoint({
    old,
    proof: old === 0 || old === size ? [] : await proveConsistency(old, size, tileNodes(size, of.read)),
    checkpoint: checkpointAt(size, of),
  });

let dir = "";
let witness: OwnWitness | undefined;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "curfew-witness-"));
});
afterEach(async () => {
  await witness?.stop("SIGKILL");
  witness = undefined;
  rmSync(dir, { recursive: true, force: true });
});
const start = async (...more: string[]) => {
  witness = await openOwnWitness(dir, [vkey], more.length > 0 ? more : undefined);
  return witness;
};

const post = async (url: string, body: string) => {
  const response = await fetch(`${url}add-checkpoint`, { method: "POST", body });
  return { status: response.status, type: response.headers.get("content-type"), body: await response.text() };
};
/** Any that was cosigned opens with the key that the witness said. */
const assertCosigned = (of: OwnWitness, size: number, line: string) =>
  expect(
    openCheckpoint(`${checkpointAt(size)}${line}`, parseVerifierKey(vkey), [parseVerifierKey(of.vkey)]),
  ).toMatchObject({
    size,
    signatures: [{ name: origin }, { name: "witness.example/own" }],
  });

describe("curfew witness", { timeout: 180_000 }, () => {
  it("keeps its key in a file of its owner's, remembers through a restart, and stops at a signal", async () => {
    const first = await start();
    expect(statSync(join(dir, "keys", "cosigner")).mode & 0o777).toBe(0o600);
    const { status, body } = await post(first.url, await requestFor(0, 8));
    expect(status).toBe(200);
    assertCosigned(first, 8, body);
    expect(await first.stop()).toBe(0);
    const second = await start("--name", "witness.example/own");
    expect(second.vkey).toBe(first.vkey);
    expect(await post(second.url, await requestFor(0, 5))).toEqual({
      status: 409,
      type: "text/x.tlog.size",
      body: "8\n",
    });
    expect(await post(second.url, await requestFor(8, 9))).toMatchObject({ status: 200 });
    expect(await second.stop("SIGINT")).toBe(0);
  });

  it("does not start where it would be another witness than before, or a second one", async () => {
    const refused = (code: number) => (error: unknown) => {
      expect(error).toBeInstanceOf(WitnessEnded);
      expect((error as WitnessEnded).code).toBe(code);
      return (error as WitnessEnded).message;
    };
    const nameless = await openOwnWitness(dir, [vkey], []).then(String, refused(2));
    expect(nameless).toContain("--name is needed at the first start");
    await start();
    expect(await openOwnWitness(dir, [vkey]).then(String, refused(3))).toContain("another instance is using");
    await witness?.stop();
    const renamed = await openOwnWitness(dir, [vkey], ["--name", "witness.example/new"]).then(String, refused(2));
    expect(renamed).toContain("is that of witness.example/own");
    expect(await openOwnWitness(dir, ["no key"]).then(String, refused(2))).toContain("--log number 1");
    expect(await openOwnWitness(dir, [vkey, vkey]).then(String, refused(2))).toContain("this key is given twice");
    expect(await openOwnWitness(dir, [witness?.vkey ?? ""]).then(String, refused(2))).toContain("of type 1");
  });

  it("asked for many growths at once cosigns one of them; of a tree and its fork, one", async () => {
    const { url } = await start();
    expect(await post(url, await requestFor(0, 1))).toMatchObject({ status: 200 });
    const bodies = await Promise.all(sizes.slice(1, 60).map((size) => requestFor(1, size)));
    const answers = await Promise.all(bodies.map((body) => post(url, body)));
    expect(answers.filter(({ status }) => status === 200)).toHaveLength(1);
    const at = answers.findIndex(({ status }) => status === 200) + 2;
    for (const { status, body } of answers)
      expect([`200 `, `409 ${at}\n`]).toContain(`${status} ${status === 200 ? "" : body}`);

    const others = mkdtempSync(join(tmpdir(), "curfew-witness-"));
    const other = await openOwnWitness(others, [vkey]);
    const both = [await requestFor(0, 9), await requestFor(0, 9, fork)];
    const asked = await Promise.all(Array.from({ length: 40 }, (_, i) => post(other.url, both[i % 2] as string)));
    await other.stop();
    rmSync(others, { recursive: true });
    const cosigned = new Set(asked.flatMap(({ status }, i) => (status === 200 ? [i % 2] : [])));
    expect(cosigned.size).toBe(1);
  });

  it("killed again and again forgets nothing that it answered", async () => {
    const random = seededRandom(1_127);
    let answered = 0;
    for (let round = 0; round < 8; round += 1) {
      const running = await start();
      const lives = 1 + ((random.bytes(1)[0] as number) % 20);
      let known = answered;
      for (let asked = 0; ; asked += 1) {
        const growing = requestFor(known, known + 1).then((body) => post(running.url, body));
        if (asked === lives) {
          const ended = running.stop("SIGKILL");
          const late = await growing.catch(() => undefined);
          if (late?.status === 200) answered = known + 1;
          await ended;
          break;
        }
        const { status, body } = await growing;
        // What was written and not answered any more before the kill.
        if (status === 409) known = Number(body);
        else {
          expect(status).toBe(200);
          assertCosigned(running, known + 1, body);
          known += 1;
        }
        expect(known).toBeGreaterThanOrEqual(answered);
        answered = known;
      }
    }
    expect(answered).toBeGreaterThan(20);
    const { url } = await start();
    const stated = Number((await post(url, await requestFor(0, last))).body);
    expect(stated - answered).toBeOneOf([0, 1]);
    expect(await post(url, await requestFor(stated, stated, fork))).toMatchObject({ status: 422 });
  });

  it.skipIf(process.env.ABSENT_PROGRAMS?.includes("strace"))(
    "has its memory on disk before it answers (needs strace)",
    async () => {
      const trace = join(dir, "trace");
      const traced = [
        "strace",
        "-I",
        "2",
        "-f",
        "-y",
        "-s",
        "32",
        "-e",
        "trace=fsync,fdatasync,write,writev,sendto",
        "-o",
        trace,
      ];
      witness = await openOwnWitness(join(dir, "data"), [vkey], undefined, "127.0.0.1:0", traced);
      try {
        for (const [old, size] of [
          [0, 5],
          [5, 6],
          [6, 7],
        ] as const)
          expect(await post(witness.url, await requestFor(old, size))).toMatchObject({ status: 200 });
      } finally {
        await witness.stop(); // strace passes it on, which it could not do with a SIGKILL
      }
      const calls = readFileSync(trace, "utf8")
        .split("\n")
        .filter((line) => /HTTP\/1\.1 200|sync\(.*witness\.db-wal/.test(line));
      const kinds = calls.map((line) => (line.includes("HTTP/1.1 200") ? "answered" : "on disk"));
      const answers = kinds.flatMap((kind, at) => (kind === "answered" ? [at] : []));
      expect(answers).toHaveLength(3);
      for (const at of answers) expect(kinds[at - 1]).toBe("on disk");
    },
  );

  it("serves its last checkpoint to monitors, and nothing else to anybody", async () => {
    const { url } = await start();
    const monitored = `${url}${hash("sha256", origin)}/checkpoint`;
    expect((await fetch(monitored)).status).toBe(404);
    const { body } = await post(url, await requestFor(0, 7));
    const response = await fetch(monitored);
    expect(response.status).toBe(200);
    expect(await response.text()).toBe(`${checkpointAt(7)}${body}`);
    expect((await fetch(monitored, { method: "POST" })).status).toBe(405);
    expect((await fetch(`${url}add-checkpoint`)).status).toBe(405);
    for (const path of ["", "checkpoint", "add-checkpoint/", "keys/cosigner", "sign-subtree"])
      expect((await fetch(`${url}${path}`, { method: "POST", body: "x" })).status, path).toBe(404);
  });

  it("reads no more than a request may have, and does not wait for ever for what does not come", async () => {
    const { url } = await start();
    expect((await post(url, "x".repeat(65_537))).status).toBe(413);
    expect((await post(url, `${await requestFor(0, 5)}${"x".repeat(60_000)}`)).status).toBe(400);
    const { hostname, port } = new URL(url);
    const slow = connect(Number(port), hostname);
    slow.write("POST /add-checkpoint HTTP/1.1\r\nhost: w\r\ncontent-length: 100\r\n\r\nold 0");
    const [ended] = (await once(slow, "data")) as [Buffer];
    expect(String(ended)).toContain(" 408 ");
    slow.destroy();
  });

  it("says nothing of requests that break off", async () => {
    const lines: string[] = [];
    const server = await openWitnessServer(
      {
        logs: new Map(),
        state: openWitnessState(dir, (text) => hash("sha256", text)),
        cosignerAt: (seconds) => noteCosigner("w", privateKey, seconds),
        now: () => 0,
        log: openLog({ service: "test", level: "info", write: (line) => void lines.push(line) }),
      },
      { host: "127.0.0.1", port: 0 },
    );
    const { hostname, port } = new URL(server.url);
    for (let i = 0; i < 20; i += 1) {
      const broken = connect(Number(port), hostname);
      await once(broken, "connect");
      broken.write("POST /add-checkpoint HTTP/1.1\r\nhost: w\r\ncontent-length: 100\r\n\r\nold 0", () =>
        broken.resetAndDestroy(),
      );
      await once(broken, "close");
    }
    expect(await post(server.url, "")).toMatchObject({ status: 400 });
    await server.close();
    expect(lines).toEqual([]);
  });

  it("cosigns nothing while its clock stands far behind, and goes on when it is right", async () => {
    let nowMs = 1_795_000_000_000;
    const key = generateKeyPairSync("ed25519").privateKey;
    const lines: string[] = [];
    const server = await openWitnessServer(
      {
        logs: new Map([[origin, [parseVerifierKey(vkey)]]]),
        state: openWitnessState(dir, (text) => hash("sha256", text)),
        cosignerAt: (seconds) => noteCosigner("w", key, seconds),
        now: () => nowMs,
        log: openLog({ service: "test", level: "error", write: (line) => void lines.push(line) }),
      },
      { host: "127.0.0.1", port: 0 },
    );
    const secondsOf = ({ body }: { body: string }) =>
      cosignatureSeconds(Buffer.from(body.trim().split(" ")[2] ?? "", "base64").subarray(4));
    expect(secondsOf(await post(server.url, await requestFor(0, 5)))).toBe(1_795_000_000);
    nowMs -= 30_000;
    expect(secondsOf(await post(server.url, await requestFor(5, 6)))).toBe(1_795_000_000);
    nowMs -= 3_600_000;
    expect(await post(server.url, await requestFor(6, 7))).toMatchObject({ status: 503 });
    expect(lines.join("")).toContain("the clock of this witness stands before its last cosignature");
    nowMs += 7_200_000;
    expect(secondsOf(await post(server.url, await requestFor(6, 7)))).toBe(1_795_003_570);
    // A fork is worth a line that others can check.
    expect(await post(server.url, await requestFor(7, 7, fork))).toMatchObject({ status: 422 });
    expect(lines.join("")).toContain("the log has signed two roots of one size");
    await server.close();
  });
});
