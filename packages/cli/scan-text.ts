import { SecretScanner } from "@curfew/token-format/scan.ts";

export interface Hit {
  readonly secret: string;
  /** From 1. */
  readonly line: number;
}

const probeBytes = 8_192;
const newline = 10;
const byteOrderMarks = ["fffe", "feff"];

/** Secrets in one text that comes in chunks, with their lines. UTF-16 with its mark is text too; what has a zero byte near its start is not. */
export class TextScanner {
  readonly #scanner = new SecretScanner();
  readonly #skipBinary: boolean;
  #mark = "";
  #seenBytes = 0;
  #keptBytes = 0;
  #line = 1;
  /** Nothing more is searched. */
  isBinary = false;

  constructor(options: { readonly skipBinary: boolean }) {
    this.#skipBinary = options.skipBinary;
  }

  push(chunk: Buffer): Hit[] {
    if (this.isBinary) return [];
    if (this.#seenBytes < 2) this.#mark += chunk.toString("hex", 0, 2 - this.#seenBytes);
    const isUtf16 = byteOrderMarks.includes(this.#mark);
    const probe = chunk.subarray(0, Math.max(0, probeBytes - this.#seenBytes));
    this.#seenBytes += chunk.length;
    if (this.#skipBinary && !isUtf16 && probe.includes(0)) {
      this.isBinary = true;
      return [];
    }
    // Our secrets are ASCII: in UTF-16 every other byte of one is zero.
    return this.#find(isUtf16 ? chunk.filter((byte) => byte !== 0) : chunk);
  }

  #find(text: Uint8Array): Hit[] {
    let at = 0;
    const skipTo = (end: number) => {
      for (let next = text.indexOf(newline, at); next !== -1 && next < end; next = text.indexOf(newline, next + 1))
        this.#line += 1;
      at = end;
    };
    const hits = this.#scanner.push(text).map(({ offset, secret }) => {
      skipTo(Math.max(at, offset - this.#keptBytes)); // one that began in the chunk before has no line end in it
      return { secret, line: this.#line };
    });
    skipTo(text.length);
    this.#keptBytes += text.length;
    return hits;
  }
}
