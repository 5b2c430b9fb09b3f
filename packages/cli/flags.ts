/** Flags that several commands share. */
export const dataFlag = {
  data: {
    kind: "parsed",
    parse: String,
    brief: "data directory of the suite (CURFEW_DATA_DIR)",
    default: process.env.CURFEW_DATA_DIR || ".curfew",
    placeholder: "DIR",
  },
} as const;

/** A path of an identity: person/<pseudonym> or workload/<name>. */
export const parseIdentity = (text: string): string => {
  if (!/^(person|workload)\/[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/.test(text))
    throw new Error("an identity is person/<pseudonym> or workload/<name>");
  return text;
};

export const connectionFlags = {
  ...dataFlag,
  as: {
    kind: "parsed",
    parse: parseIdentity,
    brief: "identity to speak as, e.g. person/sam (CURFEW_AS)",
    ...(process.env.CURFEW_AS && { default: process.env.CURFEW_AS }),
    placeholder: "IDENTITY",
  },
} as const;

export const outputFlag = {
  output: { kind: "enum", values: ["table", "json"], brief: "how to print", default: "table" },
} as const;

export const outputAlias = { o: "output" } as const;

const unitMs: Readonly<Record<string, number>> = { s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 };

/** "90s", "15m", "1h", "30d" → milliseconds. */
export const parseDurationMs = (text: string): number => {
  const m = /^(\d{1,7})([smhd])$/.exec(text);
  if (!m) throw new Error('a duration is a number and s, m, h or d, e.g. "15m"');
  return Number(m[1]) * (unitMs[m[2] as string] as number);
};

/** RFC 3339 with its offset: a moment, whatever the reader's time zone. */
export const parseTime = (text: string): Date => {
  const ms = Date.parse(text);
  const [, year, month, day] = /^(\d{4})-(\d\d)-(\d\d)T.*(?:Z|[+-]\d\d:\d\d)$/.exec(text)?.map(Number) ?? [];
  if (year === undefined || month === undefined || Number.isNaN(ms))
    throw new Error("a time with its offset is needed, e.g. 2026-11-24T13:00:00Z");
  // The parser takes 31 February for 3 March.
  if (new Date(Date.UTC(year, month - 1, day)).getUTCDate() !== day) throw new Error("there is no such day");
  return new Date(ms);
};

export const parseCount = (text: string): number => {
  if (!/^\d{1,9}$/.test(text)) throw new Error("a whole number is needed");
  return Number(text);
};

export const parseLimit = (text: string): number => {
  const limit = parseCount(text);
  if (limit < 1) throw new Error("at least 1 is needed");
  return limit;
};

export interface ShardFlags {
  /** 0: the newest, or the one that is meant. */
  readonly shard: number;
}

export const shardFlag = {
  shard: {
    kind: "parsed",
    parse: parseCount,
    brief: "year of the ledger's tree; 0: the newest, or the only one that has what is asked for",
    default: "0",
    placeholder: "YEAR",
  },
} as const;
