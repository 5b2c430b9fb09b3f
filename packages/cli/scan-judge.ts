import { hash } from "node:crypto";
import { create, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import {
  ReportLeakRequestSchema,
  type RevocationService,
} from "@curfew/contracts/gen/curfew/revocation/v1/revocation_pb.ts";
import type { ServiceClient } from "@curfew/rpc/client.ts";
import { secretHash } from "@curfew/token-format/digest.ts";
import { CommandFailed, exitCode } from "./exit.ts";
import type { Sighting } from "./scan-sources.ts";

/** A place where one of our secrets stands. */
export interface Found {
  readonly location: string;
  readonly token: string;
  readonly generation: number;
  /** `revoked`: it was live until this scan reported it. */
  readonly state: "live" | "dead" | "revoked";
}

interface Known {
  readonly secretSha256: Uint8Array<ArrayBuffer>;
  readonly token: string;
  readonly generation: number;
  readonly live: boolean;
  readonly places: Set<string>;
}

const maxPlaces = 100;
/** Strings of our form with a right checksum; more in one scan are made to keep it busy. */
const maxSecrets = 10_000;
/** LeakSighting.location. */
const maxLocation = 2_048;

type Report = Omit<MessageInitShape<typeof ReportLeakRequestSchema>, "$typeName">;

/** The same report has the same id: a scan that runs every night reports a place once. A UUID of version 8 (RFC 9562). */
const requestIdOf = (report: Report): string => {
  const digest = hash("sha256", toBinary(ReportLeakRequestSchema, create(ReportLeakRequestSchema, report)), "buffer");
  digest[6] = ((digest[6] as number) & 0x0f) | 0x80;
  digest[8] = ((digest[8] as number) & 0x3f) | 0x80;
  return digest.toString("hex", 0, 16).replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
};

/** The beginning and the end of a long one: the line stands at the end. */
const shortened = (location: string): string => {
  const letters = [...location];
  const half = maxLocation / 2 - 1;
  return letters.length <= maxLocation ? location : [...letters.slice(0, half), "…", ...letters.slice(-half)].join("");
};

/** Asks once whose each secret is, and reports each place where it stands; only SHA-256 travels. */
export const openJudge = (
  revocation: ServiceClient<typeof RevocationService>,
  options: { readonly report: boolean; readonly public: boolean },
) => {
  const secrets = new Map<string, Known>();
  const rows: Found[] = [];
  let further = 0;
  let failure: unknown;

  const identify = async (secret: string): Promise<Known> => {
    const secretSha256 = new Uint8Array(secretHash(secret));
    const key = Buffer.from(secretSha256).toString("base64");
    const known = secrets.get(key);
    if (known) return known;
    if (secrets.size >= maxSecrets)
      throw new CommandFailed(exitCode.usage, `more than ${maxSecrets} different secrets: search the paths in parts`);
    const { tokenId, generation, live } = await revocation.identifySecret({ secretSha256 });
    const fresh: Known = { secretSha256, token: tokenId, generation, live, places: new Set() };
    secrets.set(key, fresh);
    return fresh;
  };

  const reportLeak = async (known: Known, { kind, location, exposedSince }: Sighting): Promise<boolean> => {
    const report: Report = {
      secretSha256: known.secretSha256,
      sighting: {
        kind,
        location: shortened(location),
        public: options.public,
        ...(exposedSince && { exposedSince: timestampFromDate(exposedSince) }),
      },
    };
    try {
      await revocation.reportLeak({ requestId: requestIdOf(report), ...report });
      return true;
    } catch (error) {
      failure ??= error; // the others are reported all the same
      return false;
    }
  };

  return {
    async isOurs(secret: string): Promise<boolean> {
      return (await identify(secret)).token !== "";
    },
    async see(sighting: Sighting): Promise<void> {
      const known = await identify(sighting.secret);
      const { token, generation, live, places } = known;
      const { location } = sighting;
      if (!token || places.has(location)) return;
      if (places.size >= maxPlaces) {
        further += 1;
        return;
      }
      places.add(location);
      const reported = options.report && (await reportLeak(known, sighting));
      rows.push({ location, token, generation, state: live ? (reported ? "revoked" : "live") : "dead" });
    },
    result: () => ({ rows: rows.map((row) => ({ ...row })), further, failure }),
  };
};
