import { hash } from "node:crypto";
import { sourceOf } from "../byte-source.ts";
import { comparePlaces, file, placeOf } from "../layout.ts";
import { formatManifest, type Manifest, manifestDigest, parseManifest, signManifest } from "../manifest.ts";
import { readZip } from "../read-zip.ts";
import { localHeader, zipEnd, zipFileOf } from "../zip.ts";
import { signer } from "./sample.ts";

/** An archive taken apart, to be put together otherwise. */
export type Files = readonly (readonly [name: string, bytes: Uint8Array])[];

export const filesOf = async (bundle: Uint8Array): Promise<Files> =>
  (await readZip(sourceOf(bundle))).map(({ name, at, size }) => [name, bundle.subarray(at, at + size)] as const);

/** A sound archive of any files in any order. */
export const archiveOf = (files: Files): Buffer => {
  const zip = files.map(([name, bytes]) => zipFileOf(name, bytes));
  const stored = files.flatMap(([, bytes], i) => [localHeader(zip[i] as (typeof zip)[number]), bytes]);
  return Buffer.concat([...stored, ...zipEnd(zip)]);
};

/** What somebody who has a ledger's key can make of these files: a bundle whose manifest lists and signs them as they are. */
export const signedAgain = (
  files: Files,
  changes: Readonly<Record<string, Uint8Array | string | undefined>>,
  facts: Partial<Manifest> = {},
  by = signer,
): Buffer => {
  const evidence = files.filter(([name]) => name !== file.manifest && name !== file.note);
  const added = Object.keys(changes).filter((name) => !files.some(([each]) => each === name));
  const all = [
    ...evidence.map(([name, bytes]) => [name, name in changes ? changes[name] : bytes] as const),
    ...added.map((name) => [name, changes[name]] as const),
  ];
  const kept = all
    .flatMap(([name, bytes]) => (bytes === undefined ? [] : [[name, Buffer.from(bytes)] as const]))
    .sort(([a], [b]) => comparePlaces(placeOf(a) ?? [], placeOf(b) ?? []));
  const old = parseManifest(files.find(([name]) => name === file.manifest)?.[1] ?? new Uint8Array());
  const listed = kept.map(([name, bytes]) => ({ name, bytes: bytes.length, sha256: hash("sha256", bytes, "hex") }));
  const { format: _, ...rest } = { ...old, ...facts, files: listed };
  const manifest = formatManifest(rest);
  return archiveOf([
    ...kept,
    [file.manifest, manifest],
    [file.note, Buffer.from(signManifest(manifestDigest(manifest), by))],
  ]);
};
