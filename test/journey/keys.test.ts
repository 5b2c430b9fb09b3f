import { randomUUID } from "node:crypto";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Delivery } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import { Action, Reason } from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import { IssuerService } from "@curfew/contracts/gen/curfew/issuer/v1/issuer_pb.ts";
import { VerifierService } from "@curfew/contracts/gen/curfew/verifier/v1/verifier_pb.ts";
import { openCheckpoint } from "@curfew/ledger/checkpoint.ts";
import { parseVerifierKey } from "@curfew/ledger/note-key.ts";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { type Cast, openCast } from "./cast.ts";
import { type Program, readEndpoints, startProgram, startSuite } from "./suite-process.ts";

/** Keys rotate by command, beside a suite that issues and verifies all the while. */
let dir: string;
let suite: Program;
let cast: Cast;
/** Made under the first pepper. */
let before: Issued;
const patient = { timeout: 60_000, interval: 100 };

const policy = `
rules:
  - { name: all, subjects: [workload/crm], scopes: [a:read], resources: [a], audiences: [invoices], purposes: [p], binding: none, delivery: [direct] }
`;
const grant = { scopes: ["a:read"], resources: ["a"], audiences: ["invoices"], purposes: ["p"] };
const data = () => join(dir, "data");

const curfew = async (...args: string[]) => {
  const program = startProgram("packages/cli/main.ts", [...args], { env: { CURFEW_DATA_DIR: data() } });
  const { code } = await program.ended;
  return { code, out: program.out, err: program.err };
};
const json = async (...args: string[]) => {
  const { code, out, err } = await curfew(...args, "-o", "json");
  expect({ code, err: code === 0 ? "" : err }).toEqual({ code: 0, err: "" });
  return JSON.parse(out);
};
const keysOf = async (kind: string): Promise<{ key: string; state: string; verifierKey: string }[]> =>
  (await json("keys", "list")).filter((row: { kind: string }) => row.kind === kind);
const published = () => readFileSync(join(data(), "ledger", String(new Date().getUTCFullYear()), "checkpoint"), "utf8");
const opens = (verifierKey: string) => {
  try {
    return openCheckpoint(published(), parseVerifierKey(verifierKey)).size > 0;
  } catch {
    return false;
  }
};

const use = {
  scope: "a:read",
  resource: "a",
  purpose: "p",
  controller: "acme",
  maxPeople: 0n,
  maxRecords: 1n,
  action: Action.READ,
};
const issue = async () => {
  const issuer = cast.client(IssuerService, "issuer", "workload/crm");
  for (;;) {
    const { secret, position } = await issuer.createToken({
      requestId: randomUUID(),
      grant,
      delivery: Delivery.DIRECT,
    });
    // Not there within a second: the machine is busy, and the verifiers cannot know it yet.
    if (position) return { secret, position };
  }
};
type Issued = Awaited<ReturnType<typeof issue>>;
const verdictOn = async ({ secret, position }: Issued): Promise<Reason> => {
  const verifier = cast.client(VerifierService, "verifier", "workload/invoices");
  for (;;) {
    const credential = { case: "secret", value: secret } as const;
    const { reason } = await verifier.verifyToken({ credential, use, atLeast: [position] });
    if (reason !== Reason.STALE_VERIFIER) return reason;
  }
};

/** Issues and verifies until stopped; answers what was not OK. */
const traffic = () => {
  const stop = new AbortController();
  const odd: unknown[] = [];
  let done = 0;
  const work = async () => {
    while (!stop.signal.aborted) {
      try {
        const reason = await verdictOn(await issue());
        if (reason !== Reason.OK) odd.push(reason);
      } catch (error) {
        odd.push(error);
      }
      done += 1;
    }
  };
  const working = Promise.all([work(), work()]);
  return {
    async more() {
      const from = done;
      await vi.waitFor(() => expect(done).toBeGreaterThan(from + 10), patient);
    },
    async stop() {
      stop.abort();
      await working;
      return odd;
    },
  };
};

beforeAll(async () => {
  dir = mkdtempSync(join(tmpdir(), "curfew-keys-"));
  suite = startSuite(data());
  await suite.until("ready");
  cast = openCast(() => readEndpoints(data()), data());
  const admin = cast.client(IssuerService, "issuer", "person/ada");
  await admin.publishPolicy({ requestId: randomUUID(), policy: "all", document: policy });
}, 120_000);
afterAll(async () => {
  await cast.close();
  suite.child.kill("SIGTERM");
  await suite.ended;
  rmSync(dir, { recursive: true, force: true });
});

