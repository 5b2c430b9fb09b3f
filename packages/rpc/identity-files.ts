import { createPrivateKey, X509Certificate } from "node:crypto";
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { KeyringError, openKeyFiles } from "@curfew/keyring/key-files.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import type { Random } from "@curfew/runtime/random.ts";
import {
  type Authority,
  createAuthority,
  type IssuedCertificate,
  issueCertificate,
  loadAuthority,
} from "./identity-authority.ts";

/**
 * The certificate authority and the identities of one installation, as files: `ca/authority.pem` (certificate and key, 0600), `ca/ca.pem`
 * (certificate), `identity/<kind>/<name>/cert.pem` and `key.pem`, and `ca/created/<thumbprint>.json` from which issuer records IdentityCreated.
 */
export interface IdentityFiles {
  readonly caFile: string;
  readonly caPem: string;
  /** Where issuer finds what was created. */
  readonly createdDir: string;
  /** Directory of an identity, e.g. of "workload/billing". */
  dir(path: string): string;
  /** The identity as it is on disk; undefined when there is none, its files are damaged, or do not belong together. */
  read(path: string): IssuedCertificate | undefined;
  /** A new certificate, written and noted for the log. */
  create(
    path: string,
    options: { readonly validMs: number; readonly dnsNames?: readonly string[] },
  ): Promise<IssuedCertificate>;
  /** What is there and still valid for at least a quarter of `validMs`, or a new one. */
  ensure(
    path: string,
    options: { readonly validMs: number; readonly dnsNames?: readonly string[] },
  ): Promise<IssuedCertificate>;
  /** Paths of all identities, e.g. "person/dana". */
  list(): string[];
}

const dayMs = 86_400_000;
export const serviceCertificateMs = dayMs;
export const personCertificateMs = 30 * dayMs;

const openAuthority = async (dir: string, trustDomain: string, clock: Clock, random: Random): Promise<Authority> => {
  const files = openKeyFiles({ dir, random, clock });
  const file = join(dir, "authority.pem");
  const options = { trustDomain, clock, random };
  // Looked at first: it is written after the authority, perhaps by another process just now.
  const begun = existsSync(join(dir, "ca.pem"));
  let text = files.read("authority.pem");
  if (text === undefined) {
    // What is certified and pinned would be void without a word.
    if (begun)
      throw new KeyringError(
        `${file} is gone: restore it from its backup; for a new authority, which makes every certificate anew, remove ca.pem beside it`,
      );
    const fresh = await createAuthority(options);
    text = files.createOnce("authority.pem", () => `${fresh.certPem}\n${fresh.keyPem}\n`);
  }
  const [certPem, keyPem] = text.split(/(?<=-----END CERTIFICATE-----)\n+/);
  if (!certPem || !keyPem) throw new KeyringError(`${file} is damaged: restore it from its backup`);
  return await loadAuthority({ certPem, keyPem }, options).catch((cause: Error) => {
    throw new KeyringError(
      `${file} cannot be used (${cause.message}): restore it from its backup, or put back the trust domain that it was made for`,
      { cause },
    );
  });
};

const put = (file: string, content: string, mode: number) => {
  writeFileSync(`${file}.new`, content, { mode, flush: true });
  chmodSync(`${file}.new`, mode);
  renameSync(`${file}.new`, file);
};

/** Opens the files below `dir`; with write access to `ca/` it can make identities, and only then. Throws KeyringError for its authority. */
export const openIdentityFiles = async (options: {
  readonly dir: string;
  readonly trustDomain: string;
  readonly clock: Clock;
  readonly random: Random;
}): Promise<IdentityFiles> => {
  const { dir, clock } = options;
  const caDir = join(dir, "ca");
  const authority = await openAuthority(caDir, options.trustDomain, clock, options.random);
  const caFile = join(caDir, "ca.pem");
  const createdDir = join(caDir, "created");
  mkdirSync(createdDir, { recursive: true, mode: 0o700 });
  put(caFile, `${authority.certPem}\n`, 0o600);
  const identityDir = (path: string) => join(dir, "identity", ...path.split("/"));

  const read = (path: string): IssuedCertificate | undefined => {
    try {
      const certPem = readFileSync(join(identityDir(path), "cert.pem"), "utf8");
      const keyPem = readFileSync(join(identityDir(path), "key.pem"), "utf8");
      return new X509Certificate(certPem).checkPrivateKey(createPrivateKey(keyPem)) ? { certPem, keyPem } : undefined;
    } catch (error) {
      const { code = "" } = error as NodeJS.ErrnoException;
      if (code === "ENOENT" || code.startsWith("ERR_OSSL")) return undefined;
      throw error;
    }
  };

  const create: IdentityFiles["create"] = async (path, { validMs, dnsNames }) => {
    const name = path.slice(path.indexOf("/") + 1);
    const issued = await issueCertificate(authority, {
      spiffePath: `/${path}`,
      validMs,
      commonName: name,
      ...(dnsNames && { dnsNames }),
    });
    const certificate = new X509Certificate(issued.certPem);
    const thumbprint = Buffer.from(certificate.fingerprint256.replaceAll(":", ""), "hex").toString("base64url");
    mkdirSync(identityDir(path), { recursive: true, mode: 0o700 });
    put(join(identityDir(path), "key.pem"), issued.keyPem, 0o600);
    put(join(identityDir(path), "cert.pem"), issued.certPem, 0o600);
    const note = {
      spiffeId: `spiffe://${options.trustDomain}/${path}`,
      certificateThumbprint: thumbprint,
      notAfter: new Date(certificate.validTo).toISOString(),
      createdAt: new Date(clock.now()).toISOString(),
    };
    put(join(createdDir, `${thumbprint}.json`), `${JSON.stringify(note)}\n`, 0o600);
    return issued;
  };

  return {
    caFile,
    caPem: authority.certPem,
    createdDir,
    dir: identityDir,
    read,
    create,
    async ensure(path, wanted) {
      const found = read(path);
      const leftMs = found ? Date.parse(new X509Certificate(found.certPem).validTo) - clock.now() : 0;
      const ours = found && new X509Certificate(found.certPem).verify(new X509Certificate(authority.certPem).publicKey);
      return found && ours && leftMs > wanted.validMs / 4 ? found : await create(path, wanted);
    },
    list: () =>
      ["service", "workload", "person"].flatMap((kind) => {
        const at = join(dir, "identity", kind);
        return statSync(at, { throwIfNoEntry: false }) ? readdirSync(at).map((name) => `${kind}/${name}`) : [];
      }),
  };
};
