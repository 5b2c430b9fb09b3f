import { type ChildProcessWithoutNullStreams, spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { denialReason } from "@curfew/client/denied.ts";
import { Reason } from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import { VerifierService } from "@curfew/contracts/gen/curfew/verifier/v1/verifier_pb.ts";
import type { Endpoints } from "@curfew/deploy/installation.ts";
import type { Cast } from "../journey/cast.ts";
import type { SdkSettings } from "./sdk-process.ts";

/** Somebody who is asked whether a secret is good: a verifier, or a resource service with the SDK. "ALLOWED", or why not. */
export type Respondent = (secret: string) => Promise<string>;

export interface Reply {
  readonly who: string;
  /** Read before the request is sent, ms since the epoch: the machine's clock is revocation's too. */
  readonly sentMs: number;
  readonly outcome: string;
}

const askEveryMs = 40;
const maxOutstanding = 1_000;
const verifierDeadlineMs = 60_000;

const use = {
  ...{ scope: "invoices:read", resource: "invoices/7", purpose: "billing", controller: "acme" },
  ...{ dataCategories: ["contact"], maxPeople: 1n, maxRecords: 1n },
};

export const verifierRespondent = (cast: Cast, name: string): Respondent => {
  const client = cast.client(VerifierService, name, "workload/invoices");
  return async (secret) => {
    const credential = { case: "secret" as const, value: secret };
    const { allowed, reason } = await client.verifyToken({ credential, use }, { deadlineMs: verifierDeadlineMs });
    return allowed ? "ALLOWED" : denialReason(reason === Reason.UNSPECIFIED ? Reason.STALE_VERIFIER : reason);
  };
};

export interface SdkProcess {
  readonly ask: Respondent;
  readonly pid: number;
  pause(): void;
  resume(): void;
  /** SIGKILL, and waits for the end. */
  kill(): Promise<void>;
}

/** Starts `sdk-process.ts` as workload/invoices; resolves once its SDK is live. */
export const openSdkProcess = async (endpoints: Endpoints, cast: Cast): Promise<SdkProcess> => {
  const own = endpoints.identities["workload/invoices"];
  if (!own) throw new Error("workload/invoices has no identity");
  const settings: SdkSettings = {
    verifier: cast.replicas("verifier"),
    revocation: cast.replicas("revocation"),
    ...own,
    ca: endpoints.ca,
    trustDomain: endpoints.trustDomain,
  };
  const main = fileURLToPath(new URL("sdk-process.ts", import.meta.url));
  const child: ChildProcessWithoutNullStreams = spawn(process.execPath, [main, JSON.stringify(settings)]);
  child.stdin.on("error", () => undefined); // a killed process takes no more requests
  child.stderr.resume();
  const waiting = new Map<number, (outcome: string) => void>();
  const ready = Promise.withResolvers<void>();
  createInterface({ input: child.stdout }).on("line", (line) => {
    const { n, outcome } = JSON.parse(line) as { n?: number; outcome?: string };
    if (n === undefined) return ready.resolve();
    waiting.get(n)?.(outcome ?? "");
    waiting.delete(n);
  });
  child.once("exit", (code, signal) => {
    ready.reject(new Error(`the SDK's process ended with ${signal ?? code}`));
    for (const answer of waiting.values()) answer("GONE");
  });
  await ready.promise;
  let n = 0;
  return {
    ask: (secret) =>
      new Promise((resolve) => {
        n += 1;
        waiting.set(n, resolve);
        child.stdin.write(`${JSON.stringify({ n, secret })}\n`);
      }),
    pid: child.pid ?? 0,
    pause: () => void child.kill("SIGSTOP"),
    resume: () => void child.kill("SIGCONT"),
    async kill() {
      if (child.exitCode !== null || child.signalCode !== null) return;
      const ended = once(child, "exit");
      child.kill("SIGKILL");
      await ended;
    },
  };
};

/** An outside client: asks everybody all the time, answers outstanding or not, and notes when each question went out. */
export const openJudge = (secret: string, respondents: Readonly<Record<string, Respondent>>) => {
  const replies: Reply[] = [];
  const stop = new AbortController();
  let outstanding = 0;
  const ask = async (who: string, respond: Respondent) => {
    outstanding += 1;
    const sentMs = Date.now();
    const outcome = await respond(secret).catch((error: Error) => `ERROR ${error.message}`);
    outstanding -= 1;
    replies.push({ who, sentMs, outcome });
  };
  const asking = (async () => {
    while (!stop.signal.aborted) {
      if (outstanding < maxOutstanding)
        for (const [who, respond] of Object.entries(respondents)) void ask(who, respond);
      await sleep(askEveryMs);
    }
  })();
  return {
    replies,
    outstanding: () => outstanding,
    /** Replies to questions that went out after `fromMs`. */
    after: (fromMs: number) => replies.filter(({ sentMs }) => sentMs > fromMs),
    /** Those who have allowed, of `replies`. */
    allowing: (of: readonly Reply[]) => of.filter(({ outcome }) => outcome === "ALLOWED"),
    async stop() {
      stop.abort();
      await asking;
    },
  };
};
