import type { Log } from "@curfew/runtime/log.ts";

/** For whoever passes no log: an SDK writes nothing of its own accord. */
export const silentLog: Log = {
  debug: () => undefined,
  info: () => undefined,
  warn: () => undefined,
  error: () => undefined,
  child: () => silentLog,
};
