import { closeSync, openSync, readSync, statSync } from "node:fs";
import { resolve } from "node:path";
import { parse as parseYaml } from "yaml";
import { assertPrivate, NotPrivate } from "./exclusive.ts";

/**
 * Environment and an optional file become one frozen object. Every mistake is collected before anything is refused, and no
 * message repeats a value: a wrong value is often a secret in the wrong place.
 */
export class ConfigError extends Error {
  override name = "ConfigError";
  readonly problems: readonly string[];
  constructor(problems: readonly string[]) {
    super(`configuration: ${problems.join("; ")}`);
    this.problems = problems;
  }
}

/** What a reader throws: only the expectation ("must be …"), never the value. */
export class Mistake extends Error {}

/** One setting. `about` is what a person reads in `--help` and beside a mistake; `fallback` is used when nothing is given. */
export interface Field<T> {
  readonly about: string;
  readonly fallback?: { readonly value: T };
  /** From an environment string or a file value; throws Mistake. */
  parse(raw: unknown): T;
}
/** By setting name in camelCase: `graceMs` is `CURFEW_GRACE_MS` in the environment and `graceMs` in the file. */
export type Spec = Readonly<Record<string, Field<unknown>>>;
export type Config<S extends Spec> = { readonly [K in keyof S]: S[K] extends Field<infer T> ? T : never };

interface Common<T> {
  readonly about: string;
  readonly default?: T;
}

const maxConfigFileBytes = 1024 * 1024;
const maxStringLength = 4096;
const maxListItems = 1000;

const field = <T>(common: Common<T>, parse: (raw: unknown) => T): Field<T> => ({
  about: common.about,
  ...(common.default === undefined ? {} : { fallback: { value: common.default } }),
  parse,
});

const parseText = (raw: unknown): string => {
  if (typeof raw !== "string") throw new Mistake("must be text");
  const s = raw.trim();
  if (s === "") throw new Mistake("must not be empty");
  if (s.length > maxStringLength) throw new Mistake(`must have at most ${maxStringLength} characters`);
  // biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what is refused
  if (/[\u0000-\u001f\u007f]/.test(s)) throw new Mistake("must not contain control characters");
  return s;
};

const parseInteger = (raw: unknown, min: number, max: number, what: string): number => {
  const n = typeof raw === "string" && /^-?\d{1,16}$/.test(raw.trim()) ? Number(raw) : raw;
  if (typeof n !== "number" || !Number.isSafeInteger(n) || n < min || n > max)
    throw new Mistake(`must be ${what} from ${min} to ${max}`);
  return n;
};

export const string = (o: Common<string> & { readonly pattern?: RegExp; readonly expect?: string }): Field<string> =>
  field(o, (raw) => {
    const s = parseText(raw);
    if (o.pattern && !o.pattern.test(s)) throw new Mistake(`must be ${o.expect ?? `like ${o.pattern.source}`}`);
    return s;
  });

export const integer = (o: Common<number> & { readonly min: number; readonly max: number }): Field<number> =>
  field(o, (raw) => parseInteger(raw, o.min, o.max, "a whole number"));

const unitMs: Readonly<Record<string, number>> = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 };

/** Milliseconds, from "250ms", "5s", "2m", "1h", "30d" or a bare number of milliseconds. */
export const durationMs = (o: Common<number> & { readonly minMs: number; readonly maxMs: number }): Field<number> =>
  field(o, (raw) => {
    const m = typeof raw === "string" ? /^(\d{1,15})(ms|s|m|h|d)$/.exec(raw.trim()) : null;
    const ms = m?.[1] && m[2] ? Number(m[1]) * (unitMs[m[2]] ?? Number.NaN) : raw;
    return parseInteger(ms, o.minMs, o.maxMs, 'a duration ("250ms", "5s", "2m", "1h", "30d") in milliseconds');
  });

export const boolean = (o: Common<boolean>): Field<boolean> =>
  field(o, (raw) => {
    if (raw === true || raw === "true") return true;
    if (raw === false || raw === "false") return false;
    throw new Mistake("must be true or false");
  });

export const oneOf = <const T extends string>(o: Common<T> & { readonly values: readonly T[] }): Field<T> =>
  field(o, (raw) => {
    const found = o.values.find((v) => v === (typeof raw === "string" ? raw.trim() : raw));
    if (found === undefined) throw new Mistake(`must be one of ${o.values.join(", ")}`);
    return found;
  });

const statOf = (p: string) => {
  try {
    return statSync(p, { throwIfNoEntry: false });
  } catch (error) {
    throw new Mistake(`must be a path that can be looked at (${(error as NodeJS.ErrnoException).code ?? "unknown"})`);
  }
};

