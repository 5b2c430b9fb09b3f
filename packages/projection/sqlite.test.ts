import { openSqliteStore } from "@curfew/document-store/sqlite.ts";
import type { EpochRow } from "@curfew/event-log/epochs.ts";
import { openSqliteBus } from "@curfew/event-log/sqlite.ts";
import { topic } from "@curfew/event-log/testing/replica.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import { streamContract } from "./contract.ts";

streamContract("SQLite", async () => {
  const store = await openSqliteStore({ file: ":memory:" });
  const epochs = await store.collection<EpochRow>("epochs");
  const bus = await openSqliteBus({ file: ":memory:", epochs, clock: systemClock, topics: { [topic]: 1 } });
  const close = async () => {
    await bus.close();
    await store.close();
  };
  return { store, bus, close };
});
