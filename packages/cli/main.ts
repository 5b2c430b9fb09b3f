#!/usr/bin/env node
import { enableCompileCache } from "node:module";
import { fileURLToPath } from "node:url";

// Before all else: without it a command compiles for as long again as it takes to run. Where nothing can be written it is without.
enableCompileCache(fileURLToPath(new URL("../../.cache/compile", import.meta.url)));
const { run } = await import("@stricli/core");
const { app } = await import("./app.ts");
const { completionsOf } = await import("./completion.ts");
const { exitCode } = await import("./exit.ts");
const { standardError, standardOutput } = await import("./output.ts");

for (const stream of [process.stdout, process.stderr])
  stream.on("error", (error: NodeJS.ErrnoException) => {
    if (error.code === "EPIPE") return; // the reader, `head` for example, has seen enough: the exit code still counts
    if (stream === process.stdout) standardError.write(`curfew: standard output cannot be written: ${error.message}\n`);
    process.exit(exitCode.usage);
  });
// No `getColorDepth`: nothing is coloured, so there is nothing for NO_COLOR to switch off.
const context: {
  process: {
    stdout: typeof standardOutput;
    stderr: typeof standardError;
    env: NodeJS.ProcessEnv;
    exitCode?: number | string;
  };
} = { process: { stdout: standardOutput, stderr: standardError, env: process.env } };
const typed = process.argv.slice(2);
const words = typed[0] === "help" ? [...typed.slice(1), "--help"] : typed;
if (words[0] === "__complete") standardOutput.write(await completionsOf(app, words.slice(1), context));
else await run(app, words, context);
// The parser's own codes are negative: -4 and below for a command line that it does not understand, the others for our faults.
const code = Number(context.process.exitCode ?? exitCode.ok);
process.exitCode = code >= 0 ? code : code <= -4 && code > -10 ? exitCode.usage : exitCode.internal;
