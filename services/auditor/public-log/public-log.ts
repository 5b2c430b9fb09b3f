import { openOutbound } from "@curfew/runtime/outbound.ts";
import type { LedgerHead } from "../domain.ts";
import type { Follower } from "../follower.ts";
import type { Ledger } from "../ledger.ts";
import type { AuditorServiceParts } from "../service.ts";
import { openCosigned } from "./cosigned.ts";
import { openShardFolders } from "./shard-files.ts";
import { publishedSize, publishTiles, type TileLogParts } from "./tile-log.ts";
import { openTileServer } from "./tile-server.ts";
import { openTimestampRows, openTimestamps } from "./timestamps.ts";
import { openWitnesses } from "./witnesses.ts";

const openWitnessing = async ({ witnessing, store, clock, log }: AuditorServiceParts) => {
  if (!witnessing) return undefined;
  const { policy, allow } = witnessing;
  const rows = await openCosigned(store);
  return { rows, witnesses: openWitnesses({ policy, outbound: openOutbound({ allow, clock }), rows, clock, log }) };
};

/** What others see of the ledger, as far as it is wanted: its files, who cosigns them, timestamps over them, and their server. */
export const openPublicLog = async (
  parts: AuditorServiceParts,
  of: Pick<TileLogParts, "batches"> & { readonly ledger: Ledger; readonly follower: Pick<Follower, "latest"> },
) => {
  const { ledgerDir, ledgerListen, timestamping, store, clock, log } = parts;
  const { batches, ledger, follower } = of;
  const { seal } = ledger;
  const latest = () => follower.latest()?.batch ?? 0;
  const files = parts.ledgerFiles ?? (ledgerDir === undefined ? undefined : await openShardFolders(ledgerDir, parts));
  const witnessed = await openWitnessing(parts);
  const stamped =
    files && timestamping
      ? openTimestamps({
          ...parts,
          ...timestamping,
          files,
          shard: () => follower.latest()?.shard,
          seal,
          rows: await openTimestampRows(store),
          outbound: openOutbound({ allow: timestamping.allow, clock }),
        })
      : undefined;
  const server = files && ledgerListen && (await openTileServer(files, ledgerListen, log));
  return {
    files,
    /** What the sealer asks before it signs anything. */
    guard: { ...(files && { published: (head: LedgerHead) => publishedSize({ files, seal, clock }, head) }) },
    face: {
      ...(server && { ledgerUrl: server.url }),
      ...(witnessed && { witnesses: witnessed.witnesses.status }),
      ...(stamped && { timestamps: stamped.status }),
    },
    /** The work of whoever seals. */
    works: [
      async (signal: AbortSignal) => {
        if (!files) return;
        await publishTiles({ files, batches, latest, seal, ...(witnessed && { witnessed }), clock, log }, signal);
      },
      async (signal: AbortSignal) => stamped?.run(signal),
    ],
    close: async () => server?.close(),
  };
};
