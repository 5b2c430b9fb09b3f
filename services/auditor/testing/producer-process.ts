/**
 * Sends uses to the bus in the folder argv[2], or to Kafka where its `kafka.json` says so, and kills itself, as the operating system would,
 * before, during or after (argv[4]) its write number argv[3]: of its row in the store of producers, or to the topic. What was acknowledged is
 * in the folder's `acknowledged`, a line for each.
 */
import { appendFileSync, existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { openSqliteStore } from "@curfew/document-store/sqlite.ts";
import { openSqliteWriter } from "@curfew/document-store/sqlite-writer.ts";
import type { OutRecord } from "@curfew/event-log/bus.ts";
import { type EpochRow, openEpochs } from "@curfew/event-log/epochs.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { openKafkaBus } from "@curfew/event-log/kafka.ts";
import { sqliteBus } from "@curfew/event-log/sqlite.ts";
import { type Clock, systemClock } from "@curfew/runtime/clock.ts";

const [, , folder = "", number = "", when = ""] = process.argv;
let writes = 0;
let counting = false;
const counted = async <T>(write: () => Promise<T>): Promise<T> => {
  if (!counting) return await write();
  writes += 1;
  if (writes !== Number(number)) return await write();
  if (when === "before") process.kill(process.pid, "SIGKILL");
  if (when === "during") setTimeout(() => process.kill(process.pid, "SIGKILL"), writes % 5);
  const done = await write();
  process.kill(process.pid, "SIGKILL");
  return done;
};

/** A second takes 50 ms. */
const clock: Clock = { ...systemClock, sleep: (ms, signal) => systemClock.sleep(ms / 20, signal) };
const rows = await openEpochs(await openSqliteStore({ file: join(folder, "producers.db") }));
const read = (file: string) => JSON.parse(readFileSync(join(folder, file), "utf8"));
const identity = read("identity.json");
const settings = {
  epochs: {
    ...rows,
    insert: (row: EpochRow) => counted(() => rows.insert(row)),
    set: (...change: Parameters<typeof rows.set>) => counted(() => rows.set(...change)),
  },
  clock,
  identity: () => identity,
};

const openEmbedded = async () => {
  const writer = await openSqliteWriter({ file: join(folder, "bus.db"), pageBytes: 16_384 });
  const transact = writer.transact.bind(writer);
  writer.transact = (...statements) => counted(() => transact(...statements));
  return await sqliteBus(writer, { ...settings, topics: read("topics.json") });
};
const isKafka = existsSync(join(folder, "kafka.json"));
const bus = isKafka
  ? await openKafkaBus({ ...settings, clock: systemClock, clientId: "killed", ...read("kafka.json") })
  : await openEmbedded();
counting = true;
const producer = await bus.openProducer({ topic: topicNames.uses, name: "verifier/a" });
const send = (records: readonly OutRecord[]) =>
  isKafka ? counted(() => producer.send(records)) : producer.send(records);
let sent = 0;
for (const partitions of [[0, 1, 2], [0, 0, 1], [2], [0, 1, 1]]) {
  const records = partitions.map((partition) => {
    sent += 1;
    return { partition, key: "k", headers: { ce_id: `use-${sent}` }, value: Buffer.from(`use ${sent}`) };
  });
  await send(records);
  appendFileSync(join(folder, "acknowledged"), records.map(({ headers }) => `${headers.ce_id}\n`).join(""));
  // Long enough for the row to be written, once each.
  await (isKafka ? systemClock : clock).sleep(1_500);
}
await producer.close();
process.exit(0);
