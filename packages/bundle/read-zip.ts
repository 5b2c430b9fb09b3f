import { createHash } from "node:crypto";
import { crc32 } from "node:zlib";
import { BundleBroken, NotABundle } from "./broken.ts";
import { type ByteSource, readAhead } from "./byte-source.ts";
import { comparePlaces, file, MAX_FILE_BYTES, placeOf } from "./layout.ts";
import { LOCAL_HEADER_BYTES, localHeader, MAX_ZIP_BYTES, MAX_ZIP_FILES, type ZipFile, zipEnd } from "./zip.ts";

/** A file of the archive, and where its bytes are. */
export interface StoredFile extends ZipFile {
  readonly at: number;
  /** Hex. */
  readonly sha256: string;
}

const chunkBytes = 2 ** 20;
const maxNameBytes = 64;
const readable = /^[\x21-\x7e]+$/;

/** Which part of a local header is not as it must be, by its offset, last one first. */
const partsOfHeader: readonly (readonly [offset: number, rule: string])[] = [
  [28, "carries an extra field"],
  [26, "has a name of another length"],
  [18, "states two sizes, or is compressed"],
  [14, "has another checksum"],
  [10, "carries a date"],
  [8, "is compressed: the files of a bundle are stored as they are"],
  [6, "has flags: it is encrypted, or states its size behind its bytes"],
  [4, "needs another version of the format"],
];

const ruleAt = (offset: number): string => partsOfHeader.find(([from]) => offset >= from)?.[1] ?? "is malformed";

const firstDifference = (a: Uint8Array, b: Uint8Array): number => {
  const at = a.findIndex((byte, i) => byte !== b[i]);
  return at < 0 ? Math.min(a.length, b.length) : at;
};

const isAt = async (source: ByteSource, at: number, signature: string): Promise<boolean> =>
  at + 4 <= source.size && Buffer.from(await source.read(at, 4)).toString("latin1") === signature;

/** Reads what the local header at `at` says, and refuses whatever else it has than our writer's header for the same file. */
const readHeader = async (source: ByteSource, at: number): Promise<ZipFile> => {
  const where = `the file at byte ${at}`;
  if (at + LOCAL_HEADER_BYTES > source.size) throw new BundleBroken("", `${where}: the archive ends within its header`);
  const fixed = Buffer.from(await source.read(at, LOCAL_HEADER_BYTES));
  const nameBytes = fixed.readUInt16LE(26);
  if (nameBytes > maxNameBytes || at + LOCAL_HEADER_BYTES + nameBytes > source.size)
    throw new BundleBroken("", `${where} has too long a name`);
  const header = Buffer.from(await source.read(at, LOCAL_HEADER_BYTES + nameBytes));
  const name = header.toString("latin1", LOCAL_HEADER_BYTES);
  if (placeOf(name) === undefined)
    throw new BundleBroken(
      "",
      `${where} has a name that no file of a bundle has${readable.test(name) ? `: ${name}` : ""}`,
    );
  const stated = { name, size: header.readUInt32LE(22), crc: header.readUInt32LE(14) };
  const different = firstDifference(header, localHeader(stated));
  if (different < header.length) throw new BundleBroken(name, `its header ${ruleAt(different)}`);
  return stated;
};

/** The bytes of a file, in pieces; each may be overwritten by the next. */
async function* piecesOf(source: ByteSource, at: number, size: number): AsyncGenerator<Uint8Array> {
  for (let from = 0; from < size; from += chunkBytes)
    yield await source.read(at + from, Math.min(chunkBytes, size - from));
}

const readStored = async (source: ByteSource, headerAt: number): Promise<StoredFile> => {
  const stated = await readHeader(source, headerAt);
  const { name, size } = stated;
  const at = headerAt + LOCAL_HEADER_BYTES + name.length;
  if (size > MAX_FILE_BYTES) throw new BundleBroken(name, `says to have ${size} bytes, over ${MAX_FILE_BYTES}`);
  if (at + size > source.size) throw new BundleBroken(name, "the archive ends within it");
  const sha256 = createHash("sha256");
  let crc = 0;
  for await (const piece of piecesOf(source, at, size)) {
    crc = crc32(piece, crc);
    sha256.update(piece);
  }
  if (crc !== stated.crc) throw new BundleBroken(name, "its bytes were changed: the checksum beside them is of others");
  return { ...stated, at, sha256: sha256.digest("hex") };
};

const checkOrder = (last: StoredFile | undefined, { name }: StoredFile): void => {
  const order = last && comparePlaces(placeOf(last.name) ?? [], placeOf(name) ?? []);
  if (order === 0) throw new BundleBroken(name, "stands twice");
  if (order !== undefined && order > 0) throw new BundleBroken(name, `stands out of order, after ${last?.name}`);
};

const checkEnd = async (source: ByteSource, start: number, files: readonly StoredFile[]): Promise<void> => {
  let at = start;
  let record = 0;
  for (const expected of zipEnd(files)) {
    const name = files[record]?.name ?? "";
    const what = name === "" ? "the record that ends the archive" : "its entry in the directory of the archive";
    if (at + expected.length > source.size) throw new BundleBroken(name, `the archive ends within ${what}`);
    if (Buffer.compare(await source.read(at, expected.length), expected) !== 0)
      throw new BundleBroken(name, `${what} does not say the same as the file`);
    at += expected.length;
    record += 1;
  }
  if (at !== source.size) throw new BundleBroken("", `${source.size - at} surplus bytes after the end of the archive`);
};

/**
 * Reads the whole archive once, in bounded memory, and answers its files in order. Whatever our own writer would not have written for
 * these names and bytes is refused. Throws NotABundle, BundleBroken.
 */
export const readZip = async (raw: ByteSource): Promise<StoredFile[]> => {
  const source = readAhead(raw);
  const begin = Buffer.from(await source.read(0, Math.min(source.size, LOCAL_HEADER_BYTES + file.readMe.length)));
  if (begin.toString("latin1", 0, 4) !== "PK\x03\x04" || begin.toString("latin1", LOCAL_HEADER_BYTES) !== file.readMe)
    throw new NotABundle(`not an evidence bundle: it is no ZIP file that begins with ${file.readMe}`);
  if (source.size > MAX_ZIP_BYTES) throw new BundleBroken("", `${source.size} bytes, over ${MAX_ZIP_BYTES}`);
  const files: StoredFile[] = [];
  let at = 0;
  while (!(await isAt(source, at, "PK\x01\x02"))) {
    if (files.length >= MAX_ZIP_FILES) throw new BundleBroken("", `more than ${MAX_ZIP_FILES} files`);
    if (!(await isAt(source, at, "PK\x03\x04")))
      throw new BundleBroken("", `at byte ${at} there is neither a file nor the directory of the archive`);
    const stored = await readStored(source, at);
    checkOrder(files.at(-1), stored);
    files.push(stored);
    at = stored.at + stored.size;
  }
  await checkEnd(source, at, files);
  return files;
};
