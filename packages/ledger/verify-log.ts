import { hash } from "node:crypto";
import { type OpenedCheckpoint, parseCheckpoint } from "./checkpoint.ts";
import { CHECKPOINT_PATH } from "./directory.ts";
import { decodeBundle } from "./entry-bundle.ts";
import { HASH_BYTES, leafHash, MAX_ENTRY_BYTES, sameHash } from "./hash.ts";
import { MAX_NOTE_BYTES, parseNote } from "./note.ts";
import { NoteError } from "./note-error.ts";
import { openByPolicy, type Policy, type PolicyVerdict } from "./policy.ts";
import { TILE_HEIGHT, TILE_WIDTH, type TileAddress, tilePath } from "./tile.ts";
import { verifiedNodes } from "./tile-nodes.ts";
import { Frontier } from "./tree.ts";

/**
 * The file of a c2sp.org/tlog-tiles log under `path`; undefined: there is none. Rejects with a NoteError that says why it is none of a log
 * (longer than `mostBytes`, no plain file), and with anything else where it cannot be read now.
 */
export type ReadLogFile = (path: string, mostBytes: number) => Promise<Uint8Array | undefined>;

/** A tree that was seen before: of the same log, as its checkpoint of then said. */
export type RememberedTree = { readonly size: number; readonly root: Uint8Array };

/** Which file is wrong, and why, in words that repeat none of its content. */
export class LogBroken extends Error {
  override readonly name = "LogBroken";
  readonly file: string;
  constructor(file: string, why: string) {
    super(why);
    this.file = file;
  }
}

/** What is there is no log: it has no checkpoint. */
export class NotALog extends Error {
  override readonly name = "NotALog";
}

const faultOf = <T>(file: string, read: () => T): T => {
  try {
    return read();
  } catch (error) {
    if (!(error instanceof NoteError)) throw error;
    throw new LogBroken(file, error.message);
  }
};

/** A signed note in place of the checkpoint; whose, and of what, is not looked at. */
const noteIn = async (read: ReadLogFile): Promise<Uint8Array> => {
  try {
    const bytes = await read(CHECKPOINT_PATH, MAX_NOTE_BYTES);
    if (bytes === undefined) throw new NotALog("there is no file checkpoint in it");
    parseNote(bytes);
    return bytes;
  } catch (error) {
    if (!(error instanceof NoteError)) throw error;
    throw new NotALog(`its checkpoint is no signed note: ${error.message}`);
  }
};

/**
 * The log's signed checkpoint, opened under `policy`, whose quorum must hold. Rejects with NotALog where there is none or it is no signed
 * note, with LogBroken where it is not to be believed.
 */
export const readCheckpoint = async (read: ReadLogFile, policy: Policy): Promise<PolicyVerdict & { note: string }> => {
  const bytes = await noteIn(read);
  const verdict = faultOf(CHECKPOINT_PATH, () => openByPolicy(bytes, policy));
  if (!verdict.quorum) {
    const names = verdict.witnesses.map(({ name }) => name).join(", ");
    throw new LogBroken(CHECKPOINT_PATH, `the policy's quorum has not cosigned it: ${names || "nobody"} has`);
  }
  return { ...verdict, note: Buffer.from(bytes).toString() };
};

/**
 * What a log's checkpoint says that no key of `policy` has signed, for whoever is told its text by something that is believed; undefined: one
 * has. Rejects as `readCheckpoint` does.
 */
export const readUnsigned = async (
  read: ReadLogFile,
  policy: Policy,
): Promise<{ readonly opened: OpenedCheckpoint; readonly note: string } | undefined> => {
  const bytes = await noteIn(read);
  const { text, signatures } = parseNote(bytes);
  const isSigned = policy.logs.some(({ key: { name, keyId } }) =>
    signatures.some((line) => line.name === name && line.keyId === keyId),
  );
  if (isSigned) return undefined;
  const checkpoint = faultOf(CHECKPOINT_PATH, () => parseCheckpoint(text));
  return { opened: { ...checkpoint, text, signatures: [] }, note: Buffer.from(bytes).toString() };
};

/** Every file of the tree of `size` leaves, each once all that is under it has come: bundles from left to right, tiles as they fill. */
function* tilesBottomUp(size: number): Generator<TileAddress> {
  const full = Math.floor(size / TILE_WIDTH);
  for (let bundle = 0; bundle < full; bundle += 1) {
    yield { level: "entries", index: bundle, width: TILE_WIDTH };
    let index = bundle;
    for (let level = 0; ; level += 1) {
      yield { level, index, width: TILE_WIDTH };
      if (index % TILE_WIDTH < TILE_WIDTH - 1) break;
      index = Math.floor(index / TILE_WIDTH);
    }
  }
  yield* edgeOf(size);
}

