import { BusRefused, type OutRecord } from "./bus.ts";
import { keyHeader, previousHeader, producerHeader, sequenceHeader, signatureHeader } from "./chain.ts";

export const maxCallRecords = 1000;
export const maxCallBytes = 4 * 2 ** 20;
/** Below a broker's default `message.max.bytes`, with room for key and headers. */
export const maxValueBytes = 1_000_000;
export const maxKeyBytes = 1000;
const maxHeaders = 64;
const maxHeaderBytes = 8192;
/** Begins with a letter: a name that looks like a number would change its place among an object's keys. */
const headerName = /^[A-Za-z][A-Za-z0-9_.-]*$/;
const printable = /^[\x20-\x7e]*$/;
/** Names found right before (there are a dozen, and every record has them), and the text found right under each: mostly the next one. */
const rightBefore = new Map<string, string>();
const maxRightNames = 1_000;
const ours = new Set([producerHeader, sequenceHeader, previousHeader, keyHeader, signatureHeader]);
/** Chain headers and framing, generously. */
const overheadBytes = 256;

/** Bytes of each record, about; throws BusRefused where one, or all together, may not be sent to a topic of so many partitions. */
export const checkedSizes = (records: readonly OutRecord[], partitions: number): number[] => {
  if (records.length > maxCallRecords) throw new BusRefused(`more than ${maxCallRecords} records in a send`);
  const sizes = records.map((record) => checkedSize(record, partitions));
  if (sum(sizes) > maxCallBytes) throw new BusRefused(`a send is larger than ${maxCallBytes} bytes`);
  return sizes;
};

const checkedSize = ({ partition, key, headers, value }: OutRecord, partitions: number): number => {
  if (!Number.isInteger(partition) || partition < 0 || partition >= partitions)
    throw new BusRefused(`no partition ${partition}: the topic has ${partitions}`);
  const keyBytes = printable.test(key) ? key.length : Buffer.byteLength(key);
  if (key === "" || keyBytes > maxKeyBytes || !key.isWellFormed())
    throw new BusRefused(`a key must be valid Unicode, not empty, at most ${maxKeyBytes} bytes`);
  let count = 0;
  let headerBytes = 0;
  for (const name of Object.keys(headers)) {
    const text = headers[name] as string;
    count += 1;
    const before = rightBefore.get(name);
    if (before !== text) {
      if (before === undefined) checkName(name);
      if (!printable.test(text)) throw new BusRefused(`header "${name}" is not printable ASCII`);
      if (before !== undefined || rightBefore.size < maxRightNames) rightBefore.set(name, text);
    }
    headerBytes += name.length + text.length;
  }
  if (count > maxHeaders || headerBytes > maxHeaderBytes)
    throw new BusRefused(`more than ${maxHeaders} headers or ${maxHeaderBytes} bytes of them`);
  if (value.byteLength === 0) throw new BusRefused("a value cannot be empty: it would be a tombstone");
  if (value.byteLength > maxValueBytes) throw new BusRefused(`a value is larger than ${maxValueBytes} bytes`);
  return overheadBytes + keyBytes + headerBytes + value.byteLength;
};

const checkName = (name: string): void => {
  if (!headerName.test(name) || ours.has(name)) throw new BusRefused(`a record cannot have a header "${name}"`);
};

export const sum = (numbers: readonly number[]) => numbers.reduce((total, n) => total + n, 0);
