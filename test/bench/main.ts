import { spawn } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { type Figure, printed } from "./figures.ts";

const usage = `npm run bench -- [--quick] [--live] [--fsync-ms N] [NAME…]

  unary         VerifyToken, its use durable before the answer / a raw grpc-js echo
  local         decisions of one SDK from its cache, every use flushed to a durable bus
  revocation    from a commit to the last of all watching clients refusing; with --live through Kafka as well
  create        CreateToken acknowledged / SQLite inserts of the same bytes, one commit each
  memory        a verifier's memory per live token
  start         warm npm start to ready
  ledger        sealing, growth and curfew verify / bare SHA-256; merge delay, with --live through Kafka as well
  bundle        an evidence bundle of 10,000 entries out of 1,000,000, made and verified

--fsync-ms N: as on a disk whose fsync takes N ms longer (strace delays it), for ours and for the peer alike.
`;

interface Options {
  readonly quick: boolean;
  readonly live: boolean;
}

/** Loaded when run: each in a process of its own. */
const benches: Record<string, () => Promise<(options: Options) => Promise<Figure[]>>> = {
  start: async () => (await import("./start.ts")).start,
  memory: async () => (await import("./memory.ts")).memory,
  revocation: async () => (await import("./revocation.ts")).revocation,
  local: async () => (await import("./local-verification.ts")).localVerification,
  create: async () => (await import("./create-token.ts")).createToken,
  ledger: async () => (await import("./ledger.ts")).ledger,
  bundle: async () => (await import("./bundle.ts")).bundle,
  unary: async () => (await import("./unary.ts")).unary,
};

const refuse = (why: string): never => {
  process.stderr.write(`${why}\n\n${usage}`);
  process.exit(2);
};

const readArguments = () => {
  try {
    const { values, positionals } = parseArgs({
      allowPositionals: true,
      options: {
        quick: { type: "boolean", default: false },
        live: { type: "boolean", default: false },
        "fsync-ms": { type: "string", default: "0" },
        alone: { type: "boolean", default: false },
        help: { type: "boolean", default: false },
      },
    });
    if (values.help) {
      process.stdout.write(usage);
      process.exit(0);
    }
    const unknown = positionals.find((name) => !Object.hasOwn(benches, name));
    if (unknown !== undefined) refuse(`there is no benchmark "${unknown}"`);
    const fsyncMs = Number(values["fsync-ms"]);
    if (!(fsyncMs >= 0 && fsyncMs <= 1_000)) refuse("--fsync-ms: a number from 0 to 1000");
    return { ...values, fsyncMs, names: positionals.length > 0 ? positionals : Object.keys(benches) };
  } catch (error) {
    return refuse((error as Error).message);
  }
};

const { names, quick, live, alone, fsyncMs } = readArguments();
const calls = "fdatasync,fsync";
const slowDisk = ["strace", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "-e", `trace=${calls}`];
const slowly = fsyncMs > 0 ? [...slowDisk, "-e", `inject=${calls}:delay_exit=${Math.round(fsyncMs * 1_000)}`] : [];
if (alone) {
  for (const name of names) {
    const figures = await (await benches[name]?.())?.({ quick, live });
    for (const figure of figures ?? []) process.stdout.write(`${printed(figure)}\n`);
  }
  process.exit(0);
}
let failed = 0;
for (const name of names) {
  process.stdout.write(`\n${name}\n`);
  const flags = [...(quick ? ["--quick"] : []), ...(live ? ["--live"] : [])];
  const own = [process.execPath, ...process.execArgv, fileURLToPath(import.meta.url), "--alone", ...flags, name];
  const [command = "", ...args] = [...slowly, ...own];
  const [code] = await once(spawn(command, args, { stdio: "inherit" }), "exit");
  if (code === 0) continue;
  failed += 1;
  process.stdout.write(`${name}: FAILED with ${code}\n`);
}
process.exit(failed === 0 ? 0 : 1);
