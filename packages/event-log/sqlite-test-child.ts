/** Sends to the bus in the folder argv[2] from 16 callers at once and reports the value of each acknowledged record. */
import { join } from "node:path";
import { openSqliteStore } from "@curfew/document-store/sqlite.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import type { EpochRow } from "./epochs.ts";
import { openSqliteBus } from "./sqlite.ts";

const [, , folder = ""] = process.argv;
const store = await openSqliteStore({ file: join(folder, "producers.db") });
const epochs = await store.collection<EpochRow>("epochs");
const bus = await openSqliteBus({ file: join(folder, "bus.db"), epochs, clock: systemClock, topics: { uses: 3 } });
const producer = await bus.openProducer({ topic: "uses", name: "verifier/1" });
let next = 0;
const caller = async () => {
  for (;;) {
    const n = next++;
    const text = `${process.pid}-${n}`;
    await producer.send([{ partition: n % 3, key: text, headers: {}, value: Buffer.from(text) }]);
    process.send?.(text);
  }
};
await Promise.all(Array.from({ length: 16 }, caller));
