import { execFileSync, spawnSync } from "node:child_process";
import { randomUUID } from "node:crypto";
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { Delivery } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import type { UseDecided } from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import { IssuerService } from "@curfew/contracts/gen/curfew/issuer/v1/issuer_pb.ts";
import { VerifierService } from "@curfew/contracts/gen/curfew/verifier/v1/verifier_pb.ts";
import { Health, HealthCheckResponse_ServingStatus as Status } from "@curfew/contracts/gen/grpc/health/v1/health_pb.ts";
import { readEvent } from "@curfew/event-log/envelope.ts";
import { siemTopic } from "@curfew/event-log/event-types.ts";
import { parseRpcError } from "@curfew/rpc/errors.ts";
import { afterEach, expect, test, vi } from "vitest";
import { type Cast, openCast } from "./cast.ts";
import { readSqliteBus } from "./places.ts";
import { type Program, readEndpoints, startSuite } from "./suite-process.ts";

/** The embedded suite as a whole on a disk that fills up while commands and uses flow. */

const closers: (() => unknown)[] = [];
const keep = (program: Program) => {
  closers.push(async () => {
    program.child.kill("SIGKILL");
    await program.ended;
  });
  return program;
};
afterEach(async () => {
  for (const close of closers.splice(0).toReversed()) await close();
});

interface Disk {
  readonly dir: string;
  readonly prefix: readonly string[];
  giveBack(pid: number): void;
}
const folder = () => {
  const dir = mkdtempSync(join(tmpdir(), "curfew-disk-"));
  closers.push(() => rmSync(dir, { recursive: true, force: true }));
  return dir;
};
const limitBlocks = 3 * 1024; // of 512 bytes
/** No file may grow past 1.5 MiB: a soft limit that can be lifted while the process runs. Anybody may. */
const limitedFiles = (): Disk => ({
  dir: folder(),
  prefix: ["sh", "-c", `ulimit -S -f ${limitBlocks}; exec "$@"`, "sh"],
  giveBack: (pid) => void execFileSync("prlimit", ["--pid", String(pid), "--fsize=unlimited"]),
});
/** A file system of 8 MiB of its own; only where mounting is allowed. */
const smallFileSystem = (): Disk => {
  const dir = folder();
  execFileSync("mount", ["-t", "tmpfs", "-o", "size=8m", "tmpfs", dir]);
  closers.push(() => execFileSync("umount", [dir]));
  return { dir, prefix: [], giveBack: () => void execFileSync("mount", ["-o", "remount,size=1g", dir]) };
};
const canMount = () => {
  const dir = mkdtempSync(join(tmpdir(), "curfew-mount-"));
  const done = spawnSync("mount", ["-t", "tmpfs", "-o", "size=1m", "tmpfs", dir]).status === 0;
  if (done) execFileSync("umount", [dir]);
  rmSync(dir, { recursive: true, force: true });
  return done;
};
const disks: [string, () => Disk][] = [["no file may grow", limitedFiles]];
if (canMount()) disks.push(["the file system is full", smallFileSystem]);

const policy = `
rules:
  - { name: all, subjects: [workload/crm], scopes: [invoices:read], resources: ["invoices/**"], audiences: [invoices], purposes: [p], binding: none, delivery: [direct] }
`;
/** A grant of about 6 kB: the disk fills in seconds. */
const resources = ["invoices/1", ...Array.from({ length: 40 }, (_, n) => `invoices/${String(n).padStart(140, "x")}`)];
const grant = { scopes: ["invoices:read"], resources, audiences: ["invoices"], purposes: ["p"] };
const use = { scope: "invoices:read", resource: "invoices/1", purpose: "p", controller: "acme" };
const issuers = 16;
const verifiers = 4;

