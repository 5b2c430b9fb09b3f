#!/usr/bin/env node
import { run } from "@stricli/core";
import { app } from "./app.ts";
import { exitCode } from "./exit.ts";

const { argv, stdout, stderr, env } = process;
const context: {
  process: { stdout: typeof stdout; stderr: typeof stderr; env: typeof env; exitCode?: number | string };
} = {
  process: { stdout, stderr, env },
};
await run(app, argv.slice(2), context);
// The parser's own codes, for a command line that it does not understand, are negative or above 250.
const code = Number(context.process.exitCode ?? exitCode.ok);
process.exitCode = code < 0 || code > 250 ? exitCode.usage : code;