/** The partial bundle and tiles of that tree. */
function* edgeOf(size: number): Generator<TileAddress> {
  const partial = (level: TileAddress["level"], count: number) => ({
    level,
    index: Math.floor(count / TILE_WIDTH),
    width: count % TILE_WIDTH,
  });
  if (size % TILE_WIDTH > 0) yield partial("entries", size);
  for (let [level, count] = [0, size]; count > 0; level += 1) {
    if (count % TILE_WIDTH > 0) yield partial(level, count);
    count = Math.floor(count / TILE_WIDTH);
  }
}

const mostBytes = ({ level, width }: TileAddress) => width * (level === "entries" ? 2 + MAX_ENTRY_BYTES : HASH_BYTES);

/** The tree as its entries make it, of which the last tile of each level is kept. */
const openGrowth = () => {
  const frontier = new Frontier();
  const rows: Buffer[] = [];
  const completed = (level: number, index: number, hash: Uint8Array) => {
    if (level % TILE_HEIGHT > 0) return;
    const row = rows[level / TILE_HEIGHT] ?? Buffer.alloc(TILE_WIDTH * HASH_BYTES);
    rows[level / TILE_HEIGHT] = row;
    row.set(hash, (index % TILE_WIDTH) * HASH_BYTES);
  };
  return {
    append: (entry: Uint8Array) => frontier.append(leafHash(entry), completed),
    root: () => frontier.root(),
    get size() {
      return frontier.size;
    },
    /** The bytes of the last tile of a level; they are written over when the next one begins. */
    tile: (level: number, width: number) => rows[level]?.subarray(0, width * HASH_BYTES) ?? Buffer.alloc(0),
  };
};

/** A file, or what is left of it where the full tile took its place. */
type Content = { readonly path: string; readonly bytes: Uint8Array; readonly width: number };

const contentOf = async (address: TileAddress, read: ReadLogFile): Promise<Content> => {
  for (const width of new Set([address.width, TILE_WIDTH])) {
    const at = { ...address, width };
    const path = tilePath(at);
    try {
      const bytes = await read(path, mostBytes(at));
      if (bytes !== undefined) return { path, bytes, width };
    } catch (error) {
      throw error instanceof NoteError ? new LogBroken(path, error.message) : error;
    }
  }
  throw new LogBroken(tilePath(address), "it is missing");
};

/** Files in their order, `ahead` of them read before they are asked for. */
async function* readAhead(addresses: Iterable<TileAddress>, read: ReadLogFile, ahead: number) {
  const begun: { address: TileAddress; content: Promise<Content> }[] = [];
  for (const address of addresses) {
    const content = contentOf(address, read);
    content.catch(() => undefined); // seen when its turn comes
    begun.push({ address, content });
    const first = begun.length > ahead && begun.shift();
    if (first) yield { address: first.address, content: await first.content };
  }
  for (const { address, content } of begun) yield { address, content: await content };
}

/** The first of `width` hashes in which `a` and `b` differ; undefined: none. */
const firstDifference = (a: Uint8Array, b: Uint8Array, width: number): number | undefined => {
  const hashAt = (bytes: Uint8Array, at: number) => bytes.subarray(at * HASH_BYTES, (at + 1) * HASH_BYTES);
  if (sameHash(a.subarray(0, width * HASH_BYTES), b.subarray(0, width * HASH_BYTES))) return undefined;
  return Array.from({ length: width }, (_, at) => at).find((at) => !sameHash(hashAt(a, at), hashAt(b, at)));
};

export type VerifyLogParts = {
  readonly read: ReadLogFile;
  /** What the log's checkpoint says; its signatures have been verified. */
  readonly tree: RememberedTree;
  /** What it must contain, and whose partial tiles must stand where no full one replaced them. */
  readonly remembered?: readonly RememberedTree[];
  /** Told of every entry, in order, before the tree is known to be sound. They share the memory of their bundle, and last until it resolves. */
  readonly onEntries?: (first: number, entries: readonly Uint8Array[]) => void | Promise<void>;
  readonly progress?: (done: number, size: number) => void;
  /** Files read before their turn; a bundle has up to 16 MB. */
  readonly ahead?: number;
  /** Told of bytes that `read` gave and that are no longer used: their memory can be written over. */
  readonly release?: (bytes: Uint8Array) => void;
};

const defaultAhead = 4;

/** What a tree of the past was, by the entries that are there now. */
type Past = {
  readonly size: number;
  readonly root: Uint8Array;
  /** SHA-256 of the bytes of its partial bundle and tiles. */
  readonly edge: readonly { readonly address: TileAddress; readonly digest: Uint8Array }[];
};

const digestOf = (bytes: Uint8Array): Uint8Array => hash("sha256", bytes, "buffer");

