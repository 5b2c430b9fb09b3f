import { readFileSync, statSync } from "node:fs";
import { ConfigError, durationMs, Mistake } from "@curfew/runtime/config.ts";
import { parseDocument } from "yaml";

/**
 * Who is paged: the `paging` section of curfew.yaml (`targets`, `allow`, `repeat_every`). Every target is paged at every milestone; when
 * one cannot be reached, the next is told. Nobody configured is no mistake, but the service says so.
 */
export interface PagingConfig {
  readonly targets: readonly Target[];
  /** host:port of hosts that may be reached at private addresses; on loopback without TLS. */
  readonly allow: readonly string[];
  /** An unacknowledged page comes again after this. */
  readonly repeatMs: number;
}

export interface SmtpTarget {
  readonly name: string;
  readonly channel: "smtp";
  readonly host: string;
  readonly port: number;
  readonly from: string;
  readonly to: string;
  /** PEM of the authority that the server's certificate is from; absent: those of the system. */
  readonly caPem: string | undefined;
  readonly login: { readonly user: string; readonly password: string } | undefined;
}

export interface WebhookTarget {
  readonly name: string;
  readonly channel: "webhook";
  readonly url: string;
  /** Key of the signature (Standard Webhooks). */
  readonly secret: Uint8Array;
  readonly caPem: string | undefined;
}

export type Target = SmtpTarget | WebhookTarget;

type Raw = Readonly<Record<string, unknown>>;

const maxTargets = 16;
const maxAllowed = 64;
const maxFileBytes = 64 * 1024;
const defaultRepeatMs = 15 * 60_000;
const namePattern = /^[a-z0-9][a-z0-9-]{0,62}$/;
const hostPattern = /^[A-Za-z0-9.:-]{1,253}$/;
const mailPattern = /^[^\s@<>"',;:\\()[\]]{1,64}@[A-Za-z0-9.-]{1,253}$/;
const hostPortPattern = /^(\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]{1,253}):\d{1,5}$/;
const minSecretBytes = 24;
const maxSecretBytes = 64;
const loopbackHost = /^(localhost|127(\.\d{1,3}){3}|::1)$/;

const repeat = durationMs({ about: "", default: defaultRepeatMs, minMs: 60_000, maxMs: 24 * 3_600_000 });

/** Reads fields of one object; every mistake goes to `problems` with its place. */
const openFields = (at: string, row: Raw, problems: string[]) => {
  const mistake = (key: string, what: string) => void problems.push(`${at}.${key}: ${what}`);
  return {
    mistake,
    text(key: string, pattern: RegExp, what: string): string {
      const value = row[key];
      if (typeof value === "string" && pattern.test(value)) return value;
      mistake(key, `${what} is needed`);
      return "";
    },
    port(): number {
      const { port } = row;
      if (typeof port === "number" && Number.isInteger(port) && port > 0 && port < 65_536) return port;
      mistake("port", "a port from 1 to 65535 is needed");
      return 0;
    },
    /** Content of a file, trimmed; `isPrivate`: nobody but its owner may read it. */
    file(key: string, isPrivate: boolean): string | undefined {
      const value = row[key];
      if (value === undefined) return undefined;
      try {
        const path = String(value);
        const stat = statSync(path);
        if (!stat.isFile() || stat.size > maxFileBytes)
          mistake(key, `a file of at most ${maxFileBytes} bytes is needed`);
        else if (isPrivate && (stat.mode & 0o077) !== 0)
          mistake(key, "must be readable by its owner alone (chmod go= it)");
        else return readFileSync(path, "utf8").trim();
      } catch {
        mistake(key, "the path of a file that can be read is needed");
      }
      return undefined;
    },
    known(keys: readonly string[]): void {
      for (const key of Object.keys(row)) if (!keys.includes(key)) mistake(key, "there is no such setting");
    },
  };
};

type Fields = ReturnType<typeof openFields>;

const smtpTarget = (name: string, row: Raw, fields: Fields): SmtpTarget => {
  fields.known(["name", "channel", "host", "port", "from", "to", "ca_file", "user", "password_file"]);
  const password = fields.file("password_file", true);
  if ((row.user === undefined) !== (row.password_file === undefined))
    fields.mistake("user", "user and password_file come together");
  return {
    name,
    channel: "smtp",
    host: fields.text("host", hostPattern, "a host name"),
    port: fields.port(),
    from: fields.text("from", mailPattern, "a mail address"),
    to: fields.text("to", mailPattern, "a mail address"),
    caPem: fields.file("ca_file", false),
    login: row.user === undefined ? undefined : { user: String(row.user), password: password ?? "" },
  };
};

