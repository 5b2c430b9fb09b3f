import { execFile } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { cached } from "@curfew/deploy/dev/cache.ts";
import { afterAll, describe, expect, it } from "vitest";

/** No container engine runs here, so compose.yaml is checked by the library that docker compose itself reads it with. */
const version = "v2.16.2";
const run = promisify(execFile);
const deploy = join(import.meta.dirname, "../../deploy");
const scratch = mkdtempSync(join(tmpdir(), "curfew-compose-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

const composeGo = async (): Promise<string> => {
  const dir = await cached(
    `compose-go-${version}`,
    async (into) => {
      await run("go", ["install", `github.com/compose-spec/compose-go/v2/cmd@${version}`], {
        env: { ...process.env, GOBIN: into, GOFLAGS: "-mod=mod" },
      });
    },
    () => undefined,
  );
  return join(dir, "cmd");
};

describe("compose.yaml", () => {
  it("is a valid Compose file in which every service of the suite stands", async () => {
    const { stdout } = await run(await composeGo(), [join(deploy, "compose.yaml")], { cwd: deploy });
    for (const name of ["issuer", "revocation", "verifier", "auditor", "breach-notifier", "kafka", "mongo"])
      expect(stdout).toMatch(new RegExp(`^    ${name}:$`, "m"));
  });

  it("is checked by something that can fail", async () => {
    const wrong = join(scratch, "compose.yaml");
    const text = readFileSync(join(deploy, "compose.yaml"), "utf8");
    writeFileSync(wrong, text.replace("service_completed_successfully", "service_wished_well"));
    await expect(run(await composeGo(), [wrong], { cwd: deploy })).rejects.toThrow();
  });
});
