import { AuditorService } from "@curfew/contracts/gen/curfew/auditor/v1/auditor_pb.ts";
import { RemoteError } from "@curfew/rpc/errors.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import { buildCommand } from "@stricli/core";
import { type ConnectionFlags, onConnection } from "../connection.ts";
import { CommandFailed, exitCode, failureOf } from "../exit.ts";
import { connectionFlags, outputAlias, outputFlag } from "../flags.ts";
import { conditions, type HealthRow, healthRow, screenOf, turnsOf } from "../health-screen.ts";
import { type Format, openScreen, printOne, standardOutput } from "../output.ts";

interface HealthFlags extends ConnectionFlags {
  readonly output: Format;
}

const everyMs = 1_000;

export const health = buildCommand({
  docs: {
    brief: "Show the two verdicts, and what they rest on. Exit 1: integrity is broken; 3: completeness is",
  },
  parameters: { flags: { ...connectionFlags, ...outputFlag }, aliases: outputAlias },
  func: (flags: HealthFlags) =>
    onConnection(flags, async (connection) => {
      const row = healthRow(await connection.service(AuditorService, "auditor").getHealth({}));
      if (flags.output === "json") printOne("json", row);
      else standardOutput.write(`${screenOf(row).join("\n")}\n`);
      if (row.integrity.state === "BROKEN") throw new CommandFailed(exitCode.no, "integrity is broken");
      if (row.completeness.state === "BROKEN") throw new CommandFailed(exitCode.refused, "completeness is broken");
    }),
});

/** What a change is: a condition, or what is open; not the counts that always grow. */
const changing = (row: HealthRow): string =>
  JSON.stringify([...conditions(row), row.integrity.findings, row.completeness.findings, row.drift.findings]);

/** Shows each state; on a terminal in place, else where something has changed. */
const openView = (output: Format) => {
  const screen = openScreen();
  let before: ReadonlyMap<string, string> = new Map();
  let shown = "";
  return {
    show(row: HealthRow, at: string) {
      const turns = turnsOf(before, row).map((turn) => `${at}  ${turn}`);
      before = conditions(row);
      const isNew = changing(row) !== shown;
      shown = changing(row);
      if (output === "json") {
        if (isNew) standardOutput.write(`${JSON.stringify({ at, turned: turns, ...row })}\n`);
      } else if (screen.inPlace) screen.draw(turns, [at, ...screenOf(row)]);
      else if (isNew) standardOutput.write(`${[...turns, at, ...screenOf(row), ""].join("\n")}\n`);
    },
    unavailable(why: string, at: string) {
      if (shown === why) return;
      shown = why;
      if (output === "json") standardOutput.write(`${JSON.stringify({ at, unavailable: why })}\n`);
      else screen.draw([`${at}  the auditor does not answer: ${why}`], []);
    },
  };
};

/** Until ^C. Not being answered for now is shown, and does not end it. */
const watchHealth = async (flags: HealthFlags, signal: AbortSignal) =>
  onConnection(flags, async (connection) => {
    const auditor = connection.service(AuditorService, "auditor");
    const view = openView(flags.output);
    while (!signal.aborted) {
      const at = () => new Date(systemClock.now()).toISOString();
      try {
        view.show(healthRow(await auditor.getHealth({}, { signal })), at());
      } catch (error) {
        if (signal.aborted) return;
        const isOver = !(error instanceof RemoteError) || failureOf(error).code !== exitCode.unavailable;
        if (isOver) throw error;
        view.unavailable(error.message, at());
      }
      await systemClock.sleep(everyMs, signal);
    }
  });

export const watch = buildCommand({
  docs: {
    brief: "Watch integrity, completeness, drift, lag and witnesses until ^C",
    fullDescription:
      "On a terminal one screen that is drawn in place, and a line above it for whatever turns. Elsewhere the same whenever something changes; with -o json one object a line.",
  },
  parameters: { flags: { ...connectionFlags, ...outputFlag }, aliases: outputAlias },
  func: async (flags: HealthFlags) => {
    const stop = new AbortController();
    const end = () => stop.abort();
    process.once("SIGINT", end).once("SIGTERM", end);
    try {
      await watchHealth(flags, stop.signal);
    } finally {
      process.off("SIGINT", end).off("SIGTERM", end);
    }
  },
});
