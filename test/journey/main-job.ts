import { execFileSync } from "node:child_process";
import { randomUUID } from "node:crypto";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { timestampMs } from "@bufbuild/protobuf/wkt";
import type { LocalVerifier } from "@curfew/client/local-verifier.ts";
import { openTokenSource } from "@curfew/client/token-source.ts";
import { BreachService } from "@curfew/contracts/gen/curfew/breach/v1/breach_pb.ts";
import { EvidenceMode } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import { IssuerService } from "@curfew/contracts/gen/curfew/issuer/v1/issuer_pb.ts";
import { RevocationService } from "@curfew/contracts/gen/curfew/revocation/v1/revocation_pb.ts";
import { generateKeyPair } from "@curfew/keyring/hpke.ts";
import { systemRandom } from "@curfew/runtime/random.ts";
import { checkDead, compare, prove, readCase, until, waitMs } from "./checks.ts";
import { leakFolder, type Stage } from "./stage.ts";
import { Tally } from "./tally.ts";

/** Says what happened, for a person who has never seen it. */
export type Step = (title: string, ...details: string[]) => void;

/** The whole main job (design: product, "The main job, start to end") on real input against a running suite. */
export interface MainJob extends Pick<Stage, "cast" | "receivers" | "workDir" | "curfew"> {
  readonly step: Step;
}

export interface MainJobResult {
  readonly leakToRefusedMs: number;
  readonly leakToDraftMs: number;
  readonly tokenId: string;
  readonly caseId: string;
  readonly window: { readonly from: string; readonly to: string };
  readonly people: Numbers;
  readonly records: Numbers;
  readonly clock: { readonly awareAt: string; readonly conservative: string; readonly regulation1182: string };
  readonly pages: number;
  readonly ledger: { readonly size: number; readonly root: string };
  /** Every secret of the main job, for the canary; never printed. */
  readonly secrets: readonly string[];
}

export interface Numbers {
  readonly lower: number;
  readonly best: number;
  readonly upper: number | null;
}

const root = fileURLToPath(new URL("../../", import.meta.url));
const home = "198.51.100.20";
const strangerAddress = "203.0.113.77";

const iso = (at: Parameters<typeof timestampMs>[0] | undefined): string => {
  if (!at) throw new Error("a time is missing");
  return new Date(timestampMs(at)).toISOString();
};

interface Access {
  readonly phase: "before" | "after" | "stranger";
  readonly people: readonly string[];
  readonly records: number;
}

/** A resource service serves one request: authorises, "reads" the records, says whom it touched. */
const serveRequest = async (
  sdk: LocalVerifier,
  of: "invoices" | "customers",
  secret: string,
  access: Access,
  tally: Tally,
) => {
  await sdk.authorize(
    secret,
    {
      scope: `${of}:read`,
      resource: `${of}/2026`,
      purpose: "billing",
      dataCategories: [of === "invoices" ? "financial" : "contact"],
      controller: "acme",
      maxPeople: 100,
      maxRecords: 1_000,
      sourceAddress: access.phase === "stranger" ? strangerAddress : home,
      sourceCountry: access.phase === "stranger" ? "NL" : "DE",
    },
    (use) => {
      use.touched({
        records: access.records,
        people: access.people.map((value) => ({ controller: "acme", identifierType: "customer-id", value })),
      });
      tally.add(access.phase, access.people, access.records);
    },
  );
};

const customer = (n: number) => `customer-${String(n).padStart(4, "0")}`;

/** Commits the secret and "removes" it in a later commit, as people do. */
const leakIntoGit = (workDir: string, secret: string): string => {
  const repository = join(workDir, leakFolder);
  mkdirSync(repository, { recursive: true });
  const git = (...args: string[]) =>
    execFileSync("git", ["-c", "user.name=Intern", "-c", "user.email=intern@acme.example", ...args], {
      cwd: repository,
      encoding: "utf8",
    });
  git("init", "-q");
  writeFileSync(join(repository, "deploy.env"), `API_URL=https://invoices.acme.example\nAPI_TOKEN=${secret}\n`);
  git("add", ".");
  git("commit", "-qm", "Deploy settings");
  writeFileSync(join(repository, "deploy.env"), "API_URL=https://invoices.acme.example\n");
  git("commit", "-qam", "Remove token");
  return repository;
};

