import type { Collection } from "@curfew/document-store/port.ts";
import type { Bus, OutRecord, Producer } from "@curfew/event-log/bus.ts";
import { siemTopic } from "@curfew/event-log/event-types.ts";
import { readTopic } from "@curfew/event-log/read-topic.ts";
import { decodeLeaf } from "@curfew/ledger/leaf.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import type { Log } from "@curfew/runtime/log.ts";
import { type BatchDoc, batchId, LedgerBroken } from "../domain.ts";
import { batchReaching } from "../ledger.ts";
import { ledgerIndexOf, siemRecord } from "./cloud-event.ts";

/**
 * Keeps curfew.siem.v1 up with the ledger: reads staged batches, one at a time, and sends every leaf in order. Where it stands is what is on
 * the topic, so nothing else has to be kept: a new start goes on behind the last index there, and a topic that was made anew is filled from
 * the first leaf. At least once: a publisher that was paused while another took over may send again what stands there.
 */

const pollMs = 100;
const firstBackoffMs = 100;
const maxBackoffMs = 5_000;
/** Of the topic's end, which may hold what a paused publisher sent late. */
const lastRecords = 1_000;
const maxSendBytes = 1_000_000;

export interface SiemParts {
  readonly bus: Bus;
  readonly batches: Pick<Collection<BatchDoc>, "get" | "findLatest">;
  /** Number of the last batch that is finished; the store is asked for no later one. */
  readonly latest: () => number;
  /** Of this replica: names the producer. */
  readonly instance: string;
  readonly clock: Clock;
  readonly log: Pick<Log, "warn">;
}

/** The next leaf to be sent, and the batch that has it. */
interface Place {
  readonly index: number;
  readonly batch: number;
}

const nextIndex = async (bus: Bus, instance: string, signal: AbortSignal): Promise<number> => {
  let next = 0;
  const name = `siem-position-${instance}`;
  await readTopic(
    { bus, topic: siemTopic, name, last: lastRecords },
    (records) => {
      for (const { value } of records) next = Math.max(next, (ledgerIndexOf(value) ?? -1) + 1);
    },
    signal,
  );
  return next;
};

const placeOf = async ({ bus, batches, instance }: SiemParts, signal: AbortSignal): Promise<Place> => {
  const index = await nextIndex(bus, instance, signal);
  const found = await batchReaching(batches, index + 1);
  if (found) return { index, batch: found.number };
  const end = await batchReaching(batches, index);
  if (!end && index > 0)
    throw new LedgerBroken(
      `${siemTopic} tells ${index} entries, more than the ledger has: it is another ledger's, or the ledger was put back`,
    );
  return { index, batch: (end?.number ?? 0) + 1 };
};

/** Of a batch from leaf `from` on, in sends that the bus takes. */
function* sendsOf({ first, leaves }: BatchDoc, from: number): Generator<OutRecord[]> {
  let records: OutRecord[] = [];
  let bytes = 0;
  for (const [at, leaf] of leaves.entries()) {
    if (first + at < from) continue;
    const record = siemRecord(first + at, decodeLeaf(leaf));
    if (records.length > 0 && bytes + record.value.length > maxSendBytes) {
      yield records;
      records = [];
      bytes = 0;
    }
    records.push(record);
    bytes += record.value.length;
  }
  if (records.length > 0) yield records;
}

/** Until `signal` aborts. What fails is tried again for as long as it takes: nobody waits for this but the topic's readers. */
export const publishSiem = async (parts: SiemParts, signal: AbortSignal): Promise<void> => {
  const { bus, batches, latest, clock, log } = parts;

  const patiently = async <T>(attempt: () => Promise<T>): Promise<T | undefined> => {
    for (let backoffMs = firstBackoffMs; !signal.aborted; backoffMs = Math.min(2 * backoffMs, maxBackoffMs)) {
      try {
        return await attempt();
      } catch (error) {
        if (signal.aborted) break;
        if (backoffMs === firstBackoffMs) log.warn({ err: error }, `${siemTopic} cannot be written now`);
        await clock.sleep(backoffMs, signal);
      }
    }
    return undefined;
  };

  const grown = async (producer: Producer, { index, batch }: Place): Promise<Place | undefined> => {
    const doc = batch <= latest() ? await batches.get(batchId(batch)) : undefined;
    if (!doc) return undefined;
    for (const records of sendsOf(doc, index)) await producer.send(records);
    return { index: doc.size, batch: batch + 1 };
  };

  let place = await patiently(() => placeOf(parts, signal));
  const producer = await patiently(() => bus.openProducer({ topic: siemTopic, name: `auditor/${parts.instance}` }));
  if (!producer) return;
  // Ends a send that waits out an outage.
  const stop = () => void producer.close();
  signal.addEventListener("abort", stop, { once: true });
  if (signal.aborted) stop();
  while (place && !signal.aborted) {
    const at: Place = place;
    const next = await patiently(() => grown(producer, at));
    if (next) place = next;
    else await clock.sleep(pollMs, signal);
  }
  await producer.close();
};
