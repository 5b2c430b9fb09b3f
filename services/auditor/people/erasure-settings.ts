import { ConfigError, integer, Mistake } from "@curfew/runtime/config.ts";

/** How long what could still be read after an erasure is kept. */
export interface ErasureSettings {
  /** Life of an epoch's key: by its end everything is wrapped anew and it is destroyed. */
  readonly epochMs: number;
  /** For how long a backup of keys or personal store is kept. */
  readonly backupDays: number;
  /** See `openRotation`. */
  readonly settleMs: number;
}

export const epochDays = { min: 1, max: 365, default: 30 } as const;
export const backupDays = { min: 0, max: 3_650, default: 35 } as const;
const dayMs = 86_400_000;
/** Longer than any write of a verifier is under way. */
const settleMs = 600_000;

export const erasureSettings = (days: {
  readonly epochDays: number;
  readonly backupDays: number;
}): ErasureSettings => ({
  epochMs: days.epochDays * dayMs,
  backupDays: days.backupDays,
  settleMs,
});

const fields = { epoch_days: integer({ about: "", ...epochDays }), backup_days: integer({ about: "", ...backupDays }) };

/** Reads the `personal_data` section of curfew.yaml: `epoch_days`, `backup_days`. Throws ConfigError. */
export const parsePersonalData = (given: unknown): ErasureSettings => {
  const section = (given ?? {}) as Readonly<Record<string, unknown>>;
  if (typeof section !== "object" || Array.isArray(section))
    throw new ConfigError(["personal_data: a mapping of settings is needed"]);
  const problems = Object.keys(section)
    .filter((name) => !Object.hasOwn(fields, name))
    .map((name) => `personal_data.${name}: there is no such setting (there are ${Object.keys(fields).join(", ")})`);
  const read = (name: keyof typeof fields): number => {
    const { parse, fallback } = fields[name];
    try {
      return section[name] === undefined ? (fallback?.value ?? 0) : parse(section[name]);
    } catch (error) {
      if (!(error instanceof Mistake)) throw error;
      problems.push(`personal_data.${name} ${error.message}`);
      return 0;
    }
  };
  const settings = erasureSettings({ epochDays: read("epoch_days"), backupDays: read("backup_days") });
  if (problems.length > 0) throw new ConfigError(problems);
  return settings;
};