/** `curfew scan --report`, as a process of its own; it must find a live secret. */
const scan = async ({ curfew }: MainJob, repository: string): Promise<void> => {
  const { code, complaint } = await curfew("scan", "--report", "--public", "--as", "person/sam", repository);
  if (code !== 1)
    throw new Error(`curfew scan should have found a live secret (exit 1), and ended with ${code}: ${complaint}`);
};

/** Issues billing's token: policy, registered key, sealed secret, opened. */
const issue = async ({ cast, step }: MainJob) => {
  const admin = cast.client(IssuerService, "issuer", "person/ada");
  const document = readFileSync(join(root, "deploy/embedded/policy.yaml"), "utf8");
  const { version } = await admin.publishPolicy({ requestId: randomUUID(), policy: "default", document });
  step("an administrator (person/ada) publishes who may hold which token", `policy "default", version ${version}`);
  const source = openTokenSource({
    issuer: cast.replicas("issuer")[0] as string,
    identity: cast.identity("workload/billing"),
    caPem: cast.caPem(),
    trustDomain: "curfew.example",
    keyPair: generateKeyPair(systemRandom),
    wanted: {
      requestId: randomUUID(),
      grant: {
        scopes: ["invoices:read", "customers:read"],
        resources: ["invoices/**", "customers/**"],
        audiences: ["invoices", "crm"],
        purposes: ["billing"],
        dataCategories: ["contact", "financial"],
        evidenceMode: EvidenceMode.BATCHED,
      },
    },
  });
  cast.onClose(() => source.close());
  const secret = await source.current(AbortSignal.timeout(waitMs));
  step(
    "the billing job (workload/billing) registers its key and gets a token sealed to it",
    `${source.tokenId}: only the job can open the secret, no person has seen it`,
  );
  return { secret, tokenId: source.tokenId };
};

const useIt = async ({ cast, step }: MainJob, secret: string, tally: Tally) => {
  const invoices = cast.resourceService("invoices");
  const crm = cast.resourceService("crm");
  await Promise.all([invoices.whenLive(AbortSignal.timeout(waitMs)), crm.whenLive(AbortSignal.timeout(waitMs))]);
  for (let n = 0; n < 400; n += 1) {
    const of = n % 2 === 0 ? "invoices" : "customers";
    const access: Access = { phase: "before", people: [customer(n % 250)], records: 1 + (n % 3) };
    await serveRequest(of === "invoices" ? invoices : crm, of, secret, access, tally);
  }
  step(
    "two applications (invoices, crm) accept it through the SDK, and record whose data it reads and why",
    `400 uses for billing: ${tally.people("before")} people, ${tally.records("before")} records, contact and financial data`,
  );
  return { invoices, crm };
};

const leak = async (
  job: MainJob,
  secret: string,
  sdks: { invoices: LocalVerifier; crm: LocalVerifier },
  tally: Tally,
) => {
  // A commit date has whole seconds, rounded down: what came before must be before it beyond doubt, also by clocks that differ a little.
  await sleep(2_000 - (Date.now() % 1_000));
  const repository = leakIntoGit(job.workDir, secret);
  job.step('the leak: somebody commits the secret to a git repository, and "removes" it in a later commit', repository);
  for (let n = 0; n < 30; n += 1) {
    await serveRequest(sdks.invoices, "invoices", secret, { phase: "after", people: [customer(n)], records: 1 }, tally);
    const people = [customer(200 + 2 * n), customer(201 + 2 * n)];
    await serveRequest(sdks.crm, "customers", secret, { phase: "stranger", people, records: 5 }, tally);
  }
  job.step(
    "a stranger finds it there and uses it, while billing carries on",
    `the stranger, from an address never seen before: ${tally.people("stranger")} people, ${tally.records("stranger")} records`,
  );
  return repository;
};

const inWords = ({ lower, best, upper }: Numbers): string => {
  const [least, likely, most] = [lower, best, upper].map((n) => n?.toLocaleString("en"));
  return `at least ${least}, probably ${likely}, ${most === undefined ? "no upper bound known" : `at most ${most}`}`;
};