const onlyOurs = (dir: string): void => {
  try {
    assertPrivate(dir);
  } catch (error) {
    if (!(error instanceof NotPrivate)) throw error;
    throw new Mistake(`must be a directory that can be used (${error.message})`);
  }
};

/** An absolute path. `existing` checks that it is there; `private` that nobody but its owner may read it (a secret, or a directory of them). */
export const path = (
  o: Common<string> & { readonly existing?: "file" | "directory"; readonly private?: boolean },
): Field<string> =>
  field(o, (raw) => {
    const p = resolve(parseText(raw));
    if (!o.existing) return p;
    const stat = statOf(p);
    if (!(o.existing === "file" ? stat?.isFile() : stat?.isDirectory()))
      throw new Mistake(`must be the path of an existing ${o.existing}`);
    if (o.private && o.existing === "directory") onlyOurs(p);
    else if (o.private && stat && (stat.mode & 0o077) !== 0)
      throw new Mistake("must be readable by its owner alone (chmod go= it)");
    return p;
  });

export interface Address {
  readonly host: string;
  /** 0 where the system may choose (only with `anyPort`). */
  readonly port: number;
}
const loopbackHost = /^(localhost|127(\.\d{1,3}){3}|::1)$/;

/** "host:port" or "[::1]:port"; `loopback` allows only this machine. */
export const address = (
  o: Common<Address> & { readonly loopback?: boolean; readonly anyPort?: boolean },
): Field<Address> =>
  field(o, (raw) => {
    const m = /^(?:\[([0-9a-fA-F:]+)\]|([0-9A-Za-z.-]{1,253})):(\d{1,5})$/.exec(parseText(raw));
    const host = m?.[1] ?? m?.[2];
    const port = Number(m?.[3]);
    if (!host || port > 65_535 || (port === 0 && !o.anyPort))
      throw new Mistake(`must be host:port, with a port from ${o.anyPort ? 0 : 1} to 65535`);
    if (o.loopback && !loopbackHost.test(host)) throw new Mistake("must be an address of this machine (localhost)");
    return { host, port };
  });

export const url = (o: Common<string> & { readonly schemes: readonly string[] }): Field<string> =>
  field(o, (raw) => {
    const u = URL.parse(parseText(raw));
    if (!u || !o.schemes.includes(u.protocol.slice(0, -1)))
      throw new Mistake(`must be a URL beginning with ${o.schemes.map((s) => `${s}://`).join(" or ")}`);
    if (u.username || u.password) throw new Mistake("must not contain a user name or password");
    return u.href;
  });

/** A list of such values: separated by commas in the environment, a sequence in the file. */
export const list = <T>(
  item: Field<T>,
  o: Common<readonly T[]> & { readonly min?: number; readonly max?: number },
): Field<readonly T[]> =>
  field(o, (raw) => {
    const items = typeof raw === "string" ? raw.split(",").filter((s) => s.trim() !== "") : raw;
    const max = o.max ?? maxListItems;
    if (!Array.isArray(items) || items.length < (o.min ?? 0) || items.length > max)
      throw new Mistake(`must be a list of ${o.min ?? 0} to ${max} entries`);
    return items.map((one, i) => {
      try {
        return item.parse(one);
      } catch (e) {
        throw e instanceof Mistake ? new Mistake(`entry ${i + 1} ${e.message}`) : e;
      }
    });
  });

/** Anything structured, from the file only: `parse` throws Mistake. */
export const structure = <T>(o: Common<T> & { readonly parse: (raw: unknown) => T }): Field<T> =>
  field(o, (raw) => {
    if (typeof raw === "string") throw new Mistake("can only be given in the configuration file");
    return o.parse(raw);
  });

/** The same setting, `undefined` when it is not given. */
export const optional = <T>(inner: Field<T>): Field<T | undefined> => ({
  about: inner.about,
  fallback: { value: undefined },
  parse: (raw) => inner.parse(raw),
});

/** `graceMs` → `CURFEW_GRACE_MS`. */
export const envName = (key: string): string => `CURFEW_${key.replace(/[A-Z]/g, (c) => `_${c}`).toUpperCase()}`;

const distance = (a: string, b: string): number => {
  let row = Array.from({ length: b.length + 1 }, (_, i) => i);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++)
      next.push(
        Math.min((next[j - 1] ?? 0) + 1, (row[j] ?? 0) + 1, (row[j - 1] ?? 0) + (a[i - 1] === b[j - 1] ? 0 : 1)),
      );
    row = next;
  }
  return row[b.length] ?? 0;
};

