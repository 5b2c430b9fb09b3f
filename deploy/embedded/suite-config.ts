import { type ErasureSettings, parsePersonalData } from "@curfew/auditor/people/erasure-settings.ts";
import { parseTimestamps, type Timestamping } from "@curfew/auditor/public-log/timestamp-settings.ts";
import { parseWitnesses, type Witnessing } from "@curfew/auditor/public-log/witness-settings.ts";
import { ConfigError, readConfigText } from "@curfew/runtime/config.ts";
import { type Organisation, parseOrganisation } from "@curfew/runtime/organisation.ts";
import { parseDocument, stringify } from "yaml";

/** What one installation is told: the trust domain, the organisation, who is paged, who vouches for the ledger. */
export interface SuiteConfig {
  readonly trustDomain: string;
  readonly organisation: Organisation;
  readonly witnessing?: Witnessing;
  readonly timestamping?: Timestamping;
  /** How long keys and backups of personal data are kept. */
  readonly personalData: ErasureSettings;
  /** The sections as they were written, for processes that read them from files of their own. */
  readonly sections: { readonly organisation: string; readonly paging: string };
  /** What there is of witnesses, timestamps and personal data, as the environment of an auditor that is a process of its own. */
  readonly auditorEnvironment: Readonly<Record<string, string>>;
}

const known = ["trust_domain", "organisation", "paging", "witnesses", "timestamps", "personal_data"];
const auditorVariables = {
  witnesses: { policy_file: "CURFEW_WITNESS_POLICY_FILE", allow: "CURFEW_WITNESS_ALLOW" },
  timestamps: { url: "CURFEW_TSA_URL", ca_file: "CURFEW_TSA_CA_FILE", allow: "CURFEW_TSA_ALLOW" },
  personal_data: { epoch_days: "CURFEW_EPOCH_DAYS", backup_days: "CURFEW_BACKUP_DAYS" },
} as const;
const trustDomainPattern = /^[a-z0-9](?:[a-z0-9.-]{0,253}[a-z0-9])?$/;

const problemsOf = <T>(read: () => T, problems: string[]): T | undefined => {
  try {
    return read();
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    problems.push(...error.problems);
    return undefined;
  }
};

/** Of sections that were found right. */
const auditorEnvironment = (top: Readonly<Record<string, unknown>>): Record<string, string> => {
  const environment: Record<string, string> = {};
  // A list is separated by commas there.
  for (const [section, names] of Object.entries(auditorVariables))
    for (const [key, value] of Object.entries(top[section] ?? {}))
      environment[names[key as keyof typeof names]] = String(value);
  return environment;
};

/** Reads curfew.yaml. Throws ConfigError with every mistake at once; `checkPaging` adds those of the paging section. */
export const readSuiteConfig = (file: string, checkPaging: (yaml: string) => unknown): SuiteConfig => {
  const document = parseDocument(readConfigText(file), { uniqueKeys: true });
  const inFile = (problem: string) => `${file}: ${problem}`;
  // The first line alone: what follows shows the text, which may hold a secret in the wrong place.
  if (document.errors.length > 0)
    throw new ConfigError(document.errors.map((e) => inFile((e.message.split("\n")[0] as string).replace(/:$/, ""))));
  const root: unknown = document.toJS({ maxAliasCount: 10 });
  if (typeof root !== "object" || root === null || Array.isArray(root))
    throw new ConfigError([inFile("a mapping of settings is needed")]);
  const top = root as Readonly<Record<string, unknown>>;
  const problems = Object.keys(top)
    .filter((key) => !known.includes(key))
    .map((key) => `${key}: there is no such setting (there are ${known.join(", ")})`);
  const trustDomain = top.trust_domain;
  if (typeof trustDomain !== "string" || !trustDomainPattern.test(trustDomain))
    problems.push("trust_domain: a lower-case domain name is needed, e.g. curfew.example");
  const sections = { organisation: stringify(top.organisation ?? {}), paging: stringify(top.paging ?? {}) };
  const organisation = problemsOf(() => parseOrganisation(sections.organisation), problems);
  problemsOf(() => checkPaging(sections.paging), problems);
  const witnessing = problemsOf(() => parseWitnesses(top.witnesses), problems);
  const timestamping = problemsOf(() => parseTimestamps(top.timestamps), problems);
  const personalData = problemsOf(() => parsePersonalData(top.personal_data), problems);
  if (problems.length > 0 || !organisation || !personalData) throw new ConfigError(problems.map(inFile));
  return {
    trustDomain: trustDomain as string,
    organisation,
    personalData,
    ...(witnessing && { witnessing }),
    ...(timestamping && { timestamping }),
    sections,
    auditorEnvironment: auditorEnvironment(top),
  };
};
