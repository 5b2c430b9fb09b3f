import { X509Certificate } from "node:crypto";
import { GapCause } from "@curfew/contracts/gen/curfew/events/v1/evidence_pb.ts";
import { type Finding, openChainCheck, TooManyChains } from "@curfew/event-log/chain-check.ts";
import { openProducerTrust, type ProducerTrust } from "@curfew/event-log/producer-key.ts";
import { decodeLeafLike, NoLeaf, type SealedRecord } from "@curfew/ledger/leaf.ts";
import { CommandFailed, exitCode } from "./exit.ts";
import { readSmall } from "./read-small.ts";

/** Whether everything that was produced is in a log, as far as its entries show it. */
export type Completeness = {
  readonly verdict: "holds" | "broken" | "not applicable";
  readonly why: string;
  readonly notProved: readonly string[];
  /** The first ones. */
  readonly gaps: readonly string[];
};

const maxGapsShown = 20;
const maxCaBytes = 65_536;

/** Any key that a record names: whether a chain's signatures are all by one key is then seen, and not whose that is. */
const anybody: ProducerTrust = { keyOf: (_producer, _topic, certification) => certification.split(".", 1)[0] };

/** The certificate authority of the suite that keeps the log (PEM): who may produce what. */
export const readProducerTrust = async (file: string): Promise<ProducerTrust> => {
  const caPem = (await readSmall(file, maxCaBytes)).toString("latin1");
  try {
    const { subjectAltName = "" } = new X509Certificate(caPem);
    const [, trustDomain] = /URI:spiffe:\/\/([a-z0-9.-]+)(?:,|$)/.exec(subjectAltName) ?? [];
    if (trustDomain === undefined) throw new TypeError("it names no trust domain");
    return openProducerTrust({ caPem, trustDomain });
  } catch (error) {
    throw new CommandFailed(exitCode.usage, `${file} is no certificate of an authority: ${(error as Error).message}`);
  }
};

/** Numbers of records, for a jump those of offsets. */
const words = ({ cause, expected, seen }: Finding): string => {
  if (cause === GapCause.HOLE) return `record ${seen} came where ${expected} was due: records between are missing`;
  if (cause === GapCause.FORK) return `record ${seen} does not follow the one before it (${expected} was due)`;
  if (cause === GapCause.UNKNOWN_PRODUCER) return "no known producer";
  if (cause === GapCause.OFFSET_JUMP)
    return `offset ${seen} came where ${expected} was due, which alone proves nothing`;
  if (cause === GapCause.OVERSIZE) return "too large for a leaf: only its hash is sealed";
  if (cause === GapCause.BAD_SIGNATURE) return "a signature is not by its producer";
  if (cause === GapCause.MISSING_SIGNATURE) return "a signature is missing";
  if (cause === GapCause.SHORT) return `it ends at ${seen}, and its producer was told that ${expected} were written`;
  return `cause ${cause}`;
};

const describe = (finding: Finding): string => {
  const { producer, topic, partition, offset } = finding;
  return `${topic}/${partition}@${offset}${producer && ` of ${producer}`}: ${words(finding)}`;
};

type ChainCheck = ReturnType<typeof openChainCheck>;

const ofChains = (check: ChainCheck, isTrusted: boolean): Completeness => {
  const { chains, findings, leftOut } = check.finish();
  const jumps = findings.filter(({ cause }) => cause === GapCause.OFFSET_JUMP);
  const faults = findings.filter(({ cause }) => cause !== GapCause.OFFSET_JUMP);
  const open = chains.filter(({ closed, ended }) => closed === undefined || !ended).length;
  const unsigned = chains.filter(({ signed }) => signed === undefined).length;
  const notProved = [
    ...(open > 0
      ? [`that nothing came after the last record of ${open} chains, which their producers have not ended`]
      : []),
    ...(unsigned > 0 ? [`whose ${unsigned} chains are, which are not signed`] : []),
    ...(chains.some(({ signed, last }) => signed !== undefined && signed < last)
      ? ["whose the last records of some chains are: no signature covers them yet"]
      : []),
    ...(isTrusted ? [] : ["whose the signatures are: --ca FILE, the authority of the suite's identities, tells"]),
  ];
  const count = faults.length + leftOut;
  const gaps = [...faults, ...jumps].slice(0, maxGapsShown).map(describe);
  if (count > 0) return { verdict: "broken", why: `${count} gaps in what its producers wrote`, notProved, gaps };
  return { verdict: "holds", why: `no record is missing within ${chains.length} producer chains`, notProved, gaps };
};

/** Follows the producer chains of a log's entries, in their order. Without `trust` anybody may have produced them. */
export const openCompleteness = (trust: ProducerTrust | undefined) => {
  const check = openChainCheck(trust ?? anybody);
  let last: SealedRecord | undefined;
  let [ours, others, firstOther] = [0, 0, -1];
  let tooMany: string | undefined;
  let earlier: string | undefined;
  const read = (leaf: Uint8Array, at: number): SealedRecord | undefined => {
    try {
      return decodeLeafLike(leaf, last);
    } catch (error) {
      if (!(error instanceof NoLeaf)) throw error;
      if (others === 0) firstOther = at;
      others += 1;
      return undefined;
    }
  };
  return {
    add(leaf: Uint8Array, at: number): void {
      const record = read(leaf, at);
      if (!record) return;
      last = record;
      ours += 1;
      try {
        if (tooMany === undefined) check.add(record);
      } catch (error) {
        if (!(error instanceof TooManyChains)) throw error;
        tooMany = error.message;
      }
    },
    /** Its producer chains begin elsewhere: nothing can be said of them here. */
    beginsAfter(what: string): void {
      earlier = what;
    },
    verdict(): Completeness {
      const none = { notProved: [], gaps: [] };
      if (earlier !== undefined) {
        const why = `its producer chains go on from ${earlier}: verify the ledger as a whole, the folder above`;
        return { verdict: "not applicable", why, ...none };
      }
      if (ours === 0 && others > 0)
        return { verdict: "not applicable", why: "its entries are no records of Curfew", ...none };
      if (tooMany !== undefined) return { verdict: "broken", why: tooMany, ...none };
      const found = ofChains(check, trust !== undefined);
      if (others === 0) return found;
      const why = `${others} of its entries, the first at ${firstOther}, are no records of Curfew`;
      return { ...found, verdict: "broken", why };
    },
  };
};