describe("curfew keys", { timeout: 240_000 }, () => {
  it("rotates pepper, ledger key and people's key under traffic; nothing is refused, and what was made before stays good", async () => {
    const running = traffic();
    before = await issue();
    await running.more();
    const [old] = await keysOf("ledger");
    expect(await keysOf("pepper")).toEqual([{ kind: "pepper", key: "p1", state: "for new tokens" }]);

    expect(await json("keys", "rotate", "pepper")).toMatchObject({ kind: "pepper", key: "p2" });
    await vi.waitFor(async () => expect((await keysOf("pepper"))[0]?.state).toBe("for new tokens"), patient);
    await running.more();
    expect(await verdictOn(before)).toBe(Reason.OK);

    const { verifierKey } = await json("keys", "rotate", "ledger");
    await vi.waitFor(() => expect([opens(verifierKey), opens(old?.verifierKey ?? "")]).toEqual([true, true]), patient);
    const again = await curfew("keys", "rotate", "kek");
    expect(again).toMatchObject({ code: 0, err: expect.stringContaining("destroys key 1") });
    await running.more();
    expect(await verdictOn(await issue())).toBe(Reason.OK);
    expect(await running.stop()).toEqual([]);
  });

  it("tells which is which, and verifies the ledger by either key until the old one is retired, and by the new one for ever", async () => {
    const [old, next] = await keysOf("ledger");
    expect(next?.state).toMatch(/^signs every tree of more than \d+ entries$/);
    expect(old?.state).toBe("signs beside it");
    const ledger = join(data(), "ledger");
    for (const key of [old, next])
      expect(await curfew("verify", ledger, "--key", key?.verifierKey ?? "")).toMatchObject({ code: 0 });
    expect(await curfew("keys", "retire", "ledger")).toMatchObject({ code: 0 });
    expect(await curfew("keys", "retire", "ledger")).toMatchObject({ code: 3 });
    await vi.waitFor(async () => {
      await issue();
      expect([opens(next?.verifierKey ?? ""), opens(old?.verifierKey ?? "")]).toEqual([true, false]);
    }, patient);
    expect(await curfew("verify", ledger, "--key", next?.verifierKey ?? "")).toMatchObject({ code: 0 });
    expect((await curfew("verify", ledger, "--key", old?.verifierKey ?? "")).code).not.toBe(0);
    expect(readdirSync(join(data(), "keys")).filter((name) => /^signing-.*\.key$/.test(name))).toHaveLength(1);
  });

  it("a new start has all of it; a retired pepper makes what it hashed unknown", async () => {
    const kept = await issue();
    suite.child.kill("SIGTERM");
    expect(await suite.ended).toMatchObject({ code: 0 });
    suite = startSuite(data());
    await suite.until("ready");
    await cast.close();
    cast = openCast(() => readEndpoints(data()), data());
    expect(await verdictOn(kept)).toBe(Reason.OK);
    expect(await curfew("keys", "retire", "pepper", "p2")).toMatchObject({
      code: 3,
      err: expect.stringContaining("in use"),
    });
    expect(await json("keys", "retire", "pepper", "p1")).toMatchObject({ retired: "p1" });
    await vi.waitFor(async () => expect(await verdictOn(before)).toBe(Reason.UNKNOWN), patient);
    expect(await verdictOn(kept)).toBe(Reason.OK);
    expect((await keysOf("ledger")).map(({ state }) => state.split(" ")[0])).toEqual(["retired:", "signs"]);
    expect((await curfew("audit", "health", "--as", "person/dana")).code).toBe(0);
  });

  it.each([
    [["keys", "rotate", "tls"], 2, "one of ledger, pepper, kek"],
    [["keys", "retire", "kek"], 2, "retire ledger, or retire pepper ID"],
    [["keys", "list", "--keys", "nowhere"], 2, "there is no"],
    [["keys", "retire", "pepper", "p9"], 3, "p9 is not a live pepper"],
  ])("refuses %j", async (args, code, text) => {
    expect(await curfew(...(args as string[]))).toMatchObject({ code, err: expect.stringContaining(text as string) });
  });
});
