import { sourceOf } from "../byte-source.ts";
import { readZip } from "../read-zip.ts";
import { localHeader, zipEnd, zipFileOf } from "../zip.ts";

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
