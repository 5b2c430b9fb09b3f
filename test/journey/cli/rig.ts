import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { parsePaging } from "@curfew/breach-notifier/paging.ts";
import { configFileOf, openSuite, type Suite } from "@curfew/deploy/embedded/suite.ts";
import { readSuiteConfig } from "@curfew/deploy/embedded/suite-config.ts";
import { openLog } from "@curfew/runtime/log.ts";
import { secretVariants } from "@curfew/token-format/variants.ts";
import { afterAll, beforeAll, expect } from "vitest";

/**
 * The `curfew` command as people run it: a process of its own against a running suite, which the test file that imports this has to
 * itself. Everybody of the sample is there, and `workload/shop`, which may have what `grant` says.
 */
export const root = fileURLToPath(new URL("../../../", import.meta.url));
export const main = join(root, "packages/cli/main.ts");
/** Where commands are run. */
export const dir = mkdtempSync(join(tmpdir(), "curfew-cli-"));
export const at = (name: string) => join(dir, name);
export const dataDir = at("data");
let suite: Suite;
/** Where pages go. */
const receiver = createServer((request, response) => {
  request.resume().on("end", () => response.writeHead(204).end());
});
/** Everything that the suite or any command printed. */
export const printed: string[] = [];
export const secrets: string[] = [];

export const run = async (
  command: string,
  args: readonly string[],
  input = "",
  env: NodeJS.ProcessEnv = {},
): Promise<{ readonly code: number; readonly out: string; readonly err: string }> => {
  const child = spawn(command, args, { cwd: dir, env: { ...process.env, CURFEW_DATA_DIR: dataDir, ...env } });
  child.stdin.on("error", () => undefined); // it need not read what it is given
  child.stdin.end(input);
  const texts = [child.stdout, child.stderr].map(async (stream) =>
    Buffer.concat(await stream.toArray()).toString("utf8"),
  );
  const [code] = (await once(child, "close")) as [number];
  const [out = "", err = ""] = await Promise.all(texts);
  printed.push(out, err);
  return { code, out, err };
};
export const curfew = (...args: string[]) => run(process.execPath, [main, ...args]);
export const json = async (...args: string[]) => {
  const { code, out, err } = await curfew(...args, "-o", "json");
  expect({ code, err: code === 0 ? "" : err }).toEqual({ code: 0, err: "" });
  return JSON.parse(out);
};
export const until = async <T>(what: string, ask: () => Promise<T | undefined>): Promise<T> => {
  for (let n = 0; n < 100; n += 1) {
    const answer = await ask();
    if (answer !== undefined) return answer;
    await sleep(50);
  }
  throw new Error(`${what}: not there`);
};

export const grant = [
  ["--scope", "invoices:read"],
  ["--resource", "invoices/**"],
  ["--audience", "invoices"],
  ["--purpose", "billing"],
  ["--category", "financial"],
].flat();
export const use = [
  ...["--scope", "invoices:read", "--resource", "invoices/1"],
  ...["--purpose", "billing", "--controller", "acme"],
];
/** The secret in a file, which from now on must not be printed in any form. */
export const secretIn = (name: string) => {
  const secret = readFileSync(at(name), "utf8").trim();
  secrets.push(secret);
  return secret;
};
export const create = async (file: string) => {
  const { token } = await json("token", "create", "--as", "workload/shop", ...grant, "--secret-file", at(file));
  return { token: token as string, secret: secretIn(file) };
};
export const stateOf = async (token: string) => (await json("token", "show", token, "--as", "person/sam")).state;
/** Those of the texts that have a secret in them, in whatever form. */
export const leaking = (texts: readonly string[]) => {
  const forms = secrets.flatMap((secret) => secretVariants(secret));
  return texts.filter((text) => forms.some(({ bytes }) => Buffer.from(text).includes(bytes)));
};

beforeAll(async () => {
  receiver.listen(0, "127.0.0.1");
  await once(receiver, "listening");
  const address = `127.0.0.1:${(receiver.address() as AddressInfo).port}`;
  writeFileSync(at("webhook"), `whsec_${Buffer.alloc(32, 1).toString("base64")}\n`, { mode: 0o600 });
  const target = `{ name: hook, channel: webhook, url: "http://${address}/", secret_file: ${at("webhook")} }`;
  const sample = readFileSync(join(root, "deploy/embedded/curfew.yaml"), "utf8").replace(/^paging:[\s\S]*/m, "");
  const withPaging = () => `${sample}\npaging: { allow: ["${address}"], targets: [${target}] }\n`;
  const config = readSuiteConfig(configFileOf(dataDir, withPaging), parsePaging);
  const log = openLog({ service: "test", level: "error", write: (line) => printed.push(line) });
  suite = await openSuite({ dataDir, config, port: 0, reflection: false, log });
  const policy = readFileSync(join(root, "deploy/embedded/policy.yaml"), "utf8");
  writeFileSync(at("policy.yaml"), policy.replace("[workload/billing]", "[workload/billing, workload/shop]"));
  await Promise.all([
    json("identity", "create", "workload/shop"),
    json("policy", "publish", "default", at("policy.yaml"), "--as", "person/ada"),
  ]);
}, 60_000);
afterAll(async () => {
  await suite.close();
  receiver.closeAllConnections();
  receiver.close();
  rmSync(dir, { recursive: true, force: true });
  expect(leaking(printed)).toEqual([]);
});
