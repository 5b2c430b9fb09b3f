import { BundleBroken, NotABundle } from "@curfew/bundle/broken.ts";
import { withFile } from "@curfew/bundle/file-source.ts";
import { isWholeRange, type Manifest } from "@curfew/bundle/manifest.ts";
import { type IntactBundle, openBundle, type Stamp, type Trusted } from "@curfew/bundle/verify-bundle.ts";
import type { Policy } from "@curfew/ledger/policy.ts";
import { CommandFailed, exitCode } from "./exit.ts";
import { type Format, openBar, printOne, say } from "./output.ts";

/** What a bundle says of its completeness. "partly": nothing of what can be seen is missing, and not everything can be seen. */
interface Completeness {
  readonly verdict: "holds" | "partly" | "broken";
  readonly proved: readonly string[];
  readonly notProved: readonly string[];
  readonly missing: readonly string[];
}

const selectionOf = ({ selection: { token, case: caseId, from, to } }: Manifest): string => {
  const about = caseId || (token ? `token ${token}` : "everything");
  return `${about}${from && `, sealed at or after ${from}`}${to && `, sealed before ${to}`}`;
};

const countOf = (count: number, one: string, many = `${one}s`) => `${count} ${count === 1 ? one : many}`;

/** What a range shows that has all its leaves. */
const rangeProved = ({ manifest: { range }, report: { chains } }: IntactBundle): string[] => {
  const signed = chains.filter((chain) => chain.signed === chain.last);
  const ended = chains.filter(({ ended: isEnded, closed, last }) => isEnded && last === closed);
  return [
    `every leaf from ${range.first} to ${range.end - 1} is in the bundle`,
    `no record is missing within ${countOf(chains.length, "producer chain")}`,
    ...(signed.length > 0
      ? [`${signed.length} of them are signed by keys that the installation's authority certified`]
      : []),
    ...(ended.length > 0 ? [`${ended.length} of them are there to the end that their producers signed`] : []),
  ];
};

const completenessOf = (bundle: IntactBundle, isTrusted: boolean): Completeness => {
  const { range, selection, before } = bundle.manifest;
  const { chains, streams, missing } = bundle.report;
  const whole = isWholeRange(selection);
  const isFromStart = range.first === 0 && before === undefined;
  const open = chains.filter(({ closed, last }) => closed === undefined || last !== closed);
  const proved = [
    ...(whole ? rangeProved(bundle) : []),
    ...(streams.length > 0 ? [`no event is missing within ${countOf(streams.length, "numbered stream")}`] : []),
  ];
  const notProved = [
    ...(whole
      ? []
      : [
          `that no other entry of leaves ${range.first} to ${range.end - 1} belongs to it: the signer's word; the log itself shows it`,
        ]),
    ...(whole && open.length === 0
      ? []
      : [
          `that producers sent nothing after their last record here${whole ? `: ${open.length} chains were not closed` : ""}`,
        ]),
    ...(whole && isFromStart && !isTrusted
      ? ["that authority.pem is the installation's: the signer's word; --ca FILE, from somebody you trust, tells"]
      : []),
    ...(whole && !isFromStart ? ["the signatures of producers: their certificates may lie before the range"] : []),
    ...(before === undefined
      ? []
      : [`what was sealed of it among the ${before} entries of the years before: those are in trees of their own`]),
    ...(selection.from || selection.to
      ? ["that nothing else was sealed in that time: leaves are dated by the auditor's clock"]
      : []),
  ];
  const found = missing.length > 0;
  return { verdict: found ? "broken" : whole ? "holds" : "partly", proved: found ? [] : proved, notProved, missing };
};

const isoOf = (ms: number): string => new Date(ms).toISOString();

/** Since when the entries are what they are, by the clock of somebody else. */
const timeOf = (stamp: Stamp | undefined, { entries }: Manifest) => {
  if (!stamp) return { proved: [], notProved: ["since when its entries exist: there is no timestamp in it"] };
  const { timeMs, size, isTrusted } = stamp;
  const those = stamp.entries === entries ? "its entries" : `its entries before leaf ${size}`;
  const said = `that ${those} existed before ${isoOf(timeMs)}`;
  const later = stamp.entries === entries ? [] : [`since when its entries from leaf ${size} on exist`];
  if (isTrusted)
    return {
      proved: [`${those} (${stamp.entries}) existed before ${isoOf(timeMs)}, says a time-stamp authority of --tsa-ca`],
      notProved: later.map((what) => `${what}: they are newer than the timestamp`),
    };
  const why = "the timestamp was not checked, because no certificate of its authority was given: --tsa-ca FILE";
  return { proved: [], notProved: [`${said}: ${why}`, ...later] };
};

