import { execFileSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { describe, expect, it } from "vitest";

/** The house rules, executed. Each failure names the file and the line. */
const root = join(import.meta.dirname, "..");
const files = execFileSync("git", ["ls-files", "--cached", "--others", "--exclude-standard"], {
  cwd: root,
  encoding: "utf8",
}).split("\n");
const tracked = files.filter((f) => f.endsWith(".ts") && !f.startsWith("packages/contracts/gen/"));
const source = (file: string) => readFileSync(join(root, file), "utf8");
const isTest = (file: string) =>
  /\.test\.ts$|^test\/|contract[a-z-]*\.ts$|spec\.ts$|test-|\/testing\/|\/examples\//.test(file);
const product = tracked.filter((file) => !isTest(file));
/** Comments and strings gone, lines kept: rules are about code. */
const code = (file: string) =>
  source(file)
    .replace(/\/\*[\s\S]*?\*\//g, (c) => c.replace(/[^\n]/g, " "))
    .replace(/(^|\s)\/\/[^\n]*/g, "");

const offenders = (files: readonly string[], pattern: RegExp) =>
  files.flatMap((file) =>
    code(file)
      .split("\n")
      .flatMap((line, i) => (pattern.test(line) ? [`${file}:${i + 1}: ${line.trim()}`] : [])),
  );

describe("house rules", () => {
  it("the clock, randomness and the environment are read in main, config and runtime only", () => {
    const edges =
      /(^|\/)(main|config|vitest\.config)\.ts$|^packages\/runtime\/|^packages\/simulation\/|^deploy\/|^packages\/cli\//;
    const inside = product.filter((file) => !edges.test(file));
    expect(offenders(inside, /\bDate\.now\(|new Date\(\)|Math\.random\(|performance\.now\(|process\.hrtime/)).toEqual(
      [],
    );
    expect(offenders(inside, /\bprocess\.env\b/)).toEqual([]);
    expect(offenders(inside, /\brandom(Bytes|FillSync|Int|UUID)\(/)).toEqual([]);
  });

  it("a domain imports only pure packages, and so does what the verifier decides over", () => {
    const pure =
      /^(\.\.?\/|@curfew\/(contracts|decider|token-format|ledger)\/|@bufbuild\/protobuf|node:(crypto|assert))/;
    const found = product
      .filter((file) => /^services\/([^/]+\/domain(\.ts|\/)|verifier\/projections\.ts)/.test(file))
      .flatMap((file) =>
        [...source(file).matchAll(/from "([^"]+)"/g)]
          .map((m) => m[1] as string)
          .filter((name) => !pure.test(name))
          .map((name) => `${file}: ${name}`),
      );
    expect(found).toEqual([]);
  });

  it("no service imports another, and no package imports a service", () => {
    const found = product.flatMap((file) => {
      const own = /^services\/([^/]+)\//.exec(file)?.[1];
      if (!file.startsWith("services/") && !file.startsWith("packages/")) return [];
      return [
        ...source(file).matchAll(/from "@curfew\/(issuer|verifier|revocation|auditor|breach-notifier|gateway)\//g),
      ]
        .filter((m) => m[1] !== own)
        .map((m) => `${file} imports ${m[1]}`);
    });
    expect(found).toEqual([]);
  });

  it("there are no barrels and no drawers for everything", () => {
    expect(tracked.filter((f) => /^(index|utils?|common|types|helpers?|misc)\.ts$/.test(basename(f)))).toEqual([]);
    expect(tracked.filter((f) => /(^|\/)(src|utils|common|types|helpers)\//.test(dirname(f)))).toEqual([]);
    expect(offenders(product, /^export \* from/)).toEqual([]);
  });

  it("file names are kebab-case", () => {
    expect(tracked.filter((f) => !/^[a-z0-9]+([.-][a-z0-9]+)*\.ts$/.test(basename(f)))).toEqual([]);
  });

  it("services have the same face", () => {
    const face = ["domain", "grpc", "reactions", "projections", "service", "config", "main"].map(
      (name) => `${name}.ts`,
    );
    const services = [...new Set(product.flatMap((file) => /^services\/([^/]+)\//.exec(file)?.[1] ?? []))];
    expect(services.length).toBeGreaterThanOrEqual(5);
    for (const service of services)
      expect(
        face.filter((name) => !product.includes(`services/${service}/${name}`)),
        service,
      ).toEqual([]);
  });

  it("a package imports whatever it declares (the root's are tools)", () => {
    const found = files
      .filter((file) => file.endsWith("/package.json"))
      .flatMap((manifest) => {
        const own = files.filter((file) => file.startsWith(`${dirname(manifest)}/`) && file.endsWith(".ts"));
        const imported = new Set(
          own.flatMap((file) =>
            [...source(file).matchAll(/\b(?:from|import)[ (]"((?:@[^/"]+\/)?[^/"]+)/g)].map((m) => m[1]),
          ),
        );
        const { dependencies = {}, devDependencies = {} } = JSON.parse(source(manifest));
        return Object.keys({ ...dependencies, ...devDependencies })
          .filter((name) => !imported.has(name))
          .map((name) => `${manifest}: ${name}`);
      });
    expect(found).toEqual([]);
  });

  it("what is traced and measured is named in one module, which alone knows OpenTelemetry", () => {
    const found = product.filter((file) => /from "@opentelemetry\//.test(source(file)));
    expect(found.sort()).toEqual(["packages/runtime/log.ts", "packages/runtime/telemetry.ts"]);
  });

  it("files stay under 400 lines (Biome counts those of functions)", () => {
    const long = product
      .map((file) => [file, source(file).split("\n").length] as const)
      .filter(([, lines]) => lines > 400);
    expect(long).toEqual([]);
  });

  it("every promise and error is looked at: no empty catch, no silenced checker", () => {
    expect(offenders(product, /catch *(\([^)]*\))? *\{ *\}|@ts-ignore|@ts-expect-error|\bas any\b/)).toEqual([]);
  });

  it("no test is skipped by hand or run alone", () => {
    const tests = tracked.filter((f) => f.endsWith(".test.ts") && f !== "test/tidy.test.ts");
    expect(offenders(tests, /\b(it|test|describe)\.(only|todo)\b|\b(it|test|describe)\.skip\(/)).toEqual([]);
  });

  it("every link in a README leads somewhere", () => {
    const readmes = execFileSync("git", ["ls-files", "*.md"], { cwd: root, encoding: "utf8" })
      .split("\n")
      .filter(Boolean);
    const dead = readmes.flatMap((file) =>
      [...source(file).matchAll(/\]\(([^)#\s]+)(#[^)]*)?\)/g)]
        .map((m) => m[1] as string)
        .filter((link) => !/^[a-z]+:/.test(link) && !existsSync(join(root, dirname(file), link)))
        .map((link) => `${file}: ${link}`),
    );
    expect(dead).toEqual([]);
  });

  it("no registry host and no path of a machine stands in the tree", () => {
    const all = execFileSync("git", ["ls-files"], { cwd: root, encoding: "utf8" })
      .split("\n")
      .filter((f) => /\.(ts|md|json|ya?ml|sh|proto)$/.test(f) || f === ".ci/run");
    const found = all.filter(
      (f) =>
        f !== "test/tidy.test.ts" &&
        /registry\.npmjs|repo1?\.maven|proxy\.golang|deb\.debian|\/work\/(main|shared)/.test(source(f)),
    );
    expect(found).toEqual([]);
  });
});
