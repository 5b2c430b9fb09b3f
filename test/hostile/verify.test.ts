import { execFileSync } from "node:child_process";
import { generateKeyPairSync } from "node:crypto";
import {
  chmodSync,
  cpSync,
  mkdirSync,
  mkdtempSync,
  renameSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { createServer, type RequestListener } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { openLogUrl } from "@curfew/cli/read-log.ts";
import { signCheckpoint } from "@curfew/ledger/checkpoint.ts";
import { writeLog } from "@curfew/ledger/log.test-data.ts";
import { signNote } from "@curfew/ledger/note.ts";
import { noteSigner, verifierKeyText } from "@curfew/ledger/note-key.ts";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { curfew, curfewBy } from "../tools/curfew.ts";

/** A log whose keeper means ill with who verifies it: every answer is bounded, comes in time, and says what was wrong. */

const scratch = mkdtempSync(join(tmpdir(), "curfew-hostile-log-"));
const [sound, log, policy] = [join(scratch, "sound"), join(scratch, "log"), join(scratch, "policy")];
const origin = "log.example/hostile";
const pair = generateKeyPairSync("ed25519");
const signer = noteSigner(origin, pair.privateKey);
const key = verifierKeyText(origin, pair.publicKey);
const { files, rootAt } = writeLog([300, 600]);
const checkpoint = signCheckpoint({ origin, size: 600, root: rootAt(600) }, [signer]);

beforeAll(() => {
  for (const [path, bytes] of [...files, ["checkpoint", checkpoint] as const]) {
    mkdirSync(dirname(join(sound, path)), { recursive: true });
    writeFileSync(join(sound, path), bytes);
  }
  writeFileSync(policy, `log ${key}\nquorum none\n`);
});
beforeEach(() => {
  rmSync(log, { recursive: true, force: true });
  cpSync(sound, log, { recursive: true });
});
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

const at = (path: string) => join(log, path);
const tile = "tile/0/001";
const fifo = (path: string) => {
  rmSync(at(path));
  execFileSync("mkfifo", [at(path)]);
};
const link = (path: string, to: string) => {
  rmSync(at(path), { recursive: true });
  symlinkSync(to, at(path));
};
const resign = (size: string) =>
  writeFileSync(
    at("checkpoint"),
    signNote(`${origin}\n${size}\n${Buffer.from(rootAt(600)).toString("base64")}\n`, [signer]),
  );
const outside = (path: string) => {
  const aside = join(mkdtempSync(join(scratch, "outside-")), "aside");
  renameSync(at(path), aside);
  symlinkSync(aside, at(path));
};
const folder = (path: string) => {
  rmSync(at(path));
  mkdirSync(at(path));
};

describe("a directory", () => {
  it("that is a sound log is accepted, under a key or a policy, through a link as well", async () => {
    symlinkSync(log, join(scratch, "linked"));
    expect(await curfew("verify", log, "--policy", policy)).toMatchObject({ code: 0, err: "" });
    expect(await curfew("verify", join(scratch, "linked"), "--key", key)).toMatchObject({ code: 0, err: "" });
  });

  it.each<[string, () => void, number, string]>([
    ["a FIFO for a tile", () => fifo(tile), 1, `${tile}: it is no plain file`],
    ["a FIFO for the checkpoint", () => fifo("checkpoint"), 4, "no signed note: it is no plain file"],
    ["a device for a tile", () => link(tile, "/dev/zero"), 1, `${tile}: it is a link`],
    ["a link to itself", () => link(tile, at(tile)), 1, `${tile}: it is a link`],
    ["a tile outside", () => outside(tile), 1, `${tile}: it is a link`],
    ["a folder outside", () => outside("tile"), 1, "tile/entries/000: a folder of it is a link"],
    ["a folder for a tile", () => folder(tile), 1, `${tile}: it is no plain file`],
    ["a tile of 1 TB", () => truncateSync(at(tile), 2 ** 40), 1, `${tile}: it is longer than 8192 bytes`],
    ["a bundle of 1 TB", () => truncateSync(at("tile/entries/000"), 2 ** 40), 1, "it is longer than 16777472 bytes"],
    ["a checkpoint of 1 TB", () => truncateSync(at("checkpoint"), 2 ** 40), 4, "no signed note: it is longer than"],
    ["an empty checkpoint", () => truncateSync(at("checkpoint"), 0), 4, "its checkpoint is no signed note"],
    ["no checkpoint", () => rmSync(at("checkpoint")), 4, "this is no log: there is no file checkpoint in it"],
    ["a signed size of 2^53", () => resign("9007199254740992"), 1, "a canonical decimal below 2^53"],
    ["a signed size of 2^63", () => resign("9223372036854775808"), 1, "a canonical decimal below 2^53"],
    ["a signed size of 2^53 - 1", () => resign("9007199254740991"), 1, "tile/entries/002: it is missing"],
  ])("with %s is refused", async (_what, spoil, code, says) => {
    spoil();
    const verified = await curfew("verify", log, "--key", key, "-o", "json");
    expect(verified).toMatchObject({ code, err: expect.stringContaining(says) });
    expect(verified.err.split("\n")).toHaveLength(2);
    if (code === 1) expect(JSON.parse(verified.out)).toMatchObject({ integrity: { holds: false } });
  });

  it("with a file that must not be read is not called broken", async () => {
    chmodSync(at(tile), 0);
    // The superuser reads it all the same, unless without that privilege.
    const as = process.getuid?.() === 0 ? ["setpriv", "--inh-caps=-all", "--bounding-set=-all"] : [];
    const { code, err } = await curfewBy(as, "verify", log, "--key", key);
    expect({ code, err }).toEqual({ code: 4, err: `curfew: ${tile} cannot be read: EACCES\n` });
  });
});

describe("the command line", () => {
  it.each<[string, string[], number, string]>([
    ["no key and no policy", [sound], 2, "give --key VKEY or --policy FILE"],
    ["both", [sound, "--key", key, "--policy", policy], 2, "give --key VKEY or --policy FILE"],
    ["no key", [sound, "--key", "nonsense"], 2, "--key: line 1: malformed note key"],
    ["a key with more than a key", [sound, "--key", `${key}\nquorum none`], 2, "--key"],
    ["no such policy", [sound, "--policy", join(scratch, "none")], 2, "cannot be read"],
    ["an endless policy", [sound, "--policy", "/dev/zero"], 2, "is longer than 262144 bytes"],
    ["no such directory", [join(scratch, "none"), "--key", key], 2, "cannot be verified: ENOENT"],
    ["http to others", ["http://log.example/", "--key", key], 2, "http is for this machine only"],
    ["a URL with a password", ["https://a:b@log.example/", "--key", key], 2, "without user, query or fragment"],
    ["nobody there", ["http://127.0.0.1:1/", "--key", key], 4, "cannot be read: ECONNREFUSED"],
    [
      "what was seen of no log",
      [sound, "--key", key, "--older", policy],
      2,
      "is no checkpoint under this key or policy",
    ],
    ["what was seen without end", [sound, "--key", key, "--older", "/dev/zero"], 2, "is longer than 1000000 bytes"],
    ["nowhere to remember", [sound, "--key", key, "--remember", join(scratch, "none", "file")], 2, "ENOENT"],
  ])("with %s is refused", async (_what, args, code, says) => {
    const { code: ended, err } = await curfew("verify", ...args);
    expect({ ended, err }).toEqual({ ended: code, err: expect.stringContaining(says) });
  });
});

describe("a server", () => {
  const limits = { fileMs: 1_500, idleMs: 1_000 };
  const serving = async <T>(listener: RequestListener, use: (url: string) => Promise<T>): Promise<T> => {
    const server = createServer(listener);
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    try {
      return await use(`http://127.0.0.1:${(server.address() as AddressInfo).port}/sub/folder`);
    } finally {
      server.close();
      server.closeAllConnections();
    }
  };
  const sent = { bytes: 0 };
  const endless: RequestListener = (_request, response) => {
    response.on("error", () => undefined);
    const more = () => {
      while (!response.destroyed && response.write(Buffer.alloc(65_536))) sent.bytes += 65_536;
    };
    response.on("drain", more);
    more();
  };

  it.each<[string, RequestListener, string]>([
    ["that never answers", () => undefined, "no byte within 1000 ms"],
    ["that stops in the middle", (_, response) => void response.writeHead(200).write("half"), "no byte within 1000 ms"],
    [
      "that gives a byte now and then",
      (_, response) => {
        const timer = setInterval(() => response.write("x"), 20);
        response.on("close", () => clearInterval(timer));
      },
      "not whole within 1500 ms",
    ],
    ["that hangs up", (request) => void request.socket.destroy(), "ECONNRESET"],
    [
      "that gives less than it said",
      (_, response) => {
        response.writeHead(200, { "content-length": 100 }).write("half");
        setTimeout(() => response.destroy(), 20);
      },
      "ECONNRESET",
    ],
    ["that is down", (_, response) => void response.writeHead(503).end(), "answered 503"],
    [
      "that sends elsewhere",
      (_, response) => void response.writeHead(302, { location: "http://127.0.0.1:1/" }).end(),
      "answered 302: no redirect is followed",
    ],
    ["that says no", (_, response) => void response.writeHead(403).end("<html>"), "answered 403"],
  ])("%s is unreadable, in time", async (_what, listener, says) => {
    await serving(listener, async (url) => {
      const source = openLogUrl(url, limits);
      await expect(source.read(tile, 100)).rejects.toMatchObject({ code: 4, message: expect.stringContaining(says) });
      source.close();
    });
  });

  it("is asked below its path, and again when it could not answer", async () => {
    const asked: (string | undefined)[] = [];
    const listener: RequestListener = ({ url }, response) => {
      asked.push(url);
      response.writeHead(asked.length === 1 ? 500 : 200).end("bytes");
    };
    await serving(listener, async (url) => {
      const source = openLogUrl(url, limits);
      expect(await source.read(tile, 5)).toEqual(Buffer.from("bytes"));
      await expect(source.read(tile, 4)).rejects.toThrow("it is longer than 4 bytes");
      source.close();
    });
    expect(asked).toEqual([`/sub/folder/${tile}`, `/sub/folder/${tile}`, `/sub/folder/${tile}`]);
  });

  it("whose answer has no end is cut off at what a file may have", async () => {
    await serving(endless, async (url) => {
      expect(await curfew("verify", url, "--key", key)).toMatchObject({
        code: 4,
        err: expect.stringContaining("its checkpoint is no signed note: it is longer than 1000000 bytes"),
      });
    });
    const tiles: RequestListener = (request, response) =>
      request.url?.endsWith("/checkpoint") ? response.end(checkpoint) : endless(request, response);
    sent.bytes = 0;
    await serving(tiles, async (url) => {
      expect(await curfew("verify", url, "--key", key)).toMatchObject({
        code: 1,
        err: expect.stringContaining("tile/entries/000: it is longer than 16777472 bytes"),
      });
    });
    // Eight files ahead, each with its limit and what the sockets hold.
    expect(sent.bytes).toBeLessThan(300_000_000);
  });
});
