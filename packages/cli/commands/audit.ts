import { fromBinary } from "@bufbuild/protobuf";
import { type Timestamp, timestampDate, timestampFromDate } from "@bufbuild/protobuf/wkt";
import {
  AuditorService,
  type GetEventResponse,
  type SealedEvent,
} from "@curfew/contracts/gen/curfew/auditor/v1/auditor_pb.ts";
import { LedgerEntrySchema } from "@curfew/contracts/gen/curfew/ledger/v1/entry_pb.ts";
import { openCheckpoint } from "@curfew/ledger/checkpoint.ts";
import { leafHash } from "@curfew/ledger/hash.ts";
import { parseVerifierKey } from "@curfew/ledger/note-key.ts";
import { verifyInclusion } from "@curfew/ledger/proof.ts";
import { buildCommand, buildRouteMap } from "@stricli/core";
import { type ConnectionFlags, onConnection } from "../connection.ts";
import { CommandFailed, exitCode } from "../exit.ts";
import {
  connectionFlags,
  outputAlias,
  outputFlag,
  parseLimit,
  parseTime,
  type ShardFlags,
  shardFlag,
} from "../flags.ts";
import { type Format, printOne, printRows, say, standardOutput } from "../output.ts";
import { exportBundle } from "./audit-export.ts";
import { health, watch } from "./audit-health.ts";
import { prove } from "./audit-prove.ts";

interface AuditFlags extends ConnectionFlags {
  readonly output: Format;
}

interface ListFlags extends AuditFlags {
  readonly token: string;
  readonly type: string;
  readonly subject: string;
  readonly service: string;
  readonly category: string;
  readonly from?: Date;
  readonly to?: Date;
  readonly limit: number;
}

const rowOf = (event: SealedEvent) => ({
  index: Number(event.index),
  time: event.time ? timestampDate(event.time).toISOString() : "",
  type: event.type,
  token: event.tokenId,
  event: event.eventId,
});

const list = buildCommand({
  docs: { brief: "List sealed events in the ledger's order" },
  parameters: {
    flags: {
      ...connectionFlags,
      ...outputFlag,
      token: { kind: "parsed", parse: String, brief: "only about this token", default: "", placeholder: "TOKEN" },
      type: {
        kind: "parsed",
        parse: String,
        brief: "only of this type, e.g. curfew.token.revoked.v1",
        default: "",
        placeholder: "TYPE",
      },
      subject: {
        kind: "parsed",
        parse: String,
        brief: "only with this CloudEvents subject, about this holder (SPIFFE ID) or person (pseudonym)",
        default: "",
        placeholder: "SUBJECT",
      },
      service: {
        kind: "parsed",
        parse: String,
        brief: "only that name this resource service",
        default: "",
        placeholder: "SERVICE",
      },
      category: {
        kind: "parsed",
        parse: String,
        brief: "only about this kind of personal data",
        default: "",
        placeholder: "CATEGORY",
      },
      from: { kind: "parsed", parse: parseTime, brief: "only at or after", optional: true, placeholder: "TIME" },
      to: { kind: "parsed", parse: parseTime, brief: "only before", optional: true, placeholder: "TIME" },
      limit: { kind: "parsed", parse: parseLimit, brief: "at most so many", default: "100", placeholder: "N" },
    },
    aliases: outputAlias,
  },
  func: (flags: ListFlags) =>
    onConnection(flags, async (connection) => {
      const auditor = connection.service(AuditorService, "auditor");
      const events: SealedEvent[] = [];
      let pageToken = "";
      do {
        const page = await auditor.listEvents({
          pageSize: Math.min(1_000, flags.limit - events.length),
          pageToken,
          tokenId: flags.token,
          type: flags.type,
          subject: flags.subject,
          service: flags.service,
          dataCategory: flags.category,
          ...(flags.from && { from: timestampFromDate(flags.from) }),
          ...(flags.to && { to: timestampFromDate(flags.to) }),
        });
        events.push(...page.events);
        pageToken = page.nextPageToken;
      } while (pageToken && events.length < flags.limit);
      if (events.length === 0) say("no sealed event is like that");
      if (pageToken) say(`these are the first ${events.length}, there may be more: --limit N, or --from and --to`);
      printRows(flags.output, events.map(rowOf), ["index", "time", "type", "token", "event"]);
    }),
});

