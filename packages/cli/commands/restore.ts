import { existsSync } from "node:fs";
import { join } from "node:path";
import { openSqliteStore } from "@curfew/document-store/sqlite.ts";
import type { EpochRow } from "@curfew/event-log/epochs.ts";
import { ownTopics } from "@curfew/event-log/own-topic.ts";
import { restoreStore } from "@curfew/event-log/restore.ts";
import { openSqliteBus } from "@curfew/event-log/sqlite.ts";
import { embeddedTopics } from "@curfew/event-log/topics.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import { DirectoryInUse, lockDirectory } from "@curfew/runtime/exclusive.ts";
import { buildCommand } from "@stricli/core";
import { dataDirectory } from "../connection.ts";
import { CommandFailed, exitCode } from "../exit.ts";
import { dataFlag, outputAlias, outputFlag } from "../flags.ts";
import { type Format, printRows, say } from "../output.ts";

interface RestoreFlags {
  readonly data: string;
  readonly output: Format;
  readonly service?: string;
}

const services = Object.keys(ownTopics);
const parseService = (name: string): string => {
  if (!services.includes(name)) throw new Error(`a service with commits of its own is one of ${services.join(", ")}`);
  return name;
};

const log = { warn: (fields: unknown, message?: string) => say(`${message}: ${JSON.stringify(fields)}`) };

const openBus = async (dataDir: string) => {
  // Nothing is sent, so the producers' epochs are not looked at.
  const epochs = await openSqliteStore({ file: ":memory:" });
  const bus = await openSqliteBus({
    file: join(dataDir, "bus.db"),
    epochs: await epochs.collection<EpochRow>("epochs"),
    clock: systemClock,
    topics: embeddedTopics,
  });
  return { bus, close: () => bus.close().then(() => epochs.close()) };
};

const restoreAll = async (dataDir: string, names: readonly string[]) => {
  const { bus, close } = await openBus(dataDir);
  try {
    const rows = [];
    for (const service of names) {
      const store = await openSqliteStore({ file: join(dataDir, "store", `${service}.db`) });
      try {
        const own = { bus, store, topic: ownTopics[service] as string, service, clock: systemClock, log };
        rows.push({ service, topic: own.topic, ...(await restoreStore(own)) });
      } finally {
        await store.close();
      }
    }
    return rows;
  } finally {
    await close();
  }
};

const lockOf = (dataDir: string) => {
  try {
    return lockDirectory(dataDir);
  } catch (error) {
    if (!(error instanceof DirectoryInUse)) throw error;
    throw new CommandFailed(exitCode.refused, error.message);
  }
};

export const restore = buildCommand({
  docs: {
    brief: "Copy back from the log what stores restored from a backup lack",
    fullDescription:
      "For the suite of one process, which must be stopped. May be run again and interrupted at any time. Services that are processes of their own restore themselves: start each once with CURFEW_RESTORE=true. Secrets that waited to be collected are not on the log and do not come back.",
  },
  parameters: {
    flags: {
      ...dataFlag,
      ...outputFlag,
      service: {
        kind: "parsed",
        parse: parseService,
        brief: `only this one: ${services.join(", ")}`,
        optional: true,
        placeholder: "NAME",
      },
    },
    aliases: outputAlias,
    positional: { kind: "tuple", parameters: [] },
  },
  func: async (flags: RestoreFlags) => {
    const dataDir = dataDirectory(flags);
    if (!existsSync(join(dataDir, "bus.db")))
      throw new CommandFailed(exitCode.usage, `there is no bus.db in ${dataDir}: name the suite's data directory`);
    const lock = lockOf(dataDir);
    try {
      const rows = await restoreAll(dataDir, flags.service === undefined ? services : [flags.service]);
      printRows(flags.output, rows, ["service", "records", "commits", "replaced"]);
    } catch (error) {
      if ((error as Error).name !== "StreamForked") throw error;
      throw new CommandFailed(exitCode.refused, (error as Error).message);
    } finally {
      lock.release();
    }
  },
});
