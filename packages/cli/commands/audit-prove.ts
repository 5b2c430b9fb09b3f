import { AuditorService } from "@curfew/contracts/gen/curfew/auditor/v1/auditor_pb.ts";
import { verifyConsistency, verifyInclusion } from "@curfew/ledger/proof.ts";
import { buildCommand } from "@stricli/core";
import { type ConnectionFlags, onConnection } from "../connection.ts";
import { CommandFailed, exitCode } from "../exit.ts";
import { connectionFlags, outputAlias, outputFlag, parseCount, type ShardFlags, shardFlag } from "../flags.ts";
import { type Format, printOne } from "../output.ts";

interface ProveFlags extends ConnectionFlags, ShardFlags {
  readonly output: Format;
  readonly index?: number;
  readonly from?: number;
  readonly size: number;
}

const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString("hex");
const must = (holds: boolean) => {
  if (!holds) throw new CommandFailed(exitCode.no, "the proof does not hold");
};

export const prove = buildCommand({
  docs: {
    brief:
      "Prove that a leaf is in a tree (--index), or that a tree is the beginning of a later one (--from). Exit 1: it does not hold",
  },
  parameters: {
    flags: {
      ...connectionFlags,
      ...outputFlag,
      ...shardFlag,
      index: {
        kind: "parsed",
        parse: parseCount,
        brief: "index of the entry in the ledger, as audit list prints it",
        optional: true,
        placeholder: "N",
      },
      from: {
        kind: "parsed",
        parse: parseCount,
        brief: "size of the earlier tree",
        optional: true,
        placeholder: "SIZE",
      },
      size: {
        kind: "parsed",
        parse: parseCount,
        brief: "size of the tree; 0: the newest",
        default: "0",
        placeholder: "SIZE",
      },
    },
    aliases: outputAlias,
  },
  func: (flags: ProveFlags) =>
    onConnection(flags, async (connection) => {
      const { index, from, output, shard } = flags;
      if ((index === undefined) === (from === undefined))
        throw new CommandFailed(exitCode.usage, "name either a leaf (--index) or an earlier tree (--from)");
      const auditor = connection.service(AuditorService, "auditor");
      if (index !== undefined && shard !== 0)
        throw new CommandFailed(
          exitCode.usage,
          "--shard is for --from: an entry's index says in which year's tree it is",
        );
      if (index !== undefined) {
        const { shard: tree } = await auditor.getEvent({ which: { case: "index", value: BigInt(index) } });
        const year = tree?.year ?? 0;
        const leaf = index - Number(tree?.first ?? 0);
        const answer = await auditor.proveInclusion({ index: BigInt(leaf), size: BigInt(flags.size), shard: year });
        const { leafHash, proof, root, checkpoint } = answer;
        const size = Number(answer.size);
        must(verifyInclusion(leaf, size, leafHash, proof, root));
        const found = { index, shard: year, leaf, size, leafHash: hex(leafHash), root: hex(root) };
        printOne(output, { ...found, proof: proof.map(hex), checkpoint });
        return;
      }
      const older = from as number;
      const answer = await auditor.proveConsistency({ from: BigInt(older), to: BigInt(flags.size), shard });
      const { proof, fromRoot, toRoot, checkpoint } = answer;
      must(verifyConsistency(older, Number(answer.to), proof, fromRoot, toRoot));
      const size = Number(answer.to);
      printOne(output, {
        from: older,
        size,
        fromRoot: hex(fromRoot),
        root: hex(toRoot),
        proof: proof.map(hex),
        checkpoint,
      });
    }),
});
