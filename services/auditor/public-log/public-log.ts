import { openDirectory } from "@curfew/ledger/directory.ts";
import { openOutbound } from "@curfew/runtime/outbound.ts";
import type { Ledger } from "../ledger.ts";
import type { AuditorServiceParts } from "../service.ts";
import { openCosigned } from "./cosigned.ts";
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
  of: Pick<TileLogParts, "batches" | "latest"> & { readonly ledger: Ledger },
) => {
  const { ledgerDir, ledgerListen, timestamping, store, clock, log } = parts;
  const { batches, latest, ledger } = of;
  const { seal } = ledger;
  const files = parts.ledgerFiles ?? (ledgerDir === undefined ? undefined : openDirectory(ledgerDir, parts));
  const witnessed = await openWitnessing(parts);
  const stamped =
    files && timestamping
      ? openTimestamps({
          ...parts,
          ...timestamping,
          files,
          seal,
          rows: await openTimestampRows(store),
          outbound: openOutbound({ allow: timestamping.allow, clock }),
        })
      : undefined;
  const server = files && ledgerListen && (await openTileServer(files, ledgerListen, log));
  return {
    files,
    /** What the sealer asks before it signs anything. */
    guard: { ...(files && { published: () => publishedSize({ files, seal }) }) },
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
