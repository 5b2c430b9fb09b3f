import { maskSecrets } from "@curfew/runtime/log.ts";
import Table from "cli-table3";

export type Format = "table" | "json";

/** Control characters but for the line feed, and those that turn text around or hide it: they would steer the reader's terminal. */
const steering = /[^\P{C}\n]|[\u2028\u2029]/gu;
const escapeUnits = (text: string) =>
  Array.from({ length: text.length }, (_, i) => `\\u${text.charCodeAt(i).toString(16).padStart(4, "0")}`).join("");

/**
 * The one form in which text leaves the command, whatever a service, a file name or a command line held: should a secret ever be in it,
 * it is masked; what steers a terminal is escaped as in JSON, so that JSON stays JSON and loses nothing.
 */
export const printable = (text: string): string => maskSecrets(text).replace(steering, escapeUnits);

export const standardOutput = { write: (text: string) => void process.stdout.write(printable(text)) };
export const standardError = { write: (text: string) => void process.stderr.write(printable(text)) };

const printJson = (value: unknown) => standardOutput.write(`${JSON.stringify(value, null, 2)}\n`);

const textOf = (value: unknown): string => {
  if (typeof value === "string") return value;
  if (value === undefined) return "";
  return Array.isArray(value) && value.every((each) => typeof each === "string")
    ? value.join(", ")
    : JSON.stringify(value);
};
const cell = (value: unknown): string => printable(textOf(value)).replaceAll("\n", "\\n");

const sides = ["top", "bottom", "left", "right", "mid"];
const frame = ["top-mid", "top-left", "top-right", "bottom-mid", "bottom-left", "bottom-right", "left-mid", "mid-mid"];
const noFrame = Object.fromEntries([...sides, ...frame, "right-mid"].map((name) => [name, ""]));

/** Prints rows to standard output: one JSON array, or a table without frame and colours. */
export const printRows = (
  format: Format,
  rows: readonly Readonly<Record<string, unknown>>[],
  columns: readonly string[],
) => {
  if (format === "json") return printJson(rows);
  const table = new Table({
    head: columns.map((c) => c.toUpperCase()),
    chars: { ...noFrame, middle: "  " },
    style: { head: [], border: [], "padding-left": 0, "padding-right": 0 },
  });
  for (const row of rows) table.push(columns.map((column) => cell(row[column])));
  standardOutput.write(`${table.toString().replace(/ +$/gm, "")}\n`);
};

/** Prints one thing: JSON, or a line a field. */
export const printOne = (format: Format, row: Readonly<Record<string, unknown>>) => {
  if (format === "json") return printJson(row);
  for (const [name, value] of Object.entries(row)) {
    const label = name && `${name}:`; // without one it goes on with what the line before is about
    standardOutput.write(`${label.padEnd(20)} ${cell(value)}\n`);
  }
};

/** For people, on standard error, so that standard output stays data. */
export const say = (line: string) => standardError.write(`${line}\n`);

/** A block of lines that is drawn in place on a terminal, and lines above it that stay. Elsewhere only the latter are written. */
export const openScreen = () => {
  let drawn = 0;
  return {
    inPlace: process.stdout.isTTY === true,
    draw(staying: readonly string[], block: readonly string[]) {
      // Cut to the width: a line that wraps would take two.
      const width = process.stdout.columns ?? 80;
      const lines = this.inPlace
        ? block.map((line) =>
            printable(line)
              .replaceAll("\n", " ")
              .slice(0, width - 1),
          )
        : [];
      const back = this.inPlace ? `${drawn > 0 ? `\x1b[${drawn}A` : ""}\r\x1b[J` : "";
      process.stdout.write(`${back}${[...staying.map(printable), ...lines].map((line) => `${line}\n`).join("")}`);
      drawn = lines.length;
    },
  };
};

/** Counts on long work, on a terminal only; `clear` leaves the line empty. */
export const openProgress = () => {
  const counts = new Map<string, number>();
  let shown = 0;
  return {
    count(what: string) {
      if (!process.stderr.isTTY) return;
      counts.set(what, (counts.get(what) ?? 0) + 1);
      shown += 1;
      if (shown % 500 === 0)
        process.stderr.write(`\r${[...counts].map(([name, n]) => `${n} ${name}`).join(", ")}\x1b[K`);
    },
    clear() {
      if (shown >= 500) process.stderr.write("\r\x1b[K");
    },
  };
};

const barWidth = 30;
const barEveryMs = 100;

/** How much of a long work of known length is done, on a terminal only; `clear` leaves the line empty. */
export const openBar = (what: string) => {
  let shownAt = 0;
  return {
    show(done: number, all: number) {
      if (!process.stderr.isTTY || performance.now() < shownAt + barEveryMs) return;
      shownAt = performance.now();
      const filled = Math.floor((barWidth * done) / all);
      const bar = `${"#".repeat(filled)}${".".repeat(barWidth - filled)}`;
      process.stderr.write(`\r[${bar}] ${Math.floor((100 * done) / all)} % ${done} of ${all} ${what}\x1b[K`);
    },
    clear() {
      if (shownAt > 0) process.stderr.write("\r\x1b[K");
    },
  };
};
