import { readFileSync } from "node:fs";
import { ConfigError, type Field, Mistake, path } from "@curfew/runtime/config.ts";
import { type PagingConfig, parsePaging } from "./paging.ts";

const pagingFile: Field<PagingConfig> = {
  about: "YAML with the paging section: targets, allow, repeat_every; absent: nobody is paged",
  fallback: { value: parsePaging({}) },
  parse: (raw) => {
    const file = path({ about: "", existing: "file" }).parse(raw);
    try {
      return parsePaging(readFileSync(file, "utf8"));
    } catch (error) {
      if (error instanceof ConfigError) throw new Mistake(`must be right (${error.problems.join("; ")})`);
      throw new Mistake("must be a file that can be read");
    }
  },
};

/** Settings beyond those that every service has (`packages/rpc/process.ts`). */
export const breachNotifierSpec = { pagingFile } as const;

/** The environment, read here and in main only. */
export const environment = process.env;
