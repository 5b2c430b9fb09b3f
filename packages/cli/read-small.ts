import { createReadStream } from "node:fs";
import { CommandFailed, exitCode } from "./exit.ts";

const nameOf = (file: string) => (file === "-" ? "standard input" : file);

/** What a file holds, or standard input for "-"; more than `maxBytes` is a mistake, and is not read. Latin-1: bytes stay as they are. */
export const readSmall = async (file: string, maxBytes: number): Promise<Buffer> => {
  const chunks: Buffer[] = [];
  let length = 0;
  const name = nameOf(file);
  try {
    for await (const chunk of file === "-" ? process.stdin : createReadStream(file)) {
      chunks.push(chunk as Buffer);
      length += (chunk as Buffer).length;
      if (length > maxBytes) break;
    }
  } catch (error) {
    throw new CommandFailed(exitCode.usage, `${name} cannot be read: ${(error as Error).message}`);
  }
  if (length > maxBytes) throw new CommandFailed(exitCode.usage, `${name} is longer than ${maxBytes} bytes`);
  return Buffer.concat(chunks);
};

const maxSecretFileBytes = 4_096;

/** A secret from a file or standard input: never from the command line, where every process of the machine could read it. */
export const readSecret = async (file: string): Promise<string> => {
  const secret = (await readSmall(file, maxSecretFileBytes)).toString("utf8").trim();
  if (!secret) throw new CommandFailed(exitCode.usage, `${nameOf(file)} is empty`);
  return secret;
};
