import { formatAddCheckpoint } from "@curfew/ledger/add-checkpoint.ts";
import { formatSignature, type NoteSignature, openNote, parseNote } from "@curfew/ledger/note.ts";
import { decodeDecimal, NoteError } from "@curfew/ledger/note-error.ts";
import { cosignatureSeconds, parseVerifierKey } from "@curfew/ledger/note-key.ts";
import { type Policy, type PolicyWitness, weighSignatures } from "@curfew/ledger/policy.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import { ConfigError } from "@curfew/runtime/config.ts";
import type { Log } from "@curfew/runtime/log.ts";
import { type Outbound, OutboundFailed, OutboundRefused } from "@curfew/runtime/outbound.ts";
import { type CosignedRows, cosignedSeconds, newestCosigned } from "./cosigned.ts";

/**
 * The client of the witnesses that a c2sp.org/tlog-policy names (c2sp.org/tlog-witness). A round asks every witness once for a cosignature
 * of one checkpoint; whatever is none is a no, and the next round is with the newest checkpoint there is then. Where the quorum is missing
 * the public checkpoint waits and sealing goes on: what is sealed is proven all the same, only nobody else has vouched for it yet.
 */

/** For one request. */
const deadlineMs = 5_000;
/** For those who have not answered yet when enough have. */
const stragglerMs = 1_000;
/** Between the beginnings of two rounds; twice as long after each that lacked the quorum, up to the most. */
const roundMs = 1_000;
const maxRoundMs = 10_000;
const maxSaidLength = 120;
/** A note has at most 100 signatures. */
const maxWitnesses = 64;

/** What a witness answered last. */
export interface WitnessAnswer {
  /** Its name in the policy, and that of its key. */
  readonly name: string;
  readonly key: string;
  readonly outcome: "cosigned" | "refused" | "unreachable" | "contradicts";
  /** In words; none of a stranger's. */
  readonly said: string;
  readonly atMs: number;
}

/** How it stands with the witnesses, as far as this replica knows: the one that seals asks them. */
export interface WitnessStatus {
  /** "none": the policy demands no cosignature; "unknown": nobody was asked yet. */
  readonly quorum: "none" | "held" | "missing" | "unknown";
  /** The newest cosigned checkpoint, and the latest of the times (POSIX seconds) of its cosignatures. */
  readonly cosigned?: { readonly size: number; readonly seconds: number };
  readonly answers: readonly WitnessAnswer[];
}

/** A checkpoint to be cosigned; `prove` makes the consistency proof from a smaller size. */
export interface Submission {
  readonly size: number;
  /** Signed by the log alone. */
  readonly checkpoint: string;
  readonly prove: (old: number) => Promise<readonly Uint8Array[]>;
}

export interface Witnesses {
  /** Whether it is time for a round. */
  due(): boolean;
  /**
   * One round: the checkpoint with the cosignatures that came, or undefined without a quorum. It ends when all have answered or enough
   * have and the others had their time, or when `signal` aborts. Rejects with what `prove` rejects with.
   */
  cosign(submission: Submission, signal: AbortSignal): Promise<string | undefined>;
  /** Rejects with StoreUnavailable. */
  status(): Promise<WitnessStatus>;
}

/** Throws ConfigError unless `policy` is for the log that signs by `verifierKeys`, and has witnesses that can be reached. */
export const checkPolicy = (policy: Policy, verifierKeys: readonly string[]): void => {
  const problems: string[] = [];
  const own = verifierKeys.map(parseVerifierKey);
  if (!policy.logs.some(({ key }) => own.some(({ name, keyId }) => key.name === name && key.keyId === keyId)))
    problems.push(`no log line of the witness policy is this ledger's, which is: log ${verifierKeys[0]}`);
  if (policy.witnesses.length === 0 || policy.witnesses.length > maxWitnesses)
    problems.push(`the witness policy has no witness, or more than ${maxWitnesses}`);
  for (const witness of policy.witnesses)
    if (!/^https?:$/.test(URL.parse(witness.url ?? "")?.protocol ?? ""))
      problems.push(`witness ${witness.name} of the policy has no URL at which to ask it`);
  if (problems.length > 0) throw new ConfigError(problems);
};

type Answer = { readonly signature?: NoteSignature } & Pick<WitnessAnswer, "outcome" | "said">;

const urlOf = ({ url = "" }: PolicyWitness) => `${url.replace(/\/$/, "")}/add-checkpoint`;

/** The first line of `body` that is a cosignature of `checkpoint` by the witness; lines of others are ignored. */
const readCosignature = ({ key }: PolicyWitness, checkpoint: string, body: Buffer): Answer => {
  try {
    const { text, signatures } = openNote(Buffer.concat([Buffer.from(checkpoint), body]), [key]);
    // A blank line in the answer would make more text of what stands before it.
    if (text !== parseNote(checkpoint).text)
      return { outcome: "refused", said: "its answer is more than signature lines" };
    const [signature] = signatures;
    if (!signature || !cosignatureSeconds(signature.signature))
      return { outcome: "refused", said: "its cosignature states no time" };
    return { signature, outcome: "cosigned", said: "cosigned" };
  } catch (error) {
    if (!(error instanceof NoteError)) throw error;
    return { outcome: "refused", said: `its answer is no cosignature: ${error.message}` };
  }
};

const saidInstead: Readonly<Record<number, string>> = {
  400: "says that the request is malformed",
  403: "does not know the key that signed",
  404: "does not know this log, or is not at this URL",
  409: "says again that it has cosigned another size",
};

