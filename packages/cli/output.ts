import Table from "cli-table3";

export type Format = "table" | "json";

/** Prints rows to standard output: one JSON array, or a table without colours (they would only help a terminal, and it is the data that counts). */
export const printRows = (
  format: Format,
  rows: readonly Readonly<Record<string, unknown>>[],
  columns: readonly string[],
) => {
  if (format === "json") {
    process.stdout.write(`${JSON.stringify(rows, null, 2)}\n`);
    return;
  }
  const plain = {
    top: "",
    "top-mid": "",
    "top-left": "",
    "top-right": "",
    bottom: "",
    "bottom-mid": "",
    "bottom-left": "",
    "bottom-right": "",
    left: "",
    "left-mid": "",
    mid: "",
    "mid-mid": "",
    right: "",
    "right-mid": "",
    middle: "  ",
  };
  const table = new Table({
    head: columns.map((c) => c.toUpperCase()),
    chars: plain,
    style: { head: [], border: [], "padding-left": 0, "padding-right": 0 },
  });
  for (const row of rows) table.push(columns.map((column) => cell(row[column])));
  process.stdout.write(`${table.toString()}\n`);
};

/** Prints one thing: JSON, or a line a field. */
export const printOne = (format: Format, row: Readonly<Record<string, unknown>>) => {
  if (format === "json") process.stdout.write(`${JSON.stringify(row, null, 2)}\n`);
  else
    for (const [name, value] of Object.entries(row)) process.stdout.write(`${`${name}:`.padEnd(20)} ${cell(value)}\n`);
};

/** A terminal must not be steered by what a log holds. */
const cell = (value: unknown): string =>
  (typeof value === "string" ? value : value === undefined ? "" : JSON.stringify(value)).replace(/\p{Cc}/gu, " ");

/** For people, on standard error, so that standard output stays data. */
export const say = (line: string) => process.stderr.write(`${line}\n`);
