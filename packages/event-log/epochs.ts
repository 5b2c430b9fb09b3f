import type { Collection, DocumentStore } from "@curfew/document-store/port.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import type { OutRecord, ProducerOptions } from "./bus.ts";
import { type ChainedRecord, openChain } from "./chain.ts";
import { createProducerKey, type ProducerIdentity, type ProducerKey } from "./producer-key.ts";

/** What a producer says of its epoch. */
export interface EpochState {
  /** Last acknowledged number per partition ("0": 17). */
  readonly acknowledged: { [partition: string]: number };
  /** Its producer is done with it, and that is all that was acknowledged. */
  readonly ended?: boolean;
}

/** One row of the shared store `producers`, collection `epochs`: `_id` is `curfew-producer` = service/instance/epoch. A producer writes its own. */
export type EpochRow = {
  _id: string;
  topic: string;
  /** Kept up once a second while sending. */
  acknowledged: { [partition: string]: number };
  ended?: boolean;
  /** As `curfew-key`; absent: the epoch is not signed. */
  key?: string;
  /** By that key over the state (`signState`), base64url. */
  signature?: string;
  /** Changes at least every 20 s while the producer lives. */
  beats?: number;
  /** True until the auditor has closed it; then the field is gone (sparse index). Absent too in rows from before there were closings. */
  open?: true;
};

export const openEpochs = (store: DocumentStore): Promise<Collection<EpochRow>> =>
  store.collection<EpochRow>("epochs", { indexes: ["open"] });

const saveEveryMs = 1_000;
/** Well within the time of silence after which the auditor takes the producer for dead. */
const beatEveryMs = 20_000;

/** Inserts the row of a new epoch, before its first send; the number is the first free one of this producer name. */
export const beginEpoch = async (
  epochs: Collection<EpochRow>,
  name: string,
  topic: string,
  signed: (id: string) => Pick<EpochRow, "key" | "signature"> = () => ({}),
): Promise<string> => {
  for (let epoch = 1; ; epoch += 1) {
    const _id = `${name}/${epoch}`;
    if ((await epochs.insert({ _id, topic, acknowledged: {}, open: true, ...signed(_id) })) === "inserted") return _id;
  }
};

/** An epoch at work: its chains, and its row, which is kept up until it ends. */
export interface Epoch {
  readonly id: string;
  /** The records of one send, chained and signed. In the order of sending. */
  link(records: readonly OutRecord[]): ChainedRecord[];
  /** All that was linked is on the topic. */
  acknowledge(): void;
  /**
   * Forgets what was linked, if nothing was ever acknowledged: then the chains begin again, under another key. What was signed before may
   * have been kept by whoever refused it, and must not pass for what is sent from now on. False where that could not be.
   */
  restart(): Promise<boolean>;
  /** Nothing more is sent in it: writes its last row, as far as the store lets it. */
  end(): Promise<void>;
  /** Leaves the row as it is. */
  abandon(): void;
}

export interface EpochParts {
  readonly epochs: Collection<EpochRow>;
  readonly options: ProducerOptions;
  readonly clock: Clock;
  /** Of the producer's service, now; absent: the epoch is not signed. */
  readonly identity?: () => ProducerIdentity;
}

export const openEpoch = async ({ epochs, options, clock, identity }: EpochParts): Promise<Epoch> => {
  const { name, topic } = options;
  let key: ProducerKey | undefined;
  const signed = (state: EpochState) => key && { key: key.certification(), signature: key.signState(state) };
  const id = await beginEpoch(epochs, name, topic, (producer) => {
    key = identity && createProducerKey(producer, topic, identity);
    return signed({ acknowledged: {} }) ?? {};
  });
  let chain = openChain(topic, id, key);
  let acknowledged: EpochState["acknowledged"] = {};
  let unsaved = false;
  let beats = 0;

  /** Best effort: a row that lags is normal, and the next one says more. */
  const saveNow = async (ended: boolean): Promise<void> => {
    unsaved = false;
    beats += 1;
    const state = { acknowledged, ...(ended && { ended }) };
    // Where the auditor took silence for the end, it will have to close the epoch again.
    const fields = { ...state, ...signed(state), beats, open: true } as const;
    try {
      // Somebody has removed it: what it says is said again.
      if (!(await epochs.set(id, fields))) await epochs.insert({ _id: id, topic, ...fields });
    } catch {
      unsaved = true;
    }
  };

  /** One after the other, so that the last word stays. */
  let saving = Promise.resolve();
  const save = (ended: boolean): Promise<void> => {
    saving = saving.then(() => saveNow(ended));
    return saving;
  };

  const over = new AbortController();
  const keep = async (): Promise<void> => {
    let quietMs = 0;
    while (!over.signal.aborted) {
      await clock.sleep(saveEveryMs, over.signal);
      quietMs += saveEveryMs;
      if (over.signal.aborted || !(unsaved || quietMs >= beatEveryMs)) continue;
      await save(false);
      quietMs = 0;
    }
  };
  const keeping = keep();

  return {
    id,
    link: (records) => chain.linkSend(records),
    acknowledge() {
      // One send at a time: all that is linked is acknowledged now.
      acknowledged = Object.fromEntries(chain.sequences());
      unsaved = true;
    },
    async restart() {
      if (Object.keys(acknowledged).length > 0) return false;
      key = identity && createProducerKey(id, topic, identity);
      chain = openChain(topic, id, key);
      if (!key) return true;
      await save(false);
      return !unsaved;
    },
    async end() {
      over.abort();
      await keeping;
      await save(true);
    },
    abandon: () => over.abort(),
  };
};