const maxNameLength = 100;
const didYouMean = (name: string, known: readonly string[]): string => {
  if (name.length > maxNameLength) return "is not a setting";
  const [best] = known.map((k) => ({ k, d: distance(name, k) })).sort((a, b) => a.d - b.d);
  return best && best.d <= Math.max(2, name.length / 4)
    ? `is not a setting; did you mean ${best.k}?`
    : "is not a setting";
};

/** Where and how else settings are read and looked at; see `readConfig`. */
export interface ReadOptions<S extends Spec> {
  readonly file?: Readonly<Record<string, unknown>>;
  readonly alsoKnown?: readonly string[];
  /** Mistakes in how settings go together, of what could be read: told with all the others. */
  readonly check?: (given: Partial<Config<S>>) => readonly string[];
}

/**
 * Reads every setting of `spec`: the environment wins over `file`. Unknown file keys and unknown `CURFEW_*` variables are
 * mistakes, except the variables named in `alsoKnown` (another reader's). Throws ConfigError with all mistakes.
 */
export const readConfig = <const S extends Spec>(
  env: Readonly<Record<string, string | undefined>>,
  spec: S,
  options: ReadOptions<S> = {},
): Config<S> => {
  const file = options.file ?? {};
  const problems: string[] = [];
  const values: Record<string, unknown> = {};
  for (const [key, f] of Object.entries(spec)) {
    const name = envName(key);
    const fromEnv = env[name] !== undefined;
    const raw = fromEnv ? env[name] : Object.hasOwn(file, key) ? file[key] : undefined;
    if (raw === undefined) {
      if (f.fallback) values[key] = f.fallback.value;
      else problems.push(`${name} is required: ${f.about}`);
      continue;
    }
    try {
      values[key] = f.parse(raw);
    } catch (e) {
      if (!(e instanceof Mistake)) throw e;
      problems.push(`${fromEnv ? name : `${key} (in the file)`} ${e.message}: ${f.about}`);
    }
  }
  const names = [...Object.keys(spec).map(envName), ...(options.alsoKnown ?? [])];
  for (const name of Object.keys(env).toSorted((a, b) => (a < b ? -1 : 1)))
    if (name.startsWith("CURFEW_") && !names.includes(name)) problems.push(`${name} ${didYouMean(name, names)}`);
  for (const key of Object.keys(file))
    if (!Object.hasOwn(spec, key)) problems.push(`${key} (in the file) ${didYouMean(key, Object.keys(spec))}`);
  problems.push(...(options.check?.(values as Partial<Config<S>>) ?? []));
  if (problems.length > 0) throw new ConfigError(problems);
  return freeze(values) as Config<S>;
};

const freeze = <T>(value: T): T => {
  if (typeof value === "object" && value !== null && !Object.isFrozen(value)) {
    if (ArrayBuffer.isView(value)) return value; // bytes cannot be frozen
    Object.freeze(value);
    for (const inner of Object.values(value)) freeze(inner);
  }
  return value;
};

/** Reads a file, or a pipe, of at most 1 MB: a device may have no end. Throws ConfigError, never with content. */
export const readConfigText = (file: string): string => {
  try {
    const fd = openSync(file, "r");
    try {
      const bytes = Buffer.alloc(maxConfigFileBytes + 1);
      let length = 0;
      for (let got = -1; got !== 0 && length < bytes.length; length += got)
        got = readSync(fd, bytes, length, bytes.length - length, null);
      if (length > maxConfigFileBytes) throw new ConfigError([`${file} is larger than 1 MB`]);
      return bytes.toString("utf8", 0, length);
    } finally {
      closeSync(fd);
    }
  } catch (e) {
    if (e instanceof ConfigError) throw e;
    throw new ConfigError([`${file} cannot be read: ${(e as NodeJS.ErrnoException).code ?? "unknown"}`]);
  }
};

/** Reads a JSON or YAML file (JSON is YAML) whose top level is a mapping. Throws ConfigError, never with content. */
export const readConfigFile = (file: string): Readonly<Record<string, unknown>> => {
  const text = readConfigText(file);
  let value: unknown;
  try {
    value = parseYaml(text, { prettyErrors: false, maxAliasCount: 100 });
  } catch (e) {
    const at = (e as { pos?: [number, number] }).pos?.[0];
    const where = at === undefined ? "" : ` near line ${text.slice(0, at).split("\n").length}`;
    throw new ConfigError([`${file} is not valid YAML or JSON${where}`]);
  }
  if (typeof value !== "object" || value === null || Array.isArray(value))
    throw new ConfigError([`${file} must be a mapping of settings`]);
  return value as Record<string, unknown>;
};

/** One line per setting, for `--help`. */
export const describeConfig = (spec: Spec): string[] =>
  Object.entries(spec).map(([key, f]) => `${envName(key)}  ${f.about}${f.fallback ? "" : " (required)"}`);
