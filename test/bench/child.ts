import { type ChildProcess, fork } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import { createIdentitySource } from "@curfew/rpc/credentials.ts";
import type { IssuedCertificate } from "@curfew/rpc/identity-authority.ts";

/** The other side of a benchmark in a process of its own, asked over the process channel. */

export type ServiceName = "issuer" | "revocation" | "verifier";

export interface ServerSettings {
  readonly services: readonly ServiceName[];
  /** Live tokens on the log before the services read it. */
  readonly tokens: number;
  readonly evidence: "before-use" | "batched";
}

/** CPU since the last question, ms: of the thread that serves, and of all threads. */
export interface CpuMs {
  readonly main: number;
  readonly all: number;
}

export interface Questions {
  ports(): Record<ServiceName | "echo", number>;
  trust(): { readonly caPem: string; readonly trustDomain: string };
  identity(path: string): IssuedCertificate;
  secrets(): string[];
  tokenIds(): string[];
  cpu(): CpuMs;
  /** Uses on the log, and those of which it says what they touched. */
  uses(): { decided: number; ended: number };
  /** Transactions of the database that the services write, each one fsync. */
  commits(): number;
  profile(file: string | undefined): void;
}

export type Asked = {
  readonly [K in keyof Questions]: (...args: Parameters<Questions[K]>) => Promise<ReturnType<Questions[K]>>;
};

export interface Child extends Asked {
  readonly address: (service: ServiceName | "echo") => Promise<string>;
  /** What a client of ours needs to reach a service as `path`, e.g. "workload/crm". */
  connection(path: string): Promise<{
    readonly identity: ReturnType<typeof createIdentitySource>;
    readonly caPem: string;
    readonly trustDomain: string;
  }>;
  close(): Promise<void>;
}

interface Answer {
  readonly id: number;
  readonly value?: unknown;
  readonly error?: string;
}

/** Starts `file` (beside this one) with its settings as the only argument; resolves when it is ready. */
export const openChild = async (file: string, settings: object): Promise<Child> => {
  const child: ChildProcess = fork(fileURLToPath(new URL(file, import.meta.url)), [JSON.stringify(settings)], {
    execArgv: process.execArgv,
    stdio: ["ignore", "inherit", "inherit", "ipc"],
  });
  const waiting = new Map<number, PromiseWithResolvers<never>>();
  const gone = once(child, "exit").then(([code]) => {
    for (const each of waiting.values()) each.reject(new Error(`${file} ended with ${code}`));
  });
  child.on("message", ({ id, value, error }: Answer) => {
    const asked = waiting.get(id);
    waiting.delete(id);
    if (error === undefined) asked?.resolve(value as never);
    else asked?.reject(new Error(error));
  });
  let last = 0;
  const ask = (name: string, args: unknown[]): Promise<never> => {
    const asked = Promise.withResolvers<never>();
    last += 1;
    waiting.set(last, asked);
    child.send({ id: last, name, args });
    return asked.promise;
  };
  // A promise looks whether it has a `then`: that is no question.
  const get = (_: Asked, name: string | symbol) =>
    name === "then" ? undefined : (...args: unknown[]) => ask(String(name), args);
  const asked = new Proxy({} as Asked, { get });
  await ask("ready", []);
  return Object.assign(Object.create(asked) as Asked, {
    address: async (service: ServiceName | "echo") => `localhost:${(await asked.ports())[service]}`,
    connection: async (path: string) => ({
      ...(await asked.trust()),
      identity: createIdentitySource(await asked.identity(path)),
    }),
    close: async () => {
      void ask("close", []).catch(() => undefined);
      await gone;
    },
  }) as Child;
};

/** In the child: answers the questions; `close` ends the process. */
export const answer = (
  questions: Partial<{ [K in keyof Questions]: (...args: never[]) => unknown }>,
  close: () => Promise<void>,
) => {
  const all: Record<string, (...args: never[]) => unknown> = { ready: () => true, ...questions };
  process.on("message", async ({ id, name, args }: { id: number; name: string; args: never[] }) => {
    if (name === "close") {
      await close();
      process.exit(0);
    }
    try {
      process.send?.({ id, value: await all[name]?.(...args) });
    } catch (error) {
      process.send?.({ id, error: String(error) });
    }
  });
};
