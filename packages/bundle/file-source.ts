import { type FileHandle, open } from "node:fs/promises";
import type { ByteSource } from "./byte-source.ts";

const readExactly = async (handle: FileHandle, bytes: Buffer, at: number): Promise<void> => {
  for (let done = 0; done < bytes.length; ) {
    const { bytesRead } = await handle.read(bytes, done, bytes.length - done, at + done);
    if (bytesRead === 0) throw new Error("the file became shorter while it was read");
    done += bytesRead;
  }
};

/** The bytes of a file on disk, while `use` runs. Rejects with the system's error for what cannot be read. */
export const withFile = async <T>(path: string, use: (source: ByteSource) => Promise<T>): Promise<T> => {
  const handle = await open(path, "r");
  try {
    const stat = await handle.stat();
    if (!stat.isFile()) throw Object.assign(new Error(`${path} is no file`), { code: "EISDIR" });
    let buffer = Buffer.alloc(0);
    return await use({
      size: stat.size,
      async read(at, length) {
        if (buffer.length < length) buffer = Buffer.alloc(length);
        const bytes = buffer.subarray(0, length);
        await readExactly(handle, bytes, at);
        return bytes;
      },
    });
  } finally {
    await handle.close();
  }
};
