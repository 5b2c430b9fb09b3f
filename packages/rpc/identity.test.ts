import { execFileSync } from "node:child_process";
import { X509Certificate } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { systemClock } from "@curfew/runtime/clock.ts";
import { describe, expect, test } from "vitest";
import { callerOfNames, parseSpiffeId } from "./identity.ts";
import { createAuthority, issueCertificate, loadAuthority } from "./identity-authority.ts";
import { issue, newAuthority, trustDomain } from "./testing/harness.ts";

describe("a SPIFFE id", () => {
  test.each([
    ["service", "issuer"],
    ["workload", "billing"],
    ["person", "P_4-x.Y"],
  ])("of a %s is its kind and name", (kind, name) => {
    const uri = `spiffe://${trustDomain}/${kind}/${name}`;
    expect(parseSpiffeId(uri, trustDomain)).toEqual({ kind, name, uri });
  });

  test.each([
    "spiffe://other.example/service/issuer",
    "spiffe://test.example.evil/service/issuer",
    "SPIFFE://test.example/service/issuer",
    "spiffe://test.example/service/issuer/",
    "spiffe://test.example/service/a/b",
    "spiffe://test.example/service/",
    "spiffe://test.example/service/..",
    "spiffe://test.example/service/%69ssuer",
    "spiffe://test.example/service/issuer?x",
    "spiffe://test.example/service/issuer#x",
    "spiffe://test.example/service/issuer\n",
    "spiffe://test.example/root/issuer",
    "spiffe://user@test.example/service/issuer",
    `spiffe://test.example/workload/${"a".repeat(129)}`,
    undefined,
    7,
  ])("is not %j", (text) => {
    expect(parseSpiffeId(text, trustDomain)).toBeUndefined();
  });
});

describe("the caller of a certificate", () => {
  const uri = "URI:spiffe://test.example/workload/billing";

  test("is its one URI, wherever it stands among the names", () => {
    expect(callerOfNames(`DNS:localhost, ${uri}`, trustDomain)?.name).toBe("billing");
  });

  test.each([
    [undefined],
    ["DNS:localhost"],
    [`${uri}, URI:spiffe://test.example/person/root`],
    [`${uri}, URI:https://else.example/`],
    [`DNS:"x, URI:spiffe://test.example/person/root, y"`],
    [`${uri}, DNS:"a, b"`],
  ])("is nobody for %s", (names) => {
    expect(callerOfNames(names, trustDomain)).toBeUndefined();
  });
});

describe("the authority", () => {
  test.skipIf(process.env.ABSENT_PROGRAMS?.includes("openssl"))(
    "issues certificates that OpenSSL accepts strictly, with the subject Kafka's principal rule expects",
    async () => {
      const authority = await newAuthority();
      const request = { spiffePath: "/service/issuer", validMs: 60_000, dnsNames: ["localhost"], commonName: "issuer" };
      const { certPem } = await issueCertificate(authority, request);
      const folder = mkdtempSync(join(tmpdir(), "curfew-ca-"));
      try {
        writeFileSync(join(folder, "ca.pem"), authority.certPem);
        writeFileSync(join(folder, "leaf.pem"), certPem);
        const openssl = (...args: string[]) => execFileSync("openssl", args, { cwd: folder, encoding: "utf8" });
        expect(openssl("verify", "-x509_strict", "-CAfile", "ca.pem", "leaf.pem")).toContain("OK");
        const subject = openssl("x509", "-in", "leaf.pem", "-noout", "-subject", "-nameopt", "RFC2253");
        expect(subject.trim()).toBe("subject=CN=issuer,OU=svc,O=curfew");
      } finally {
        rmSync(folder, { recursive: true });
      }
    },
  );

  test("survives being written to PEM and loaded", async () => {
    const first = await newAuthority();
    const loaded = await loadAuthority(first, { trustDomain, clock: systemClock });
    const { certPem } = await issue(loaded, "/workload/billing");
    expect(new X509Certificate(certPem).verify(new X509Certificate(first.certPem).publicKey)).toBe(true);
  });

  test("is not loaded for another trust domain, nor with another's key", async () => {
    const [one, two] = [await newAuthority(), await newAuthority()];
    await expect(loadAuthority(one, { trustDomain: "other.example", clock: systemClock })).rejects.toThrow(/other/);
    const mixed = { certPem: one.certPem, keyPem: two.keyPem };
    await expect(loadAuthority(mixed, { trustDomain, clock: systemClock })).rejects.toThrow(/does not belong/);
  });

  test("issues nothing outside its rules", async () => {
    const authority = await newAuthority();
    await expect(issue(authority, "/root/x")).rejects.toThrow(/identity path/);
    await expect(issue(authority, "/service/a%2fb")).rejects.toThrow(/identity path/);
    await expect(issue(authority, "/service/x", 32 * 86_400_000)).rejects.toThrow(/31 days/);
    await expect(issue(authority, "/service/x", Number.NaN)).rejects.toThrow(/31 days/);
    await expect(createAuthority({ trustDomain: "Not A Domain", clock: systemClock })).rejects.toThrow(/trust domain/);
  });

  test("keeps a common name with separators in one field", async () => {
    const authority = await newAuthority();
    const request = { spiffePath: "/workload/x", validMs: 60_000, commonName: "x,OU=svc" };
    const { certPem } = await issueCertificate(authority, request);
    expect(new X509Certificate(certPem).subject.split("\n")).toHaveLength(3);
  });
});
