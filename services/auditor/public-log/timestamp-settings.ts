import { readFileSync, statSync } from "node:fs";
import { readAuthorities, TimestampRefused } from "@curfew/ledger/timestamp.ts";
import { ConfigError, type Field, Mistake, path, url } from "@curfew/runtime/config.ts";
import { outboundAllow, readSection } from "../export/section.ts";

/** Whose clock bounds the ledger from outside: a time-stamp authority (RFC 3161). */
export interface Timestamping {
  readonly url: string;
  /** DER of the certificates to one of which that of the authority must lead. */
  readonly authorities: readonly Uint8Array[];
  /** host:port of the authority if it may be reached at a private address; on loopback without TLS. */
  readonly allow: readonly string[];
}

const maxFileBytes = 1_000_000;

export const tsaUrl = url({
  about: "URL of a time-stamp authority (RFC 3161), asked once a day for a timestamp over the published checkpoint",
  schemes: ["https", "http"],
});

/** The path of a PEM file; read when it is given. */
export const tsaCaFile: Field<readonly Uint8Array[]> = {
  about: "PEM of the certificate authorities to which that of the time-stamp authority must lead",
  parse: (raw) => {
    const file = path({ about: "", existing: "file" }).parse(raw);
    try {
      if (statSync(file).size > maxFileBytes) throw new Mistake(`must have at most ${maxFileBytes} bytes`);
      return readAuthorities(readFileSync(file, "utf8"));
    } catch (error) {
      if (error instanceof Mistake) throw error;
      if (error instanceof TimestampRefused) throw new Mistake(`must be right (${error.message})`);
      throw new Mistake("must be a file that can be read");
    }
  },
};

export const tsaAllow = outboundAllow("time-stamp authorities");

/** Reads the `timestamps` section of curfew.yaml: `url`, `ca_file` and `allow`; undefined: there is none. Throws ConfigError. */
export const parseTimestamps = (given: unknown): Timestamping | undefined => {
  const fields = { url: tsaUrl, ca_file: tsaCaFile, allow: tsaAllow };
  const { url: where, ca_file: authorities, allow = [] } = readSection("timestamps", given, fields);
  if (where && authorities) return { url: where, authorities, allow };
  if (where || authorities || allow.length > 0)
    throw new ConfigError(["timestamps.url and timestamps.ca_file are required together"]);
  return undefined;
};