/** Size of the signed tree that holds the event: its leaf is this event's record, and the proof leads to the checkpoint. Undefined: not so. */
const provenTreeSize = (answer: GetEventResponse, verifierKey: string): number | undefined => {
  try {
    const { size, root } = openCheckpoint(answer.checkpoint, parseVerifierKey(verifierKey));
    const { headers } = fromBinary(LedgerEntrySchema, answer.leaf);
    const isThisEvent = headers.some(({ name, value }) => name === "ce_id" && value === answer.event?.eventId);
    // As the shard counts.
    const index = Number(answer.event?.index ?? -1) - Number(answer.shard?.first ?? 0);
    return isThisEvent && verifyInclusion(index, size, leafHash(answer.leaf), answer.inclusionProof, root)
      ? size
      : undefined;
  } catch {
    return undefined; // a signature or a leaf that is none proves nothing
  }
};

/** When it came to the ledger, by the clocks of others; nothing where nobody is asked. */
const outsideRow = ({ outside }: GetEventResponse) => {
  const timeOf = (at: Timestamp | undefined) => at && timestampDate(at).toISOString();
  const [after, by, stamped] = [timeOf(outside?.notBefore), timeOf(outside?.notAfter), timeOf(outside?.stamped)];
  return {
    ...(after && { cosignedWithoutIt: after }),
    ...(by && { cosignedWithIt: by }),
    ...(stamped && { stampedWithIt: stamped }),
  };
};

const show = buildCommand({
  docs: { brief: "Show an event and check its inclusion proof. Exit 1: the proof does not hold" },
  parameters: {
    flags: { ...connectionFlags, ...outputFlag },
    aliases: outputAlias,
    positional: {
      kind: "tuple",
      parameters: [{ parse: String, brief: "event id or ledger index", placeholder: "EVENT" }],
    },
  },
  func: (flags: AuditFlags, which: string) =>
    onConnection(flags, async (connection) => {
      const auditor = connection.service(AuditorService, "auditor");
      const answer = await auditor.getEvent({
        which: /^\d{1,15}$/.test(which) ? { case: "index", value: BigInt(which) } : { case: "eventId", value: which },
      });
      const { verifierKey } = await auditor.getCheckpoint({ shard: answer.shard?.year ?? 0 });
      if (!answer.event) throw new Error("the auditor answered without an event");
      const treeSize = provenTreeSize(answer, verifierKey);
      printOne(flags.output, {
        ...rowOf(answer.event),
        body: JSON.parse(answer.event.json),
        proof: treeSize === undefined ? "DOES NOT HOLD" : `holds in the signed tree of ${treeSize} entries`,
        ...outsideRow(answer),
      });
      if (treeSize === undefined) throw new CommandFailed(exitCode.no, "the inclusion proof does not hold");
    }),
});

const checkpoint = buildCommand({
  docs: { brief: "Print the newest signed checkpoint, or the last one of a year (C2SP tlog-checkpoint)" },
  parameters: { flags: { ...connectionFlags, ...outputFlag, ...shardFlag }, aliases: outputAlias },
  func: (flags: AuditFlags & ShardFlags) =>
    onConnection(flags, async (connection) => {
      const answer = await connection.service(AuditorService, "auditor").getCheckpoint({ shard: flags.shard });
      const { checkpoint: note, size, verifierKey, shard } = answer;
      if (flags.output === "json")
        printOne("json", {
          checkpoint: note,
          size: Number(size),
          verifierKey,
          shard: shard?.year,
          first: Number(shard?.first),
        });
      else standardOutput.write(answer.checkpoint);
    }),
});

export const audit = buildRouteMap({
  docs: { brief: "The ledger" },
  routes: { list, show, checkpoint, prove, health, watch, export: exportBundle },
});
