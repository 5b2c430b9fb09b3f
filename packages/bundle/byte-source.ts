/** Random access to the bytes of a file. */
export interface ByteSource {
  readonly size: number;
  /** Exactly `length` bytes from `at` on; both lie within the file. They may be overwritten by the next call. */
  read(at: number, length: number): Promise<Uint8Array>;
}

const windowBytes = 2 ** 20;

/** Reads ahead: many small reads that follow each other cost few large ones. */
export const readAhead = (source: ByteSource): ByteSource => {
  let from = 0;
  let window: Uint8Array = new Uint8Array();
  return {
    size: source.size,
    async read(at, length) {
      if (length > windowBytes) return await source.read(at, length);
      if (at < from || at + length > from + window.length) {
        window = Uint8Array.from(await source.read(at, Math.min(windowBytes, source.size - at)));
        from = at;
      }
      return window.subarray(at - from, at - from + length);
    },
  };
};

/** Bytes that are in memory. */
export const sourceOf = (bytes: Uint8Array): ByteSource => ({
  size: bytes.length,
  read: async (at, length) => bytes.subarray(at, at + length),
});
