import { ConfigError, type Field, list, Mistake, string } from "@curfew/runtime/config.ts";

const hostAndPort = /^(\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]{1,253}):\d{1,5}$/;

/** Exceptions for outbound calls; `whom` they are to. */
export const outboundAllow = (whom: string): Field<readonly string[]> =>
  list(string({ about: "", pattern: hostAndPort, expect: "host:port" }), {
    about: `host:port of ${whom} that may be reached at private addresses, on loopback over http`,
    default: [],
    max: 64,
  });

type Values<F> = { readonly [K in keyof F]: (F[K] extends Field<infer T> ? T : never) | undefined };

/** Reads a section of curfew.yaml by its `fields`, what is absent as its default or undefined. Throws ConfigError with every mistake. */
export const readSection = <const F extends Readonly<Record<string, Field<unknown>>>>(
  name: string,
  given: unknown,
  fields: F,
): Values<F> => {
  const section = given ?? {};
  if (typeof section !== "object" || Array.isArray(section))
    throw new ConfigError([`${name}: a mapping of settings is needed`]);
  const problems = Object.keys(section)
    .filter((key) => !Object.hasOwn(fields, key))
    .map((key) => `${name}.${key}: there is no such setting`);
  const read = (key: string, { parse, fallback }: Field<unknown>): unknown => {
    const raw = (section as Readonly<Record<string, unknown>>)[key];
    try {
      return raw === undefined ? fallback?.value : parse(raw);
    } catch (error) {
      if (!(error instanceof Mistake)) throw error;
      problems.push(`${name}.${key} ${error.message}`);
      return undefined;
    }
  };
  const values = Object.fromEntries(Object.entries(fields).map(([key, field]) => [key, read(key, field)]));
  if (problems.length > 0) throw new ConfigError(problems);
  return values as Values<F>;
};