class Verification {
  readonly #parts: VerifyLogParts;
  readonly #growth = openGrowth();
  readonly #remembered: ReadonlyMap<number, readonly RememberedTree[]>;
  readonly #past: Past[] = [];
  /** The bundle whose tile comes next. */
  #bundle = "";

  constructor(parts: VerifyLogParts) {
    const { remembered = [], tree } = parts;
    this.#parts = parts;
    this.#remembered = Map.groupBy(remembered, ({ size }) => size);
    const most = Math.max(...this.#remembered.keys());
    if (most > tree.size)
      throw new LogBroken(
        CHECKPOINT_PATH,
        `rollback: it is of ${tree.size} entries, and one of ${most} was seen before`,
      );
  }

  async run(): Promise<void> {
    const { tree, read, progress, release, ahead = defaultAhead } = this.#parts;
    for await (const { address, content } of readAhead(tilesBottomUp(tree.size), read, ahead)) {
      const { level, index, width } = address;
      if (level === "entries") await this.#entries(width, content);
      else await this.#tile(level, index, width, content);
      if (level === 0) progress?.(this.#growth.size, tree.size);
      release?.(content.bytes);
    }
    if (!sameHash(this.#growth.root(), tree.root))
      throw new LogBroken(CHECKPOINT_PATH, `its root is not that of the ${tree.size} entries and tiles that are there`);
    // Only now: a log that is wrong in itself is not told from one that was forked.
    for (const past of this.#past) await this.#compare(past);
  }

  async #entries(width: number, { path, bytes, width: whole }: Content): Promise<void> {
    const entries = faultOf(path, () => decodeBundle(bytes, whole)).slice(0, width);
    const first = this.#growth.size;
    this.#bundle = path;
    for (const entry of entries) {
      this.#growth.append(entry);
      if (this.#remembered.has(this.#growth.size))
        this.#keep(bytes.subarray(0, entry.byteOffset + entry.length - bytes.byteOffset));
    }
    await this.#parts.onEntries?.(first, entries);
  }

  #keep(bundle: Uint8Array): void {
    const { size, tile, root } = this.#growth;
    const edge = [...edgeOf(size)].map((address) => {
      const { level, width } = address;
      return { address, digest: digestOf(level === "entries" ? bundle : tile(level, width)) };
    });
    this.#past.push({ size, root: root(), edge });
  }

  async #tile(level: number, index: number, width: number, { path, bytes, width: whole }: Content): Promise<void> {
    const wanted = whole * HASH_BYTES;
    if (bytes.length !== wanted) throw new LogBroken(path, `it has ${bytes.length} bytes, and must have ${wanted}`);
    const at = firstDifference(bytes, this.#growth.tile(level, width), width);
    if (at !== undefined) await this.#blame(path, level, index, at);
  }

  /** A tile has another hash than what is under it. Whether it leads to the signed root says which of the two is wrong. */
  async #blame(path: string, level: number, index: number, at: number): Promise<never> {
    const { tree, read } = this.#parts;
    const place = index * TILE_WIDTH + at;
    const below = level === 0 ? this.#bundle : tilePath({ level: level - 1, index: place, width: TILE_WIDTH });
    const nodes = verifiedNodes(tree.size, tree.root, (each) => read(each, TILE_WIDTH * HASH_BYTES));
    let leads = true;
    try {
      await nodes([{ level: level * TILE_HEIGHT, index: place }]);
    } catch (error) {
      if (!(error instanceof NoteError)) throw error;
      leads = false;
    }
    if (leads)
      throw new LogBroken(below, `${level === 0 ? `entry ${place}` : "it"} is not what ${path} has the hash of`);
    throw new LogBroken(path, `its hash ${at} is not that of ${level === 0 ? `entry ${place} in ${below}` : below}`);
  }

  /** What was seen before: the same tree, and its right edge still stands or went into full tiles, which were compared in their turn. */
  async #compare({ size, root, edge }: Past): Promise<void> {
    const seen = this.#remembered.get(size) ?? [];
    if (!seen.every((each) => sameHash(each.root, root)))
      throw new LogBroken(
        CHECKPOINT_PATH,
        `fork: its first ${size} entries are not those of the checkpoint seen before`,
      );
    for (const { address, digest } of edge) {
      const { path, bytes, width } = await contentOf(address, this.#parts.read);
      if (width === address.width && !sameHash(digestOf(bytes), digest))
        throw new LogBroken(path, `it is not what the log had there at its size of ${size}`);
    }
  }
}

/**
 * Reads every bundle and every tile of a log's tree, makes all hashes again out of the entries alone, and compares each file to the byte,
 * and the root. Memory is bounded by a few bundles, whatever the size. Resolves when all holds; rejects with a LogBroken that names the
 * first file that does not, and with whatever `read` rejects with.
 */
export const verifyLog = async (parts: VerifyLogParts): Promise<void> => new Verification(parts).run();
