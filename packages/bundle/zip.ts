import { crc32 } from "node:zlib";

/**
 * The ZIP format (PKWARE APPNOTE 6.3) with nothing left to choose: files are stored, not compressed, have no time, comment or extra field,
 * and follow each other without a gap, so that the names and bytes of the files decide every byte of the archive, and whoever reads one can
 * make it again and compare. No library writes or checks that; the format of stored files is these three records.
 */
export interface ZipFile {
  /** Printable ASCII. */
  readonly name: string;
  /** Bytes. */
  readonly size: number;
  readonly crc: number;
}

export const LOCAL_HEADER_BYTES = 30;
/** Without ZIP64 there can be no more. */
export const MAX_ZIP_FILES = 65_534;
/** As offsets have 32 bits; half of it, so that no reader takes them for signed. */
export const MAX_ZIP_BYTES = 2 ** 31 - 1;

const versionNeeded = 10;
/** Made on Unix by 2.0 of the specification: only then do readers look at the mode. */
const madeBy = 0x0314;
/** 1980-01-01, the first day of the format. */
const date = 0x0021;
/** A regular file that its owner may read and write. */
const mode = (0o100600 << 16) >>> 0;

/** Everything that the two headers of a file have in common, from "version needed" on. */
const writeCommon = (header: Buffer, at: number, { name, size, crc }: ZipFile): void => {
  header.writeUInt16LE(versionNeeded, at);
  header.writeUInt16LE(date, at + 8);
  header.writeUInt32LE(crc, at + 10);
  header.writeUInt32LE(size, at + 14);
  header.writeUInt32LE(size, at + 18);
  header.writeUInt16LE(name.length, at + 22);
};

/** What stands before the bytes of a file. */
export const localHeader = (file: ZipFile): Buffer => {
  const header = Buffer.alloc(LOCAL_HEADER_BYTES + file.name.length);
  header.write("PK\x03\x04", "latin1");
  writeCommon(header, 4, file);
  header.write(file.name, LOCAL_HEADER_BYTES, "latin1");
  return header;
};

/** The file's record in the central directory; `offset`: of its local header. */
const centralHeader = (file: ZipFile, offset: number): Buffer => {
  const header = Buffer.alloc(46 + file.name.length);
  header.write("PK\x01\x02", "latin1");
  header.writeUInt16LE(madeBy, 4);
  writeCommon(header, 6, file);
  header.writeUInt32LE(mode, 38);
  header.writeUInt32LE(offset, 42);
  header.write(file.name, 46, "latin1");
  return header;
};

/** The central directory, a record a file, and the record that ends the archive. */
export function* zipEnd(files: readonly ZipFile[]): Generator<Buffer> {
  let offset = 0;
  let bytes = 0;
  for (const file of files) {
    const header = centralHeader(file, offset);
    offset += LOCAL_HEADER_BYTES + file.name.length + file.size;
    bytes += header.length;
    yield header;
  }
  const end = Buffer.alloc(22);
  end.write("PK\x05\x06", "latin1");
  end.writeUInt16LE(files.length, 8);
  end.writeUInt16LE(files.length, 10);
  end.writeUInt32LE(bytes, 12);
  end.writeUInt32LE(offset, 16);
  yield end;
}

export const zipFileOf = (name: string, bytes: Uint8Array): ZipFile => ({
  name,
  size: bytes.length,
  crc: crc32(bytes),
});