/** Asks once, and once more where the witness states the size that it knows. */
const ask = async (
  witness: PolicyWitness,
  known: number,
  { size, checkpoint, prove }: Submission,
  outbound: Outbound,
): Promise<Answer> => {
  let old = Math.min(known, size);
  for (let again = false; ; again = true) {
    const proof = old === 0 || old === size ? [] : await prove(old);
    const body = formatAddCheckpoint({ old, proof, checkpoint });
    const headers = { "content-type": "text/plain; charset=utf-8" };
    const answer = await outbound.post(urlOf(witness), { headers, body, timeoutMs: deadlineMs });
    if (answer.status === 200) return readCosignature(witness, checkpoint, answer.body);
    const stated = answer.status === 409 ? decodeDecimal(answer.body.toString("latin1").replace(/\n$/, "")) : undefined;
    if (stated !== undefined && stated > size) {
      const said = `has cosigned ${stated} entries, and there are ${size}: the ledger was put back, or there are two`;
      return { outcome: "contradicts", said };
    }
    if (answer.status === 422)
      return { outcome: "contradicts", said: `has cosigned another ledger of ${old} entries than this one` };
    if (stated === undefined || again) {
      const said = saidInstead[answer.status] ?? `answers with HTTP status ${answer.status}`;
      return { outcome: "refused", said };
    }
    old = stated;
  }
};

const askSafely = async (...of: Parameters<typeof ask>): Promise<Answer> => {
  try {
    return await ask(...of);
  } catch (error) {
    if (!(error instanceof OutboundRefused || error instanceof OutboundFailed)) throw error;
    return { outcome: "unreachable", said: error.message.slice(0, maxSaidLength) };
  }
};

const aborted = (signal: AbortSignal) =>
  new Promise<void>((resolve) => {
    if (signal.aborted) resolve();
    else signal.addEventListener("abort", () => resolve(), { once: true });
  });

/** `rows`: where cosigned checkpoints are kept, by the caller. */
export const openWitnesses = (parts: {
  readonly policy: Policy;
  readonly outbound: Outbound;
  readonly rows: Pick<CosignedRows, "find">;
  readonly clock: Clock;
  readonly log: Pick<Log, "warn" | "error">;
}): Witnesses => {
  const { policy, outbound, rows, clock, log } = parts;
  const answers = new Map<string, WitnessAnswer>();
  /** Sizes up to which witnesses have cosigned; one that is not here says so itself. */
  const sizes = new Map<string, number>();
  const busy = new Set<string>();
  let quorum: WitnessStatus["quorum"] = policy.quorum === "none" ? "none" : "unknown";
  let pauseMs = roundMs;
  let nextAtMs = Number.NEGATIVE_INFINITY;

  /** Told when it turns, not each time. */
  const heard = (witness: PolicyWitness, { outcome, said }: Answer): void => {
    const { name, key } = witness;
    const before = answers.get(name)?.outcome;
    answers.set(name, { name, key: key.name, outcome, said, atMs: clock.now() });
    if (outcome === before || (outcome === "cosigned" && before === undefined)) return;
    const line = { witness: key.name, said };
    if (outcome === "contradicts") log.error(line, "a witness contradicts this ledger");
    else if (outcome === "cosigned") log.warn(line, "a witness cosigns again");
    else log.warn(line, "a witness does not cosign");
  };

  const weighed = (isHeld: boolean): void => {
    pauseMs = isHeld ? roundMs : Math.min(2 * pauseMs, maxRoundMs);
    if (quorum === "none" || quorum === (isHeld ? "held" : "missing")) return;
    if (!isHeld) log.error({}, "the quorum of witnesses is missing: the public checkpoint waits, sealing goes on");
    else if (quorum === "missing") log.warn({}, "the quorum of witnesses is there again");
    quorum = isHeld ? "held" : "missing";
  };

  const cosign = async (submission: Submission, signal: AbortSignal): Promise<string | undefined> => {
    const startMs = clock.monotonicMs();
    const found: NoteSignature[] = [];
    const isHeld = () => weighSignatures(policy, found).quorum;
    const enough = Promise.withResolvers<void>();
    const askOne = async (witness: PolicyWitness): Promise<void> => {
      busy.add(witness.name);
      try {
        const answer = await askSafely(witness, sizes.get(witness.name) ?? 0, submission, outbound);
        heard(witness, answer);
        if (!answer.signature) return;
        sizes.set(witness.name, submission.size);
        found.push(answer.signature);
        if (isHeld()) enough.resolve();
      } finally {
        busy.delete(witness.name);
      }
    };
    if (isHeld()) enough.resolve();
    // One that still owes the answer of a round before this one is not asked again.
    const all = Promise.all(policy.witnesses.filter(({ name }) => !busy.has(name)).map(askOne));
    all.catch(() => undefined); // after the round nobody looks
    const over = new AbortController();
    const late = enough.promise.then(() => clock.sleep(stragglerMs, over.signal));
    try {
      await Promise.race([all, late, aborted(signal)]);
    } finally {
      over.abort();
    }
    if (signal.aborted) return undefined;
    const cosigned = isHeld();
    weighed(cosigned);
    nextAtMs = startMs + pauseMs;
    return cosigned ? `${submission.checkpoint}${found.map(formatSignature).join("")}` : undefined;
  };

  return {
    due: () => clock.monotonicMs() >= nextAtMs,
    cosign,
    async status() {
      const newest = await newestCosigned(rows);
      const times = newest ? cosignedSeconds(newest, policy) : [];
      return {
        quorum,
        ...(newest && times.length > 0 && { cosigned: { size: newest.size, seconds: Math.max(...times) } }),
        answers: policy.witnesses.flatMap(({ name }) => answers.get(name) ?? []),
      };
    },
  };
};