/** Creates tokens and uses one until stopped; remembers what was acknowledged, and how the rest was refused. */
const openLoad = async (cast: Cast) => {
  const acknowledged = { tokens: new Set<string>(), uses: new Set<string>() };
  const refusals = { commands: new Map<string, number>(), uses: new Map<string, number>() };
  const issuer = cast.client(IssuerService, "issuer", "workload/crm");
  const verifier = cast.client(VerifierService, "verifier", "workload/invoices");
  const create = () => issuer.createToken({ requestId: randomUUID(), grant, delivery: Delivery.DIRECT });
  const { secret } = await create();
  const stop = new AbortController();
  const refused = async (counts: Map<string, number>, status: string) => {
    counts.set(status, (counts.get(status) ?? 0) + 1);
    await sleep(20);
  };
  const issuing = async () => {
    while (!stop.signal.aborted)
      await create().then(
        ({ token }) => acknowledged.tokens.add(token?.tokenId as string),
        (error) => refused(refusals.commands, parseRpcError(error).status),
      );
  };
  const verifying = async () => {
    const request = {
      credential: { case: "secret", value: secret },
      use: { ...use, maxPeople: 1n, maxRecords: 1n },
    } as const;
    while (!stop.signal.aborted)
      await verifier.verifyToken(request).then(
        async ({ allowed, useId, reason }) => {
          if (allowed) acknowledged.uses.add(useId);
          else await refused(refusals.uses, `denied ${reason}`);
        },
        (error) => refused(refusals.uses, parseRpcError(error).status),
      );
  };
  const working = Promise.all([
    ...Array.from({ length: issuers }, issuing),
    ...Array.from({ length: verifiers }, verifying),
  ]);
  return {
    acknowledged,
    refusals,
    async stop() {
      stop.abort();
      await working;
    },
  };
};

const waits = { timeout: 90_000, interval: 100 };
const castOf = (dataDir: string) => {
  const cast = openCast(() => readEndpoints(dataDir), dataDir);
  closers.push(() => cast.close());
  return cast;
};
/** Of the commands, which need the database alone, or of the whole server. */
const healthOf = async (cast: Cast, server: string, service: string) => {
  const { status } = await cast.client(Health, server, "person/ada").check({ service });
  return status;
};

/** Tokens and uses that stand on the topics. */
const published = async (dataDir: string) => {
  const [tokens, uses] = [new Set<string>(), new Set<string>()];
  await readSqliteBus(join(dataDir, "bus.db"), (record) => {
    if (record.topic === siemTopic) return; // JSON
    const { subject, message } = readEvent(record);
    if (subject.startsWith("tokens/")) tokens.add(subject.slice("tokens/".length));
    if (message.$typeName === "curfew.events.v1.UseDecided") uses.add((message as UseDecided).useId);
  });
  return { tokens, uses };
};

test.each(disks)(
  "a disk that is full (%s): refuses loudly, says so, goes on with new space, and loses nothing acknowledged",
  { timeout: 300_000 },
  async (name, open) => {
    const disk = open();
    const dataDir = join(disk.dir, "data");
    mkdirSync(dataDir, { mode: 0o700 });
    const program = keep(startSuite(dataDir, { prefix: disk.prefix }));
    await program.until("ready");
    const cast = castOf(dataDir);
    const admin = cast.client(IssuerService, "issuer", "person/ada");
    await admin.publishPolicy({ requestId: randomUUID(), policy: "all", document: policy });
    const load = await openLoad(cast);
    closers.push(() => load.stop());

    await vi.waitFor(() => expect([...load.refusals.commands.keys()]).toContain("UNAVAILABLE"), waits);
    await vi.waitFor(() => expect(load.refusals.uses.size).toBeGreaterThan(0), waits);
    await vi.waitFor(
      async () => expect(await healthOf(cast, "issuer", IssuerService.typeName)).toBe(Status.NOT_SERVING),
      waits,
    );
    await vi.waitFor(async () => expect(await healthOf(cast, "verifier", "")).toBe(Status.NOT_SERVING), waits);
    expect(load.acknowledged.tokens.size).toBeGreaterThan(20);
    expect(load.acknowledged.uses.size).toBeGreaterThan(0);

    const before = { tokens: load.acknowledged.tokens.size, uses: load.acknowledged.uses.size };
    disk.giveBack(program.child.pid as number);
    await vi.waitFor(
      async () => expect(await healthOf(cast, "issuer", IssuerService.typeName)).toBe(Status.SERVING),
      waits,
    );
    await vi.waitFor(() => expect(load.acknowledged.tokens.size).toBeGreaterThan(before.tokens), waits);
    await vi.waitFor(() => expect(load.acknowledged.uses.size).toBeGreaterThan(before.uses), waits);
    await load.stop();
    expect([...load.refusals.commands.keys()].filter((s) => !/^(UNAVAILABLE|DEADLINE_EXCEEDED)$/.test(s))).toEqual([]);

    console.log(`${name}: refused`, load.refusals, "acknowledged", before, "then", load.acknowledged.tokens.size);
    program.child.kill("SIGKILL");
    await program.ended;
    await keep(startSuite(dataDir)).until("ready");
    const { tokens, uses } = load.acknowledged;
    await vi.waitFor(async () => {
      const found = await published(dataDir);
      const missing = [...tokens]
        .filter((id) => !found.tokens.has(id))
        .concat([...uses].filter((id) => !found.uses.has(id)));
      expect(missing).toEqual([]);
    }, waits);
  },
);