const integrityOf = ({ manifest, checkpoint, first, drafts, stamp }: IntactBundle) => ({
  holds: true,
  proved: [
    `every byte of the bundle is as it was signed by the key of ${manifest.origin}`,
    `${countOf(manifest.entries, "leaf", "leaves")} of the tree of ${manifest.size} are as they were sealed`,
    `that tree begins with the tree of ${first.size}, under which the first of them was sealed`,
    ...(drafts > 0 ? [`${countOf(drafts, "draft")} with the hash that was sealed`] : []),
    ...timeOf(stamp, manifest).proved,
  ],
  notProved: [
    ...(checkpoint.witnesses.length > 0
      ? []
      : ["that the log shows the same tree to others: no witness of the policy has cosigned"]),
    ...timeOf(stamp, manifest).notProved,
    "that what people read (decoded, timeline) says the same as the leaves: it is signed, not proved",
  ],
});

const printTable = (
  bundle: IntactBundle,
  integrity: ReturnType<typeof integrityOf>,
  completeness: Completeness,
): void => {
  const { manifest, checkpoint } = bundle;
  const { verdict, missing } = completeness;
  printOne("table", {
    log: manifest.origin,
    bundle: `${selectionOf(manifest)}; made ${manifest.madeAt}`,
    entries: `${manifest.entries}, from leaves ${manifest.range.first} to ${manifest.range.end - 1} of ${manifest.size}`,
    ...(checkpoint.witnesses.length > 0 && { cosigned: checkpoint.witnesses.map(({ name }) => name) }),
    integrity: `holds: ${integrity.proved.join("; ")}`,
    completeness: `${verdict}: ${[...missing, ...completeness.proved].join("; ") || "nothing can be seen of it"}`,
  });
  for (const each of [...integrity.notProved, ...completeness.notProved]) printOne("table", { "not proved": each });
};

const print = (format: Format, bundle: IntactBundle, completeness: Completeness): void => {
  const { manifest, checkpoint, stamp } = bundle;
  const integrity = integrityOf(bundle);
  if (format === "table") {
    printTable(bundle, integrity, completeness);
    return;
  }
  const { origin, size, selection, range, entries, madeAt } = manifest;
  const root = Buffer.from(checkpoint.opened.root).toString("base64");
  const tree = { origin, size, root, cosigned: checkpoint.witnesses };
  const timestamp = stamp && {
    size: stamp.size,
    entries: stamp.entries,
    time: isoOf(stamp.timeMs),
    checked: stamp.isTrusted,
  };
  printOne("json", { kind: "bundle", ...tree, selection, range, entries, madeAt, timestamp, integrity, completeness });
};

const refuse = (format: Format, error: unknown): never => {
  if (error instanceof NotABundle) throw new CommandFailed(exitCode.unavailable, error.message);
  if (!(error instanceof BundleBroken)) throw error;
  const integrity = { holds: false, file: error.file, why: error.message };
  if (format === "json") printOne("json", { kind: "bundle", integrity });
  else printOne("table", { integrity: `BROKEN: ${error.message}` });
  throw new CommandFailed(exitCode.no, `integrity is broken: ${error.message}`);
};

/** Verifies an evidence bundle, prints both verdicts, and throws CommandFailed with the exit code of what does not hold. */
export const verifyBundle = async (path: string, policy: Policy, format: Format, trusted: Trusted): Promise<void> => {
  const bar = openBar("entries");
  const opening = withFile(path, (source) => openBundle(source, policy, trusted, bar.show)).finally(bar.clear);
  const bundle = await opening.catch((error: unknown) => refuse(format, error));
  const completeness = completenessOf(bundle, trusted.producers !== undefined);
  print(format, bundle, completeness);
  for (const gap of completeness.missing.slice(1)) say(gap);
  if (completeness.verdict === "broken")
    throw new CommandFailed(exitCode.refused, `incomplete: ${completeness.missing[0]}`);
};
