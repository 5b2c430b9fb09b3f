import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { MAX_ADD_CHECKPOINT_BYTES } from "@curfew/ledger/add-checkpoint.ts";
import type { NoteSigner } from "@curfew/ledger/note-key.ts";
import {
  cosign,
  decideCosigning,
  isRefusal,
  type Refusal,
  readSubmission,
  type Submission,
  signedByLog,
  type WitnessedLogs,
} from "@curfew/ledger/witness.ts";
import type { Log } from "@curfew/runtime/log.ts";
import type { WitnessState } from "./witness-state.ts";

/** A witness over plain HTTP (c2sp.org/tlog-witness): `POST /add-checkpoint`, and `GET /<SHA-256 of the origin>/checkpoint` for monitors. */
export interface WitnessServer {
  /** `http://<host>:<port>/` */
  readonly url: string;
  /** Answers what was asked before, and nothing more. */
  close(): Promise<void>;
}

export interface WitnessParts {
  readonly logs: WitnessedLogs;
  readonly state: WitnessState;
  /** Cosigns at a time, in POSIX seconds. */
  readonly cosignerAt: (seconds: number) => NoteSigner;
  readonly now: () => number;
  readonly log: Pick<Log, "info" | "warn" | "error">;
}

const maxConnections = 256;
/** For a request to come whole. */
const requestLimitMs = 10_000;
const idleLimitMs = 5_000;
const checkEveryMs = 1_000;

type Answer = { readonly status: number; readonly body: string; readonly headers?: Readonly<Record<string, string>> };

const refusalAnswer = ({ status, said, size }: Refusal): Answer =>
  status === 409
    ? { status, body: `${size}\n`, headers: { "content-type": "text/x.tlog.size" } }
    : { status, body: `${said}\n` };

/** Lines that the misbehaviour of logs may fill. */
const maxReports = 1_000;

/** Says what is worth a line, once: strangers can show it again without end. */
const openReports = (log: WitnessParts["log"]) => {
  const said = new Set<string>();
  return (submission: Submission, { isFork, status, said: why }: Refusal): void => {
    const { origin, size } = submission.claimed;
    if (!isFork && status !== 503) return;
    const signed = signedByLog(submission);
    const what = isFork ? signed : why;
    if (said.size >= maxReports || said.has(what)) return;
    said.add(what);
    // Signed by the log's own key: whoever has this line, and the checkpoint that was cosigned, can show both to others.
    if (isFork) log.error({ origin, size, signed }, "the log has signed two roots of one size");
    else log.error({ origin }, why);
  };
};

type Parts = WitnessParts & { readonly report: ReturnType<typeof openReports> };

/** The answer to the body of an add-checkpoint request; what it says is cosigned is on disk. */
const addCheckpoint = ({ logs, state, cosignerAt, now, log, report }: Parts, body: Uint8Array): Answer => {
  const submission = readSubmission(body, logs);
  if (isRefusal(submission)) return refusalAnswer(submission);
  const { origin, size } = submission.claimed;
  const answer = state.update(origin, (before) => {
    const decision = decideCosigning(submission, before, Math.floor(now() / 1_000));
    return isRefusal(decision) ? decision : { ...decision, ...cosign(submission, cosignerAt(decision.seconds)) };
  });
  if (isRefusal(answer)) {
    report(submission, answer);
    return refusalAnswer(answer);
  }
  log.info({ origin, size }, "cosigned");
  return { status: 200, body: answer.line };
};

const readBody = async (request: IncomingMessage): Promise<Buffer | undefined> => {
  const parts: Buffer[] = [];
  let size = 0;
  for await (const part of request.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
    size += part.length;
    if (size > MAX_ADD_CHECKPOINT_BYTES) return undefined;
    parts.push(part);
  }
  return Buffer.concat(parts);
};

const monitorPath = /^\/([0-9a-f]{64})\/checkpoint$/;
const notFound: Answer = { status: 404, body: "there is /add-checkpoint, and /<hash of an origin>/checkpoint\n" };
const wrongMethod = (allow: string): Answer => ({ status: 405, body: `${allow} only\n`, headers: { allow } });
const tooLarge: Answer = {
  status: 413,
  body: `a request has at most ${MAX_ADD_CHECKPOINT_BYTES} bytes\n`,
  headers: { connection: "close" },
};

const answerTo = async (parts: Parts, request: IncomingMessage): Promise<Answer> => {
  const { method, url = "" } = request;
  const [, hash] = monitorPath.exec(url) ?? [];
  if (hash !== undefined) {
    if (method !== "GET" && method !== "HEAD") return wrongMethod("GET, HEAD");
    const checkpoint = parts.state.checkpoint(hash);
    return checkpoint === undefined
      ? { status: 404, body: "nothing was cosigned\n" }
      : { status: 200, body: checkpoint };
  }
  if (url !== "/add-checkpoint") return notFound;
  if (method !== "POST") return wrongMethod("POST");
  const body = await readBody(request);
  return body === undefined ? tooLarge : addCheckpoint(parts, body);
};

const send = (response: ServerResponse, { status, body, headers }: Answer): void => {
  const always = { "content-type": "text/plain; charset=utf-8", "cache-control": "no-store" };
  response.writeHead(status, { ...always, "content-length": String(Buffer.byteLength(body)), ...headers }).end(body);
};

/** Rejects when it cannot listen there. `port` 0: a free one. */
export const openWitnessServer = async (
  parts: WitnessParts,
  listen: { readonly host: string; readonly port: number },
): Promise<WitnessServer> => {
  const { log } = parts;
  const reporting = { ...parts, report: openReports(log) };
  const limits = {
    requestTimeout: requestLimitMs,
    keepAliveTimeout: idleLimitMs,
    connectionsCheckingInterval: checkEveryMs,
  };
  const server = createServer(limits, async (request, response) => {
    try {
      const answer = await answerTo(reporting, request);
      send(response, answer);
      request.resume(); // what was not read, till the limit of its time
    } catch (err) {
      // One that broke off has nobody to be told.
      if (!request.complete) return;
      log.error({ err }, "a request could not be answered");
      send(response, { status: 503, body: "cannot be cosigned now\n" });
    }
  });
  server.maxConnections = maxConnections;
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen(listen.port, listen.host, () => {
      server.off("error", reject);
      server.on("error", (err) => log.error({ err }, "the witness's server"));
      resolve();
    });
  });
  const host = listen.host.includes(":") ? `[${listen.host}]` : listen.host;
  return {
    url: `http://${host}:${(server.address() as AddressInfo).port}/`,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeIdleConnections();
      }),
  };
};
