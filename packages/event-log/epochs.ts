import type { Collection } from "@curfew/document-store/port.ts";

/** One row of the shared store `producers`, collection `epochs`: `_id` is `curfew-producer` = service/instance/epoch. */
export type EpochRow = {
  _id: string;
  topic: string;
  /** Last acknowledged number per partition ("0": 17), kept up once a second while sending. A producer writes its own rows only. */
  acknowledged: { [partition: string]: number };
};

/** Inserts the row of a new epoch, before its first send; the number is the first free one of this producer name. */
export const beginEpoch = async (epochs: Collection<EpochRow>, name: string, topic: string): Promise<string> => {
  for (let epoch = 1; ; epoch += 1) {
    const _id = `${name}/${epoch}`;
    if ((await epochs.insert({ _id, topic, acknowledged: {} })) === "inserted") return _id;
  }
};
