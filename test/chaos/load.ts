import { hash, randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { timestampNow } from "@bufbuild/protobuf/wkt";
import { denialReason } from "@curfew/client/denied.ts";
import type { LocalVerifier } from "@curfew/client/local-verifier.ts";
import { BreachService } from "@curfew/contracts/gen/curfew/breach/v1/breach_pb.ts";
import { Delivery, EvidenceMode } from "@curfew/contracts/gen/curfew/events/v1/common_pb.ts";
import { RevocationReason } from "@curfew/contracts/gen/curfew/events/v1/revocations_pb.ts";
import { Outcome, Reason } from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import { IssuerService } from "@curfew/contracts/gen/curfew/issuer/v1/issuer_pb.ts";
import { RevocationService } from "@curfew/contracts/gen/curfew/revocation/v1/revocation_pb.ts";
import { VerifierService } from "@curfew/contracts/gen/curfew/verifier/v1/verifier_pb.ts";
import type { ServiceClient } from "@curfew/rpc/client.ts";
import { lengthPrefixed } from "@curfew/runtime/length-prefixed.ts";
import type { SeededRandom } from "@curfew/simulation/seeded-random.ts";
import type { Cast } from "../journey/cast.ts";

/**
 * A bounded mixed load: workloads create and rotate tokens, a resource service uses them (by VerifyToken, ReportUses and the SDK),
 * security revokes and reports leaks, the DPO decides and acknowledges. Of every operation it is known whether it is under way,
 * and of every acknowledged one which events must stand on the log.
 */
export interface Load {
  /** What is under way now: kinds of operations, each with the time it has taken. */
  inFlight(): readonly { readonly kind: Kind; readonly ms: number }[];
  /** Acknowledged so far, by kind. */
  acknowledged(kind: Kind): number;
  /** What the log must say, as `Evidence` marks it, and which operation was acknowledged with it. */
  readonly owed: ReadonlyMap<string, Kind>;
  /** Answers that were errors, by kind and message; for people. */
  readonly errors: ReadonlyMap<string, number>;
  /** Begins no more; waits for what is under way (calls have deadlines) and for the SDK to report. */
  stop(): Promise<void>;
}

export const kinds = [
  "CreateToken",
  "RotateToken",
  "VerifyToken",
  "ReportUses",
  "authorize",
  "RevokeToken",
  "ReportLeak",
  "DecideAwareness",
  "AcknowledgePage",
] as const;
export type Kind = (typeof kinds)[number];

interface Token {
  readonly tokenId: string;
  readonly secret: string;
  readonly evidenceMode: EvidenceMode;
}

const deadlineMs = 4_000;
const maxPool = 40;
const minPool = 6;
const trustDomain = "curfew.example";
const grant = {
  scopes: ["invoices:read"],
  resources: ["invoices/**"],
  audiences: ["invoices"],
  purposes: ["billing"],
  dataCategories: ["contact"],
};
const use = {
  scope: "invoices:read",
  resource: "invoices/7",
  purpose: "billing",
  dataCategories: ["contact"],
  controller: "acme",
};
const limits = { maxPeople: 2n, maxRecords: 5n };
const person = (n: number) => ({ controller: "acme", identifierType: "customer-id", value: `customer-${n}` });

/** What events carry of the request that led to them. */
const requestKey = (caller: string, method: string, requestId: string) =>
  hash("sha256", lengthPrefixed(`spiffe://${trustDomain}/${caller}`, method, requestId));

type Clients<S extends Parameters<Cast["client"]>[0]> = readonly ServiceClient<S>[];

/** `pace`: how many times fewer callers and longer rests, both by the root of it, for a suite that shares its machine with its broker and database. */
export const openLoad = (cast: Cast, random: SeededRandom, pace: number): Load => {
  const run = new LoadRun(cast, random);
  run.start(pace);
  return run;
};

class LoadRun implements Load {
  readonly owed = new Map<string, Kind>();
  readonly errors = new Map<string, number>();
  readonly #random: SeededRandom;
  readonly #open = new Map<symbol, { kind: Kind; sinceMs: number }>();
  readonly #done = new Map<Kind, number>();
  readonly #stop = new AbortController();
  readonly #pool: Token[] = [];
  readonly #sdk: LocalVerifier;
  readonly #sdkUses = new Set<string>();
  readonly #clients;
  /** Leaks whose cases nobody has decided yet. */
  readonly #leaked: string[] = [];
  #actors: Promise<unknown>[] = [];
  #sequence = 0n;

  constructor(cast: Cast, random: SeededRandom) {
    this.#random = random;
    const all = <S extends Parameters<Cast["client"]>[0]>(desc: S, service: string, path: string): Clients<S> =>
      cast.replicas(service).map((_, n) => cast.client(desc, n === 0 ? service : `${service}-${n + 1}`, path));
    this.#clients = {
      issuer: all(IssuerService, "issuer", "workload/billing"),
      verifier: all(VerifierService, "verifier", "workload/invoices"),
      revocation: all(RevocationService, "revocation", "person/sam"),
      breach: all(BreachService, "breach-notifier", "person/dana"),
    };
    this.#sdk = cast.resourceService("invoices");
  }

  start(pace: number): void {
    const actors: [count: number, pauseMs: number, act: () => Promise<void>][] = [
      [3, 30, () => this.#create()],
      [1, 40, () => this.#rotate()],
      [4, 15, () => this.#verify()],
      [2, 30, () => this.#report()],
      [3, 15, () => this.#authorize()],
      [1, 120, () => this.#revoke()],
      [1, 200, () => this.#leak()],
      [1, 150, () => this.#handleCase()],
    ];
    this.#actors = actors.flatMap(([count, pauseMs, act]) =>
      Array.from({ length: Math.ceil(count / Math.sqrt(pace)) }, async () => {
        // Ever slower, so that a run that has to wait long does not fill topics and collections meanwhile.
        for (let turn = 0; !this.#stop.signal.aborted; turn += 1) {
          await act();
          await sleep(this.#random.below(2 * pauseMs * Math.sqrt(pace) * (1 + turn / 50)));
        }
      }),
    );
  }

  inFlight() {
    const nowMs = performance.now();
    return [...this.#open.values()].map(({ kind, sinceMs }) => ({ kind, ms: Math.round(nowMs - sinceMs) }));
  }

  acknowledged(kind: Kind): number {
    return this.#done.get(kind) ?? 0;
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    await Promise.all(this.#actors);
    if (!(await this.#sdk.close())) return this.#count("authorize: the SDK could not report everything");
    for (const mark of this.#sdkUses) this.owed.set(mark, "authorize");
  }

  /** Runs one operation, noting it as under way; the same request again until it is answered or the load stops. */
  async #operate<T>(kind: Kind, again: boolean, call: () => Promise<T>): Promise<T | undefined> {
    do {
      const id = Symbol(kind);
      this.#open.set(id, { kind, sinceMs: performance.now() });
      try {
        const answer = await call();
        this.#done.set(kind, this.acknowledged(kind) + 1);
        return answer;
      } catch (error) {
        this.#count(`${kind}: ${(error as Error).message}`);
      } finally {
        this.#open.delete(id);
      }
      await sleep(250);
    } while (again && !this.#stop.signal.aborted);
    return undefined;
  }

  #count(what: string): void {
    const key = what.slice(0, 160);
    this.errors.set(key, (this.errors.get(key) ?? 0) + 1);
  }

  #owe(kind: Kind, ...marks: string[]): void {
    for (const mark of marks) this.owed.set(mark, kind);
  }

  /** A token, `taken` out of use or left in it; undefined while there are too few. */
  #token(taken: boolean): Token | undefined {
    if (this.#pool.length < (taken ? minPool : 1)) return undefined;
    const at = this.#random.below(this.#pool.length);
    return taken ? this.#pool.splice(at, 1)[0] : this.#pool[at];
  }

  async #create(): Promise<void> {
    const requestId = randomUUID();
    const evidenceMode = this.#random.chance(0.5) ? EvidenceMode.BATCHED : EvidenceMode.BEFORE_USE;
    const request = { requestId, grant: { ...grant, evidenceMode }, delivery: Delivery.DIRECT };
    const answer = await this.#operate("CreateToken", true, () =>
      this.#random.pick(this.#clients.issuer).createToken(request, { deadlineMs }),
    );
    if (!answer) return;
    const tokenId = answer.token?.tokenId ?? "";
    const key = requestKey("workload/billing", "curfew.issuer.v1.IssuerService/CreateToken", requestId);
    this.#owe("CreateToken", `curfew.token.issued.v1 ${key}`, `curfew.token.issued.v1 ${tokenId}`);
    if (answer.secret !== "" && this.#pool.length < maxPool)
      this.#pool.push({ tokenId, secret: answer.secret, evidenceMode });
  }

  async #rotate(): Promise<void> {
    const token = this.#token(true);
    if (!token) return;
    const requestId = randomUUID();
    const request = {
      requestId,
      tokenId: token.tokenId,
      overlap: { seconds: 60n, nanos: 0 },
      delivery: Delivery.DIRECT,
    };
    const answer = await this.#operate("RotateToken", true, () =>
      this.#random.pick(this.#clients.issuer).rotateToken(request, { deadlineMs }),
    );
    if (!answer) return;
    const key = requestKey("workload/billing", "curfew.issuer.v1.IssuerService/RotateToken", requestId);
    this.#owe("RotateToken", `curfew.token.rotated.v1 ${key}`);
    if (answer.secret !== "") this.#pool.push({ ...token, secret: answer.secret });
  }

  async #verify(): Promise<void> {
    const token = this.#token(false);
    if (!token) return;
    const answer = await this.#operate("VerifyToken", false, () =>
      this.#random
        .pick(this.#clients.verifier)
        .verifyToken(
          { credential: { case: "secret", value: token.secret }, use: { ...use, ...limits } },
          { deadlineMs },
        ),
    );
    if (answer && answer.useId !== "") this.#owe("VerifyToken", `curfew.use.decided.v1 ${answer.useId}`);
    if (answer && !answer.allowed) this.#count(`VerifyToken: denied, ${denialReason(answer.reason)}`);
  }

  async #report(): Promise<void> {
    // Only of such tokens an SDK may decide uses by itself.
    const token = this.#pool.find(({ evidenceMode }) => evidenceMode === EvidenceMode.BATCHED);
    if (!token) return;
    const useIds = [randomUUID(), randomUUID()];
    const { tokenId } = token;
    const touched = { outcome: Outcome.COMPLETED, records: 1n, people: [person(this.#random.below(100))] };
    // Of every other the access is over.
    const cachedUses = useIds.map((useId, i) => {
      this.#sequence += 1n;
      const said = { decidedAt: timestampNow(), tokenId, generation: 1, reason: Reason.OK };
      const ended = i % 2 === 0 ? { ended: touched } : {};
      return { useId, instanceSequence: this.#sequence, ...said, use: { ...use, ...limits }, ...ended };
    });
    const completedUses = useIds
      .filter((_, i) => i % 2 === 1)
      .map((useId) => ({ ...touched, useId, tokenId, part: 1, parts: 1 }));
    const request = { instance: "load", cachedUses, completedUses };
    const answer = await this.#operate("ReportUses", true, () =>
      this.#random.pick(this.#clients.verifier).reportUses(request, { deadlineMs }),
    );
    if (!answer) return;
    for (const useId of useIds)
      this.#owe("ReportUses", `curfew.use.decided.v1 ${useId}`, `curfew.use.completed.v1 ${useId}/1`);
  }

  async #authorize(): Promise<void> {
    const token = this.#token(false);
    if (!token) return;
    const request = { ...use, maxPeople: 2, maxRecords: 5 };
    const isBatched = token.evidenceMode === EvidenceMode.BATCHED;
    await this.#operate("authorize", false, () =>
      this.#sdk.authorize(
        token.secret,
        request,
        (access) => {
          access.touched({ records: 1, people: [{ identifierType: "customer-id", value: "customer-1" }] });
          const decided = `curfew.use.decided.v1 ${access.useId}`;
          // Before-use: it is durable when the access begins. Batched: once the SDK says that all is reported.
          if (isBatched) this.#sdkUses.add(decided);
          else this.#owe("authorize", decided);
          this.#sdkUses.add(`curfew.use.completed.v1 ${access.useId}/1`);
        },
        { deadlineMs },
      ),
    );
  }

  async #revoke(): Promise<void> {
    const token = this.#token(true);
    if (!token) return;
    const requestId = randomUUID();
    const request = { requestId, tokenId: token.tokenId, reason: RevocationReason.REQUESTED };
    const answer = await this.#operate("RevokeToken", true, () =>
      this.#random.pick(this.#clients.revocation).revokeToken(request, { deadlineMs }),
    );
    if (!answer) return;
    const key = requestKey("person/sam", "curfew.revocation.v1.RevocationService/RevokeToken", requestId);
    this.#owe("RevokeToken", `curfew.token.revoked.v1 ${key}`);
  }

  async #leak(): Promise<void> {
    // One case after another: each one that is open costs the database used here whole searches.
    const token = this.#leaked.length > 0 ? undefined : this.#token(true);
    if (!token) return;
    const requestId = randomUUID();
    const secretSha256 = hash("sha256", token.secret, "buffer");
    const sighting = { kind: "git", location: `repository/${requestId}`, public: true };
    const answer = await this.#operate("ReportLeak", true, () =>
      this.#random.pick(this.#clients.revocation).reportLeak({ requestId, secretSha256, sighting }, { deadlineMs }),
    );
    if (!answer || answer.tokenId === "") return;
    this.#leaked.push(answer.tokenId);
    const key = requestKey("person/sam", "curfew.revocation.v1.RevocationService/ReportLeak", requestId);
    // A leak that is acknowledged leads to a case, whoever has to open it.
    this.#owe(
      "ReportLeak",
      `curfew.leak.reported.v1 ${key}`,
      ...[`curfew.token.revoked.v1 ${token.tokenId}`, `curfew.case.opened.v1 ${token.tokenId}`],
    );
  }

  /** Of the last leak: decides as soon as its case has been opened, acknowledges as soon as people were paged. */
  async #handleCase(): Promise<void> {
    const tokenId = this.#leaked.shift();
    if (tokenId === undefined) return;
    const caseId = `case/${tokenId}/1`;
    const [decide, acknowledge] = [randomUUID(), randomUUID()];
    const awareAt = timestampNow();
    const named = (method: string, id: string) =>
      requestKey("person/dana", `curfew.breach.v1.BreachService/${method}`, id);
    const decided = await this.#operate("DecideAwareness", true, () =>
      this.#random
        .pick(this.#clients.breach)
        .decideAwareness({ requestId: decide, caseId, awareAt, reason: "seen" }, { deadlineMs }),
    );
    if (decided) this.#owe("DecideAwareness", `curfew.awareness.decided.v1 ${named("DecideAwareness", decide)}`);
    const acknowledged = await this.#operate("AcknowledgePage", true, () =>
      this.#random
        .pick(this.#clients.breach)
        .acknowledgePage({ requestId: acknowledge, caseId, milestone: "opened" }, { deadlineMs }),
    );
    if (acknowledged)
      this.#owe("AcknowledgePage", `curfew.page.acknowledged.v1 ${named("AcknowledgePage", acknowledge)}`);
  }
}
