import { X509Certificate } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { openIdentityFiles, personCertificateMs } from "@curfew/rpc/identity-files.ts";
import { systemClock } from "@curfew/runtime/clock.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { buildCommand, buildRouteMap } from "@stricli/core";
import { dataDirectory } from "../connection.ts";
import { CommandFailed, exitCode } from "../exit.ts";
import { dataFlag, outputAlias, outputFlag, parseIdentity } from "../flags.ts";
import { type Format, printOne } from "../output.ts";

interface IdentityFlags {
  readonly data: string;
  readonly output: Format;
  readonly renew: boolean;
}

/** The trust domain that the directory's authority stands for, from its certificate. */
const trustDomainOf = (dataDir: string): string => {
  const file = join(dataDir, "ca", "ca.pem");
  // Without the authority's own key a new authority would be made, which nobody trusts.
  if (!existsSync(file) || !existsSync(join(dataDir, "ca", "authority.pem")))
    throw new CommandFailed(
      exitCode.usage,
      `there is no certificate authority in ${dataDir}: start the suite on it once`,
    );
  const name = /URI:spiffe:\/\/([^,/\s]+)/.exec(new X509Certificate(readFileSync(file)).subjectAltName ?? "")?.[1];
  if (!name) throw new CommandFailed(exitCode.usage, `${file} is no authority of ours`);
  return name;
};

const create = buildCommand({
  docs: {
    brief: "Make a certificate for a person or a workload, 30 days",
    fullDescription:
      "Needs file access to the data directory's ca/. That it was made is recorded on the log, by the issuer, at once or at its next start.",
  },
  parameters: {
    flags: {
      ...dataFlag,
      ...outputFlag,
      renew: {
        kind: "boolean",
        brief: "in place of the certificate that is there; tokens bound to that one end with it",
        default: false,
        withNegated: false,
      },
    },
    aliases: outputAlias,
    positional: {
      kind: "tuple",
      parameters: [{ parse: parseIdentity, brief: "person/<pseudonym> or workload/<name>", placeholder: "IDENTITY" }],
    },
  },
  func: async (flags: IdentityFlags, path: string) => {
    const dir = dataDirectory(flags);
    const files = await openIdentityFiles({
      dir,
      trustDomain: trustDomainOf(dir),
      clock: systemClock,
      random: systemRandom,
    });
    const found = files.read(path);
    if (found && !flags.renew && Date.parse(new X509Certificate(found.certPem).validTo) > Date.now())
      throw new CommandFailed(exitCode.usage, `${path} has a certificate in ${files.dir(path)}: --renew replaces it`);
    const { certPem } = await files.create(path, { validMs: personCertificateMs });
    printOne(flags.output, {
      identity: path,
      directory: files.dir(path),
      until: new Date(new X509Certificate(certPem).validTo).toISOString(),
    });
  },
});

export const identity = buildRouteMap({ docs: { brief: "Make identities" }, routes: { create } });
