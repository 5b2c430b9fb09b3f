import { existsSync, mkdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { at, curfew, dataDir, json, until } from "./rig.ts";

describe("identities and policies", () => {
  it("an identity is made once, and that it was made is on the log", async () => {
    const made = await json("identity", "create", "workload/desk");
    expect(made).toEqual({
      identity: "workload/desk",
      directory: join(dataDir, "identity/workload/desk"),
      until: expect.stringMatching(/^\d{4}-.*Z$/),
    });
    expect(statSync(join(made.directory, "key.pem")).mode & 0o777).toBe(0o600);
    await until("IdentityCreated of workload/desk", async () => {
      const events = await json("audit", "list", "--as", "person/dana", "--type", "curfew.identity.created.v1");
      for (const { event } of events.toReversed()) {
        const { body } = await json("audit", "show", event, "--as", "person/dana");
        if (body.spiffeId === "spiffe://curfew.example/workload/desk") return event;
      }
      return undefined;
    });
    const again = await curfew("identity", "create", "workload/desk");
    expect(again).toMatchObject({ code: 2, out: "" });
    expect(again.err).toContain("--renew");
    expect((await curfew("identity", "create", "--renew", "workload/desk")).code).toBe(0);
    expect((await curfew("identity", "create", "service/issuer")).code).toBe(2);
  }, 60_000);

  it("a directory without the authority's key gets no new authority", async () => {
    const copy = at("copy");
    mkdirSync(join(copy, "ca"), { recursive: true });
    writeFileSync(join(copy, "ca/ca.pem"), readFileSync(join(dataDir, "ca/ca.pem")));
    expect(await curfew("identity", "create", "workload/x", "--data", copy)).toMatchObject({ code: 2, out: "" });
    expect(existsSync(join(copy, "ca/authority.pem"))).toBe(false);
  });

  it("a policy is published by who may, from a file of sensible size", async () => {
    expect(await json("policy", "publish", "desk", at("policy.yaml"), "--as", "person/ada")).toEqual({
      policy: "desk",
      version: 1,
      onTheLog: true,
    });
    const refused = await curfew("policy", "publish", "default", at("policy.yaml"), "--as", "person/sam");
    expect(refused).toMatchObject({ code: 3, out: "" });
    expect(refused.err).toContain("PERMISSION_DENIED");
    expect((await curfew("policy", "publish", "default", "/dev/zero", "--as", "person/ada")).code).toBe(2);
    expect((await curfew("policy", "publish", "default", at("none.yaml"), "--as", "person/ada")).code).toBe(2);
  });
});
