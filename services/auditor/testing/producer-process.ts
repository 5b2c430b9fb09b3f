/**
 * Sends uses to the bus in the folder argv[2] and kills itself, as the operating system would, before or after (argv[4]) its write number
 * argv[3]: of its row in the store of producers, or to the topic. What was acknowledged is in the folder's `acknowledged`, a line for each.
 */
import { appendFileSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { openSqliteStore } from "@curfew/document-store/sqlite.ts";
import { openSqliteWriter } from "@curfew/document-store/sqlite-writer.ts";
import { openEpochs } from "@curfew/event-log/epochs.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { sqliteBus } from "@curfew/event-log/sqlite.ts";
import { type Clock, systemClock } from "@curfew/runtime/clock.ts";

const [, , folder = "", number = "", when = ""] = process.argv;
let writes = 0;
let counting = false;
const counted = async <T>(write: () => Promise<T>): Promise<T> => {
  if (!counting) return await write();
  writes += 1;
  const isLast = writes === Number(number);
  if (isLast && when === "before") process.kill(process.pid, "SIGKILL");
  const done = await write();
  if (isLast) process.kill(process.pid, "SIGKILL");
  return done;
};

/** A second takes 50 ms. */
const clock: Clock = { ...systemClock, sleep: (ms, signal) => systemClock.sleep(ms / 20, signal) };
const rows = await openEpochs(await openSqliteStore({ file: join(folder, "producers.db") }));
const writer = await openSqliteWriter({ file: join(folder, "bus.db"), pageBytes: 16_384 });
const transact = writer.transact.bind(writer);
writer.transact = (...statements) => counted(() => transact(...statements));
const identity = JSON.parse(readFileSync(join(folder, "identity.json"), "utf8"));
const bus = await sqliteBus(writer, {
  epochs: {
    ...rows,
    insert: (row) => counted(() => rows.insert(row)),
    set: (id, fields) => counted(() => rows.set(id, fields)),
  },
  clock,
  topics: JSON.parse(readFileSync(join(folder, "topics.json"), "utf8")),
  identity: () => identity,
});
counting = true;
const producer = await bus.openProducer({ topic: topicNames.uses, name: "verifier/a" });
let sent = 0;
for (const partitions of [[0, 1, 2], [0, 0, 1], [2], [0, 1, 1]]) {
  const records = partitions.map((partition) => {
    sent += 1;
    return { partition, key: "k", headers: { ce_id: `use-${sent}` }, value: Buffer.from(`use ${sent}`) };
  });
  await producer.send(records);
  appendFileSync(join(folder, "acknowledged"), records.map(({ headers }) => `${headers.ce_id}\n`).join(""));
  // Long enough for the row to be written, once each.
  await clock.sleep(1_500);
}
await producer.close();
process.exit(0);
