import { optional, path } from "@curfew/runtime/config.ts";

/** Settings of the issuer beyond those of every service (packages/rpc/process.ts). */
export const issuerSpec = {
  identitiesDir: optional(
    path({ about: "where `curfew identity create` leaves its notes, to be recorded", existing: "directory" }),
  ),
} as const;
