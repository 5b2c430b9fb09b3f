import { readFileSync } from "node:fs";
import { type Bucket, maxBucketBytes, openBucket } from "@curfew/ledger/bucket.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import {
  ConfigError,
  envName,
  type Field,
  integer,
  list,
  Mistake,
  optional,
  path,
  readConfig,
  readConfigFile,
  string,
} from "@curfew/runtime/config.ts";
import { openOutbound } from "@curfew/runtime/outbound.ts";
import { openShardFiles, type ShardFiles } from "./shard-files.ts";

/** A bucket for the ledger's files, and how it is reached. */
export interface BucketSettings extends Bucket {
  /** host:port that may be reached at private addresses. */
  readonly allow: readonly string[];
  /** PEM of the authorities that are trusted in place of the system's. */
  readonly ca?: string;
}

const dayMs = 86_400_000;
const bucketUrl = /^https:\/\/[A-Za-z0-9.-]{1,253}(:\d{1,5})?(\/[A-Za-z0-9._-]{1,255}){1,16}$/;

const spec = {
  url: string({ about: "https://host[:port]/bucket[/prefix]", pattern: bucketUrl, expect: "such a URL" }),
  region: string({ about: "region of the store", default: "us-east-1", pattern: /^[a-z0-9-]{1,64}$/ }),
  accessKeyId: string({ about: "whose rights: to get, put, list and delete, and to put retention" }),
  secretAccessKey: string({ about: "the secret of accessKeyId" }),
  retainDays: integer({
    about: "days for which full tiles cannot be deleted by anybody",
    min: 1,
    max: 36_500,
    default: 3_650,
  }),
  allow: list(string({ about: "", pattern: /^[A-Za-z0-9.-]{1,253}:\d{1,5}$/, expect: "host:port" }), {
    about: "host:port that may be reached at private addresses",
    default: [],
    max: 8,
  }),
  caFile: optional(path({ about: "PEM file of authorities trusted in place of the system's", existing: "file" })),
};

const inFile = (problem: string) => {
  const key = Object.keys(spec).find((each) => problem.startsWith(`${envName(each)} `));
  return key ? problem.replace(envName(key), key) : problem;
};

export const ledgerBucketFile: Field<BucketSettings> = {
  about:
    "file for its owner alone, YAML: a bucket in which a prefix for each year is kept a tlog-tiles log in place of ledgerDir (url, accessKeyId, secretAccessKey; region, retainDays, allow, caFile)",
  parse: (raw) => {
    const file = path({ about: "", existing: "file", private: true }).parse(raw);
    try {
      const given = readConfig({}, spec, { file: readConfigFile(file) });
      const { url, region, accessKeyId, secretAccessKey, retainDays, allow, caFile } = given;
      return {
        url,
        region,
        credentials: { accessKeyId, secretAccessKey },
        retainMs: retainDays * dayMs,
        allow,
        ...(caFile && { ca: readFileSync(caFile, "utf8") }),
      };
    } catch (error) {
      if (!(error instanceof ConfigError)) throw error;
      throw new Mistake(`must be right (${error.problems.map(inFile).join("; ")})`);
    }
  },
};

export const openLedgerBucket = (settings: BucketSettings, clock: Clock): ShardFiles => {
  const { allow, ca } = settings;
  const outbound = openOutbound({ allow, clock, maxBodyBytes: maxBucketBytes, ...(ca && { ca: [ca] }) });
  return openShardFiles((year) => openBucket({ ...settings, url: `${settings.url}/${year}` }, { outbound, clock }));
};
