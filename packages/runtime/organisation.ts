import { parseDocument } from "yaml";
import { ConfigError } from "./config.ts";

/**
 * Who there is: one file (organisation.yaml) read by every service. A closed set: a controller, a resource service or a person that is
 * not in it does not exist for Curfew.
 */
export interface Organisation {
  readonly controllers: readonly Controller[];
  readonly resourceServices: readonly ResourceService[];
  readonly people: readonly Person[];
}

/** Whose data it is (GDPR Art. 4(7)), and what the Art. 33 form needs to know of them. */
export interface Controller {
  readonly id: string;
  readonly name: string;
  /** Whether we are this controller or process for it (Art. 33(1) or 33(2)). */
  readonly role: "controller" | "processor";
  readonly country: string;
  readonly authority: string;
  readonly contact: string;
  readonly dpo: string;
  /** People whose data is held, per data category; a category that is absent is unknown. */
  readonly population: Readonly<Record<string, number>>;
  /** Records held, per data category; a category that is absent is unknown. */
  readonly records: Readonly<Record<string, number>>;
}

/** A workload that accepts tokens: the audience that they name. */
export interface ResourceService {
  readonly name: string;
  /** Ids of the controllers whose data it may report on. */
  readonly controllers: readonly string[];
}

export const personRoles = ["security", "oncall", "dpo", "auditor", "admin"] as const;
export type PersonRole = (typeof personRoles)[number];

/** A pseudonym, as in the person's certificate. */
export interface Person {
  readonly name: string;
  readonly roles: readonly PersonRole[];
}

const maxBytes = 256 * 1024;
const maxEntries = 1_000;
const namePattern = /^[a-z0-9][a-z0-9-]{0,62}$/;

type Raw = Readonly<Record<string, unknown>>;

/** Collects every mistake; each names its place: `controllers[2].role`. */
const openReader = (problems: string[]) => {
  const isObject = (value: unknown): value is Raw =>
    typeof value === "object" && value !== null && !Array.isArray(value);
  const text = (at: string, value: unknown, pattern?: RegExp, otherwise?: string): string => {
    if (value === undefined && otherwise !== undefined) return otherwise;
    if (typeof value !== "string" || value.trim() === "" || value.length > 500)
      problems.push(`${at}: a text of 1 to 500 characters is needed`);
    else if (pattern && !pattern.test(value))
      problems.push(`${at}: lower-case letters, digits and hyphens only, at most 63`);
    else return value;
    return "";
  };
  return {
    text,
    /** The rows of a list of objects; keys outside `known` are mistakes. */
    rows<T>(at: string, value: unknown, known: readonly string[], read: (row: Raw, at: string) => T): T[] {
      if (value === undefined) return [];
      if (!Array.isArray(value) || value.length > maxEntries) {
        problems.push(`${at}: a list of at most ${maxEntries} entries is needed`);
        return [];
      }
      return value.flatMap((row, i) => {
        const place = `${at}[${i}]`;
        if (!isObject(row)) {
          problems.push(`${place}: an object is needed`);
          return [];
        }
        for (const key of Object.keys(row))
          if (!known.includes(key)) problems.push(`${place}.${key}: there is no such setting`);
        return [read(row, place)];
      });
    },
    list<T extends string>(at: string, value: unknown, allowed: (item: string) => item is T, what: string): T[] {
      if (!Array.isArray(value) || value.length === 0) {
        problems.push(`${at}: a list of ${what} is needed`);
        return [];
      }
      return value.filter((item): item is T => {
        if (typeof item === "string" && allowed(item)) return true;
        problems.push(`${at}: ${JSON.stringify(item)} is not one of the ${what}`);
        return false;
      });
    },
    counts(at: string, value: unknown): Record<string, number> {
      if (value === undefined) return {};
      if (!isObject(value)) {
        problems.push(`${at}: numbers per data category are needed`);
        return {};
      }
      const entries = Object.entries(value).filter(([category, count]) => {
        const fine = namePattern.test(category) && Number.isSafeInteger(count) && (count as number) >= 0;
        if (!fine)
          problems.push(
            `${at}.${category}: a data category in lower-case letters, digits and hyphens, and a whole number, are needed`,
          );
        return fine;
      });
      return Object.fromEntries(entries) as Record<string, number>;
    },
  };
};

