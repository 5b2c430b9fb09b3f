import { hash } from "node:crypto";
import { create } from "@bufbuild/protobuf";
import { LedgerKeyRotatedSchema } from "@curfew/contracts/gen/curfew/events/v1/evidence_pb.ts";
import type { Outbox } from "@curfew/event-log/outbox.ts";
import { signKeyRotation } from "@curfew/ledger/key-rotation.ts";
import { noteSigner, verifierKeyText } from "@curfew/ledger/note-key.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import type { Log } from "@curfew/runtime/log.ts";
import type { LedgerKeys } from "./ledger-keys.ts";

const lookEveryMs = 1_000;

export const rotationStream = (origin: string): string => `ledger-keys/${hash("sha256", origin, "hex")}`;

/**
 * States the rotation to a key that `curfew keys rotate ledger` has made, once whoever does it: one commit for each key. The key comes in
 * force when the record is sealed.
 */
export const watchKeyRotation = async (
  parts: {
    readonly outbox: Pick<Outbox, "streams" | "relay">;
    readonly keys: LedgerKeys;
    readonly origin: string;
    /** Leaves of the ledger now. */
    readonly size: () => number;
    readonly clock: Clock;
    readonly log: Log;
  },
  signal: AbortSignal,
): Promise<void> => {
  const { outbox, keys, origin, size, clock, log } = parts;
  const stream = rotationStream(origin);
  let stated = 1;

  const state = async (): Promise<void> => {
    const all = keys.all();
    const next = all.find(({ after }) => after === undefined);
    const before = next && all[next.number - 2];
    if (!next?.privateKey || !before?.privateKey || next.number <= stated) return;
    const version = next.number - 1;
    if (!(await outbox.streams.read(stream, version))) {
      const [oldKey, newKey] = [before, next].map((key) => verifierKeyText(origin, key.publicKey)) as [string, string];
      const rotation = { origin, oldKey, newKey, size: size() };
      const signers = [noteSigner(origin, before.privateKey), noteSigner(origin, next.privateKey)] as const;
      const event = create(LedgerKeyRotatedSchema, {
        origin,
        oldKey,
        newKey,
        ledgerSize: BigInt(rotation.size),
        statement: signKeyRotation(rotation, signers),
      });
      const end = { version: version - 1, sequence: version - 1 };
      const commit = await outbox.streams.append(stream, end, [event]);
      if (commit) {
        log.info({ oldKey, newKey }, "the ledger's key rotates: the new one signs once this is sealed");
        void outbox.relay.published(commit);
      }
    }
    stated = next.number;
  };

  while (!signal.aborted) {
    await state().catch((err: unknown) => log.warn({ err }, "the ledger's key cannot be rotated now; trying again"));
    await clock.sleep(lookEveryMs, signal);
  }
};
