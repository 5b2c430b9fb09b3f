/**
 * What `sqlite-writer.ts` and its thread say to each other, as one block of bytes a message: cloning thousands of small arrays, strings
 * and buffers cost both threads more than SQLite itself. Both ends are the same build, so the form has no version.
 */
import type { Job, Outcome, SqlResult, SqlValue, Statement } from "./sqlite-job.ts";

const nothing = 0;
const number = 1;
const text = 2;
const blob = 3;
const failed = 1;
const firstBytes = 64 * 1024;
/** A scratch buffer that one large message has made is not kept. */
const keptBytes = 4 * 2 ** 20;

/** Appends to a buffer that grows. */
class Packer {
  #buffer = Buffer.allocUnsafeSlow(firstBytes);
  #end = 0;

  /** What a message that could not be packed has left behind is dropped. */
  begin(): void {
    this.#end = 0;
  }

  u8(value: number): void {
    this.#reserve(1);
    this.#buffer[this.#end++] = value;
  }

  u32(value: number): void {
    this.#reserve(4);
    this.#end = this.#buffer.writeUInt32LE(value, this.#end);
  }

  f64(value: number): void {
    this.#reserve(8);
    this.#end = this.#buffer.writeDoubleLE(value, this.#end);
  }

  text(value: string): void {
    // A UTF-16 unit takes at most three bytes of UTF-8.
    this.#reserve(4 + 3 * value.length);
    const length = this.#buffer.write(value, this.#end + 4);
    this.#buffer.writeUInt32LE(length, this.#end);
    this.#end += 4 + length;
  }

  bytes(value: Uint8Array): void {
    this.#reserve(4 + value.byteLength);
    this.#end = this.#buffer.writeUInt32LE(value.byteLength, this.#end);
    this.#buffer.set(value, this.#end);
    this.#end += value.byteLength;
  }

  value(value: SqlValue): void {
    if (value === null) this.u8(nothing);
    else if (typeof value === "number") {
      this.u8(number);
      this.f64(value);
    } else if (typeof value === "string") {
      this.u8(text);
      this.text(value);
    } else {
      this.u8(blob);
      this.bytes(value);
    }
  }

  /** What was packed, in memory of its own that may be transferred. */
  take(): Uint8Array<ArrayBuffer> {
    const packed = new Uint8Array(this.#end);
    packed.set(this.#buffer.subarray(0, this.#end));
    if (this.#buffer.length > keptBytes) this.#buffer = Buffer.allocUnsafeSlow(firstBytes);
    return packed;
  }

  #reserve(bytes: number): void {
    if (this.#end + bytes <= this.#buffer.length) return;
    const larger = Buffer.allocUnsafeSlow(Math.max(2 * this.#buffer.length, this.#end + bytes));
    this.#buffer.copy(larger, 0, 0, this.#end);
    this.#buffer = larger;
  }
}

class Unpacker {
  readonly #buffer: Buffer;
  #at = 0;

  constructor(packed: Uint8Array) {
    this.#buffer = Buffer.from(packed.buffer as ArrayBuffer, packed.byteOffset, packed.byteLength);
  }

  u8(): number {
    return this.#buffer[this.#at++] as number;
  }

  u32(): number {
    this.#at += 4;
    return this.#buffer.readUInt32LE(this.#at - 4);
  }

  f64(): number {
    this.#at += 8;
    return this.#buffer.readDoubleLE(this.#at - 8);
  }

  text(): string {
    const length = this.u32();
    this.#at += length;
    return this.#buffer.toString("utf8", this.#at - length, this.#at);
  }

  /** Memory of its own: a small value must not keep a large message. */
  bytes(): Uint8Array {
    const length = this.u32();
    const copy = new Uint8Array(length);
    copy.set(this.#buffer.subarray(this.#at, this.#at + length));
    this.#at += length;
    return copy;
  }

  value(): SqlValue {
    switch (this.u8()) {
      case nothing:
        return null;
      case number:
        return this.f64();
      case text:
        return this.text();
      default:
        return this.bytes();
    }
  }

  list<T>(each: () => T): T[] {
    const items: T[] = [];
    for (let left = this.u32(); left > 0; left -= 1) items.push(each());
    return items;
  }
}

const packer = new Packer();

/** The SQL of a job stands in the message once, however many statements have it. */
export const packJobs = (jobs: readonly Job[]): Uint8Array<ArrayBuffer> => {
  const known = new Map<string, number>();
  for (const job of jobs) for (const [sql] of job) if (!known.has(sql)) known.set(sql, known.size);
  packer.begin();
  packer.u32(known.size);
  for (const sql of known.keys()) packer.text(sql);
  packer.u32(jobs.length);
  for (const job of jobs) {
    packer.u32(job.length);
    for (const statement of job) {
      packer.u32(known.get(statement[0]) as number);
      packer.u32(statement.length - 1);
      for (let i = 1; i < statement.length; i += 1) packer.value(statement[i] as SqlValue);
    }
  }
  return packer.take();
};

export const unpackJobs = (packed: Uint8Array): Job[] => {
  const from = new Unpacker(packed);
  const known = from.list(() => from.text());
  return from.list(() =>
    from.list((): Statement => {
      const sql = known[from.u32()] as string;
      return [sql, ...from.list(() => from.value())];
    }),
  );
};

const packResult = ({ changes, rows }: SqlResult): void => {
  packer.f64(changes);
  packer.u32(rows.length);
  for (const row of rows) {
    packer.u32(row.length);
    for (const value of row) packer.value(value);
  }
};

export const packOutcomes = (outcomes: readonly Outcome[]): Uint8Array<ArrayBuffer> => {
  packer.begin();
  packer.u32(outcomes.length);
  for (const outcome of outcomes) {
    if ("code" in outcome) {
      packer.u8(failed);
      packer.f64(outcome.code);
      packer.text(outcome.message);
    } else {
      packer.u8(nothing);
      packer.u32(outcome.length);
      for (const result of outcome) packResult(result);
    }
  }
  return packer.take();
};

export const unpackOutcomes = (packed: Uint8Array): Outcome[] => {
  const from = new Unpacker(packed);
  return from.list((): Outcome => {
    if (from.u8() === failed) return { code: from.f64(), message: from.text() };
    return from.list(() => ({ changes: from.f64(), rows: from.list(() => from.list(() => from.value())) }));
  });
};