export const runMainJob = async (job: MainJob): Promise<MainJobResult> => {
  const { cast, receivers, step } = job;
  const tally = new Tally();
  const { secret, tokenId } = await issue(job);
  const sdks = await useIt(job, secret, tally);
  const repository = await leak(job, secret, sdks, tally);

  await scan(job, repository);
  const revocation = cast.client(RevocationService, "revocation", "person/sam");
  const proof = await until("the effective time", async () => {
    const answer = await revocation.getRevocation({ tokenId });
    return answer.effectiveAt ? answer : undefined;
  });
  const leakedAtMs = timestampMs(proof.revokedAt as NonNullable<typeof proof.revokedAt>);
  const leakToRefusedMs = timestampMs(proof.effectiveAt as NonNullable<typeof proof.effectiveAt>) - leakedAtMs;
  const breach = cast.client(BreachService, "breach-notifier", "person/dana");
  const caseId = await until("a case", async () => (await breach.listCases({ tokenId })).cases[0]?.caseId);
  await breach.draftNotification({ requestId: randomUUID(), caseId });
  const leakToDraftMs = Date.now() - leakedAtMs;
  step("`curfew scan` finds the secret in the repository's history and reports it: the token is revoked");
  await checkDead(cast, secret, sdks);
  step(
    `${leakToRefusedMs} ms after the report it is refused everywhere; the proof names who confirmed`,
    ...proof.instances.map((i) => `${i.name} ${i.acknowledgedAt ? "acknowledged" : "lost its lease"}`),
  );

  const found = await readCase(cast, tokenId, tally);
  compare(found, tally);
  const { window, people, records } = found.blastRadius ?? {};
  const numbers = (range: typeof people): Numbers => ({
    lower: Number(range?.lower),
    best: Number(range?.best),
    upper: range?.upper === undefined ? null : Number(range.upper),
  });
  const caseNumbers = { people: numbers(people), records: numbers(records) };
  step(
    `a breach case has opened by itself: ${found.caseId}`,
    `exposed     ${iso(window?.fromBest)} to ${iso(window?.to)}`,
    `people      ${inWords(caseNumbers.people)}`,
    `records     ${inWords(caseNumbers.records)}`,
    "            (the first two as the applications counted by themselves)",
    `the clock   to the authority before ${iso(found.clock?.conservative)} (Article 33, 72 hours; provisional until somebody decides)`,
  );

  await until("pages", async () => (receivers.mails.length > 0 && receivers.webhooks.length > 0 ? true : undefined));
  step(
    "people have been paged",
    `${receivers.mails.length} mail over SMTP, ${receivers.webhooks.length} signed webhook`,
  );
  const { clock } = await breach.decideAwareness({
    requestId: randomUUID(),
    caseId,
    awareAt: found.firstSignalAt as NonNullable<typeof found.firstSignalAt>,
    reason: "A stranger's address used the token after it was published.",
    evidenceEventIds: found.signals.map((signal) => signal.eventId),
  });
  const decided = await breach.draftNotification({ requestId: randomUUID(), caseId });
  step(
    "the data protection officer (person/dana) decides awareness; the Article 33 notification is drafted",
    `aware since ${iso(clock?.awareAt)}: to the authority before ${iso(clock?.conservative)}`,
    `the first draft was there ${leakToDraftMs} ms after the report; ${decided.readyPercent} % of the form is filled in from the events`,
    `${decided.missing.length} fields are for people: ${decided.missing.slice(0, 3).join(", ")}, …`,
  );
  const ledger = await prove(cast, tokenId);
  step(
    "every event is in the ledger, where none can be changed or left out unnoticed",
    `checked: no record of the five topics is left out of it; the proof that the revocation is in the signed tree of ${ledger.size} entries`,
  );
  return {
    leakToRefusedMs,
    leakToDraftMs,
    tokenId,
    caseId,
    window: { from: iso(window?.fromBest), to: iso(window?.to) },
    ...caseNumbers,
    clock: {
      awareAt: iso(clock?.awareAt),
      conservative: iso(clock?.conservative),
      regulation1182: iso(clock?.regulation1182),
    },
    pages: receivers.mails.length + receivers.webhooks.length,
    ledger: { size: ledger.size, root: ledger.root },
    secrets: [secret],
  };
};