const unique = (at: string, names: readonly string[], problems: string[]) => {
  for (const name of new Set(names.filter((n, i) => n !== "" && names.indexOf(n) !== i)))
    problems.push(`${at}: ${name} stands twice`);
};

/** Reads organisation.yaml (controllers, resource_services, people). Throws ConfigError with every mistake at once. */
export const parseOrganisation = (yaml: string): Organisation => {
  const problems: string[] = [];
  if (Buffer.byteLength(yaml) > maxBytes) throw new ConfigError([`organisation: at most ${maxBytes} bytes`]);
  const document = parseDocument(yaml, { uniqueKeys: true });
  if (document.errors.length > 0)
    throw new ConfigError(document.errors.map((e) => `organisation: ${e.message.split("\n")[0]}`));
  const root: unknown = document.toJS({ maxAliasCount: 10 });
  if (typeof root !== "object" || root === null) throw new ConfigError(["organisation: an object is needed"]);
  const top = root as Raw;
  for (const key of Object.keys(top))
    if (!["controllers", "resource_services", "people"].includes(key))
      problems.push(`${key}: there is no such setting`);
  const read = openReader(problems);
  const controllers = read.rows(
    "controllers",
    top.controllers,
    ["id", "name", "role", "country", "authority", "contact", "dpo", "population", "records"],
    (row, at): Controller => {
      const role = row.role ?? "controller";
      if (role !== "controller" && role !== "processor") problems.push(`${at}.role: controller or processor`);
      return {
        id: read.text(`${at}.id`, row.id, namePattern),
        name: read.text(`${at}.name`, row.name),
        role: role as Controller["role"],
        country: read.text(`${at}.country`, row.country, undefined, ""),
        authority: read.text(`${at}.authority`, row.authority, undefined, ""),
        contact: read.text(`${at}.contact`, row.contact, undefined, ""),
        dpo: read.text(`${at}.dpo`, row.dpo, undefined, ""),
        population: read.counts(`${at}.population`, row.population),
        records: read.counts(`${at}.records`, row.records),
      };
    },
  );
  const ids = controllers.map((c) => c.id);
  const resourceServices = read.rows(
    "resource_services",
    top.resource_services,
    ["name", "controllers"],
    (row, at) => ({
      name: read.text(`${at}.name`, row.name, namePattern),
      controllers: read.list(
        `${at}.controllers`,
        row.controllers,
        (id): id is string => ids.includes(id),
        "configured controllers",
      ),
    }),
  );
  const people = read.rows("people", top.people, ["name", "roles"], (row, at) => ({
    name: read.text(`${at}.name`, row.name, namePattern),
    roles: read.list(
      `${at}.roles`,
      row.roles,
      (role): role is PersonRole => (personRoles as readonly string[]).includes(role),
      `roles (${personRoles.join(", ")})`,
    ),
  }));
  unique("controllers", ids, problems);
  unique(
    "resource_services",
    resourceServices.map((s) => s.name),
    problems,
  );
  unique(
    "people",
    people.map((p) => p.name),
    problems,
  );
  if (problems.length > 0) throw new ConfigError(problems);
  return Object.freeze({ controllers, resourceServices, people });
};

/** What the authorization check asks (`packages/rpc/authorization.ts`). */
export const directoryOf = (organisation: Organisation) => {
  const roles = new Map(organisation.people.map((p) => [p.name, new Set(p.roles)]));
  const audiences = new Set(organisation.resourceServices.map((s) => s.name));
  const none: ReadonlySet<PersonRole> = new Set();
  return {
    rolesOf: (name: string): ReadonlySet<PersonRole> => roles.get(name) ?? none,
    isAudience: (name: string) => audiences.has(name),
  };
};
