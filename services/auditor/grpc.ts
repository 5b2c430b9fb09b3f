import {
  AuditorService,
  type GetCheckpointRequest,
  type ListEventsRequest,
} from "@curfew/contracts/gen/curfew/auditor/v1/auditor_pb.ts";
import type { Position } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { NoLeaf } from "@curfew/ledger/leaf.ts";
import { past } from "@curfew/projection/progress.ts";
import { RpcError } from "@curfew/rpc/errors.ts";
import { type BoundService, bindService, type Handlers } from "@curfew/rpc/service-definition.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import type { Random } from "@curfew/runtime/random.ts";
import type { EvidenceHealth } from "./checks/health.ts";
import { LedgerBroken } from "./domain.ts";
import { filterHash, readEvents } from "./event-view.ts";
import { type ExportParts, openExports } from "./export/export.ts";
import type { Follower } from "./follower.ts";
import type { Ledger } from "./ledger.ts";
import { answerConsistency, answerInclusion, getEvent, newestCheckpoint, type ProofParts } from "./proofs.ts";
import { watchEvents } from "./watch-events.ts";

const defaultPageSize = 50;
const maxPageSize = 1_000;
const maxPageBytes = 2 * 2 ** 20;
const maxScannedRows = 5_000;
const atLeastMs = 2_000;
const retryMs = 500;
const maxExportMs = 600_000;

export interface AuditorParts extends ProofParts {
  readonly ledger: Pick<Ledger, "seal">;
  readonly follower: Follower;
  readonly health: Pick<EvidenceHealth, "read" | "lag">;
  readonly clock: Clock;
  /** What is stored contradicts what was signed. */
  readonly broken: (error: LedgerBroken) => void;
  readonly outbox: ExportParts["outbox"];
  readonly authority: ExportParts["authority"];
  readonly random: Random;
}

const invalid = (reason: string, message: string, field: string) =>
  new RpcError({
    status: "INVALID_ARGUMENT",
    reason,
    message,
    fieldViolations: [{ field, description: message, reason }],
  });

const pageToken = (index: number, request: ListEventsRequest) =>
  Buffer.from(`${index} ${filterHash(request)}`).toString("base64url");
const parsePageToken = (request: ListEventsRequest): number => {
  if (request.pageToken === "") return 0;
  const text = Buffer.from(request.pageToken, "base64url").toString();
  const [, index, filters] = /^(\d{1,15}) ([\w-]{16})$/.exec(text) ?? [];
  if (index === undefined || filters !== filterHash(request))
    throw invalid("PAGE_TOKEN_INVALID", "the page token is not from a page with these filters", "page_token");
  return Number(index);
};

const awaitSealed = async (follower: Follower, positions: readonly Position[]): Promise<void> => {
  const topics: readonly string[] = Object.values(topicNames);
  if (positions.some(({ topic, offset }) => !topics.includes(topic) || offset < 0n))
    throw invalid("POSITION_INVALID", "not a position on a topic that is sealed", "at_least");
  if (await follower.reached(past(positions), atLeastMs)) return;
  throw new RpcError({
    status: "UNAVAILABLE",
    reason: "NOT_CAUGHT_UP",
    message: "not sealed up to there yet: try again",
    retryDelayMs: retryMs,
  });
};

const listEvents = async ({ models, follower, health }: AuditorParts, request: ListEventsRequest) => {
  const start = parsePageToken(request);
  await awaitSealed(follower, request.atLeast);
  const size = follower.latest()?.size ?? 0;
  const events = Math.min(request.pageSize || defaultPageSize, maxPageSize);
  const limits = { events, bytes: maxPageBytes, rows: maxScannedRows };
  const page = await readEvents(models.entries, request, { start, size }, limits);
  return {
    events: page.events,
    nextPageToken: page.next < size ? pageToken(page.next, request) : "",
    ledgerSize: BigInt(size),
    lag: health.lag(),
  };
};

const getCheckpoint = async (parts: AuditorParts, request: GetCheckpointRequest) => {
  const { follower, health } = parts;
  const newest = await newestCheckpoint(parts, request);
  const { verifierKey } = newest.shard;
  return { ...newest, verifierKey, sealed: follower.positions(), lag: health.lag() };
};

export const auditorService = (parts: AuditorParts): BoundService => {
  const { health, ledger } = parts;
  const tell = (error: unknown): never => {
    if (error instanceof LedgerBroken) parts.broken(error);
    if (error instanceof NoLeaf) parts.broken(new LedgerBroken(error.message, { cause: error }));
    throw error;
  };
  const withLag = <T extends object>(answer: T) => ({ ...answer, lag: health.lag() });
  const telling = <T>(answer: Promise<T>): Promise<T> => answer.catch(tell);
  async function* tellingAll<T>(answers: AsyncIterable<T>): AsyncGenerator<T> {
    try {
      yield* answers;
    } catch (error) {
      tell(error);
    }
  }
  const exportBundle = openExports({
    ...parts,
    ...ledger,
    awaitSealed: (positions) => awaitSealed(parts.follower, positions),
  });
  const handlers: Handlers<typeof AuditorService> = {
    listEvents: (request) => telling(listEvents(parts, request)),
    getEvent: (request) => telling(getEvent(parts, request).then(withLag)),
    getCheckpoint: (request) => telling(getCheckpoint(parts, request)),
    proveInclusion: (request) => telling(answerInclusion(parts, request).then(withLag)),
    proveConsistency: (request) => telling(answerConsistency(parts, request).then(withLag)),
    async *watchEvents(request, { signal }) {
      for await (const answer of tellingAll(watchEvents(parts, request, signal))) yield withLag(answer);
    },
    exportBundle: (request, ctx) => tellingAll(exportBundle(request, ctx)),
    getHealth: () => telling(health.read()),
  };
  // Who reads too slowly keeps others from their turn.
  return bindService(AuditorService, handlers, { deadlineCapsMs: { exportBundle: maxExportMs } });
};
