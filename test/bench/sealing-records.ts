import { clock, use } from "@curfew/auditor/testing/rig.ts";
import { openChain } from "@curfew/event-log/chain.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import type { LogRecord } from "@curfew/ledger/leaf.ts";

/** What is sealed in the benchmarks of the ledger. */

export const sealedAtMs = clock.now();

/** Records as they come off the bus, for ever: real uses on three partitions, linked by their producer. */
export const openRecords = () => {
  const chain = openChain(topicNames.uses, "verifier/bench/1");
  const offsets = [0, 0, 0];
  let n = 0;
  return (count: number): LogRecord[] =>
    Array.from({ length: count }, () => {
      const { partition, key, headers, value } = chain.link(use(n, n % 3));
      n += 1;
      const offset = offsets[partition] as number;
      offsets[partition] = offset + 1;
      const place = { topic: topicNames.uses, partition, offset, timestampMs: sealedAtMs };
      return { ...place, key, headers: Object.entries(headers), value };
    });
};