/** The key in `whsec_` and base64 (Standard Webhooks). */
const webhookSecret = (fields: Fields): Uint8Array => {
  const text = fields.file("secret_file", true);
  const [, encoded = ""] = /^whsec_([A-Za-z0-9+/]+={0,2})$/.exec(text ?? "") ?? [];
  const secret = Buffer.from(encoded, "base64");
  if (text === undefined || secret.length < minSecretBytes || secret.length > maxSecretBytes)
    fields.mistake(
      "secret_file",
      `a file with whsec_ and base64 of ${minSecretBytes} to ${maxSecretBytes} bytes is needed`,
    );
  return secret;
};

const webhookTarget = (name: string, fields: Fields, allow: readonly string[]): WebhookTarget => {
  fields.known(["name", "channel", "url", "secret_file", "ca_file"]);
  const text = fields.text("url", /^https?:\/\/\S{1,2000}$/, "an https URL");
  const url = URL.parse(text);
  if (text !== "" && (url?.username !== "" || url.password !== ""))
    fields.mistake("url", "a URL without user name and password is needed");
  if (url?.protocol === "http:" && !allow.includes(`${url.hostname}:${url.port || 80}`))
    fields.mistake("url", "https is needed; http only to a host on loopback whose host:port stands in paging.allow");
  return { name, channel: "webhook", url: text, secret: webhookSecret(fields), caPem: fields.file("ca_file", false) };
};

const isObject = (value: unknown): value is Raw => typeof value === "object" && value !== null && !Array.isArray(value);

const parseTarget = (at: string, row: unknown, allow: readonly string[], problems: string[]): Target[] => {
  if (!isObject(row)) {
    problems.push(`${at}: an object is needed`);
    return [];
  }
  const fields = openFields(at, row, problems);
  const name = fields.text("name", namePattern, "a name of lower-case letters, digits and hyphens, at most 63,");
  if (row.channel === "smtp") return [smtpTarget(name, row, fields)];
  if (row.channel === "webhook") return [webhookTarget(name, fields, allow)];
  fields.mistake("channel", "smtp or webhook is needed");
  return [];
};

const objectOf = (input: unknown, problems: string[]): Raw => {
  if (typeof input !== "string") return isObject(input) ? input : objectMistake(input, problems);
  const document = parseDocument(input, { uniqueKeys: true });
  if (document.errors.length > 0) {
    problems.push(...document.errors.map((e) => `paging: ${e.message.split("\n")[0]}`));
    return {};
  }
  const value: unknown = document.toJS({ maxAliasCount: 10 });
  return isObject(value) ? value : objectMistake(value, problems);
};

const objectMistake = (value: unknown, problems: string[]): Raw => {
  if (value !== undefined && value !== null) problems.push("paging: an object is needed");
  return {};
};

const listOf = (top: Raw, key: string, max: number, problems: string[]): readonly unknown[] => {
  const value = top[key] ?? [];
  if (Array.isArray(value) && value.length <= max) return value;
  problems.push(`paging.${key}: a list of at most ${max} entries is needed`);
  return [];
};

const parseRepeat = (raw: unknown, problems: string[]): number => {
  if (raw === undefined) return defaultRepeatMs;
  try {
    return repeat.parse(raw);
  } catch (error) {
    if (!(error instanceof Mistake)) throw error;
    problems.push(`paging.repeat_every: ${error.message}`);
    return defaultRepeatMs;
  }
};

/** Reads the paging section, as YAML or already parsed, and the files that it names. Throws ConfigError with every mistake at once. */
export const parsePaging = (input: unknown): PagingConfig => {
  const problems: string[] = [];
  const top = objectOf(input, problems);
  for (const key of Object.keys(top))
    if (!["targets", "allow", "repeat_every"].includes(key)) problems.push(`paging.${key}: there is no such setting`);
  const allow = listOf(top, "allow", maxAllowed, problems).filter((entry): entry is string => {
    if (typeof entry === "string" && hostPortPattern.test(entry)) return true;
    problems.push("paging.allow: entries are host:port");
    return false;
  });
  const targets = listOf(top, "targets", maxTargets, problems).flatMap((row, i) =>
    parseTarget(`paging.targets[${i}]`, row, allow, problems),
  );
  const names = targets.map(({ name }) => name);
  for (const name of new Set(names.filter((n, i) => n !== "" && names.indexOf(n) !== i)))
    problems.push(`paging.targets: ${name} stands twice`);
  const repeatMs = parseRepeat(top.repeat_every, problems);
  if (problems.length > 0) throw new ConfigError(problems);
  return { targets, allow, repeatMs };
};

/** Whether mail may go to this host without TLS: on this machine, and listed. */
export const mayBePlain = ({ host, port }: SmtpTarget, allow: readonly string[]): boolean =>
  loopbackHost.test(host) && allow.includes(`${host.includes(":") ? `[${host}]` : host}:${port}`);
