import { generateKeyPairSync } from "node:crypto";
import { once } from "node:events";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { parseAddCheckpoint } from "@curfew/ledger/add-checkpoint.ts";
import { leafHash } from "@curfew/ledger/hash.ts";
import { formatSignature, parseNote } from "@curfew/ledger/note.ts";
import { cosignerKeyText, noteCosigner } from "@curfew/ledger/note-key.ts";
import { openByPolicy, parsePolicy } from "@curfew/ledger/policy.ts";
import { verifyConsistency } from "@curfew/ledger/proof.ts";
import { Frontier, proveConsistency } from "@curfew/ledger/tree.ts";
import { openOutbound } from "@curfew/runtime/outbound.ts";
import { memoryStore } from "@curfew/simulation/memory-store.ts";
import { virtualClock } from "@curfew/simulation/virtual-clock.ts";
import { afterEach, describe, expect, it } from "vitest";
import { origin, seal, shard, verifierKey } from "../testing/rig.ts";
import { cosignedId, openCosigned } from "./cosigned.ts";
import { checkPolicy, openWitnesses, type Submission } from "./witnesses.ts";

const servers: Server[] = [];
afterEach(() => {
  for (const server of servers.splice(0)) {
    server.close();
    server.closeAllConnections();
  }
});

/** A tree of `size` leaves, and what is submitted of it. */
const treeOf = (size: number) => {
  const nodes = new Map<string, Uint8Array>();
  const frontier = new Frontier();
  for (let i = 0; i < size; i += 1)
    frontier.append(leafHash(Buffer.from(`leaf ${i}`)), (level, index, node) => nodes.set(`${level}/${index}`, node));
  const read = (wanted: readonly { level: number; index: number }[]) =>
    wanted.map(({ level, index }) => nodes.get(`${level}/${index}`) as Uint8Array);
  const checkpoint = seal.sign(shard, size, frontier.root());
  const submission: Submission = { size, checkpoint, prove: (old) => proveConsistency(old, size, read) };
  return { root: frontier.root(), submission };
};
const tree = treeOf(300);
const before = treeOf(200);

type Reply = { status: number; body?: string } | undefined;
/** A key of a witness, and the lines that it makes. */
const keyOf = (name: string) => {
  const { privateKey } = generateKeyPairSync("ed25519");
  const lineFor = (text: string, seconds = 1_795_000_000) => {
    const { keyId, sign } = noteCosigner(`${name}.example`, privateKey, seconds);
    return formatSignature({ name: `${name}.example`, keyId, signature: sign(text) });
  };
  return { vkey: cosignerKeyText(`${name}.example`, privateKey), lineFor };
};

/** A server that answers by `reply`, as a witness of this key; undefined: never. What it was asked is kept. */
const openPeer = async (name: string, reply: (body: string, cosigned: () => string) => Reply) => {
  const { vkey, lineFor } = keyOf(name);
  const asked: string[] = [];
  const server = createServer(async (request, response) => {
    const parts: Buffer[] = [];
    for await (const part of request) parts.push(part as Buffer);
    const body = Buffer.concat(parts).toString();
    asked.push(`${request.method} ${request.url} ${body.split("\n", 1)}`);
    const answer = reply(body, () => lineFor(parseNote(parseAddCheckpoint(body).checkpoint).text));
    if (answer) response.writeHead(answer.status).end(answer.body ?? "");
  });
  servers.push(server);
  await once(server.listen(0, "127.0.0.1"), "listening");
  const { port } = server.address() as AddressInfo;
  const host = `127.0.0.1:${port}`;
  return { name, vkey, host, url: `http://${host}/`, asked, lineFor, server };
};
type Peer = Awaited<ReturnType<typeof openPeer>>;
const good = (_body: string, cosigned: () => string) => ({ status: 200, body: cosigned() });

/** A client of these, which lacks nothing but the `quorum` named. */
const openClient = async (peers: readonly Peer[], quorum: string, allow = peers.map(({ host }) => host)) => {
  const lines = peers.map(({ name, vkey, url }) => `witness ${name} ${vkey} ${url}\n`).join("");
  const group = `group any2 2 ${peers.map(({ name }) => name).join(" ")}\n`;
  const policy = parsePolicy(`log ${verifierKey}\n${lines}${peers.length > 1 ? group : ""}quorum ${quorum}\n`);
  checkPolicy(policy, [verifierKey]);
  const clock = virtualClock();
  const said: string[] = [];
  const log = {
    warn: (_fields: unknown, text?: string) => void said.push(`warn: ${text}`),
    error: (_fields: unknown, text?: string) => void said.push(`error: ${text}`),
  };
  const rows = await openCosigned(memoryStore());
  const witnesses = openWitnesses({ policy, outbound: openOutbound({ allow, clock }), rows, clock, log });
  const stop = new AbortController();
  return {
    witnesses,
    cosign: (of = tree) => witnesses.cosign(of.submission, stop.signal),
    policy,
    clock,
    said,
    rows,
    stop,
  };
};
const signersOf = (note: string | undefined, policy: ReturnType<typeof parsePolicy>) =>
  note === undefined
    ? undefined
    : openByPolicy(note, policy)
        .witnesses.map(({ name }) => name)
        .sort();
const answerOf = async ({ witnesses }: { witnesses: { status: ReturnType<typeof openWitnesses>["status"] } }) =>
  (await witnesses.status()).answers.map(({ name, outcome, said }) => `${name} ${outcome}: ${said}`);

describe("the client of witnesses", () => {
  it("puts the cosignatures under the log's own signature", async () => {
    const client = await openClient([await openPeer("w1", good), await openPeer("w2", good)], "any2");
    const note = await client.cosign();
    expect(note?.startsWith(tree.submission.checkpoint)).toBe(true);
    expect(signersOf(note, client.policy)).toEqual(["w1", "w2"]);
    expect(await client.witnesses.status()).toMatchObject({ quorum: "held", answers: [{ outcome: "cosigned" }, {}] });
    expect(client.said).toEqual([]);
  });

  it("begins at the size that the witness states, with the proof from there, and remembers it", async () => {
    const proven: boolean[] = [];
    const peer = await openPeer("w1", (body, cosigned) => {
      const { old, proof, claimed } = parseAddCheckpoint(body);
      if (old === 0) return { status: 409, body: "200\n" };
      proven.push(verifyConsistency(old, claimed.size, proof, old === 200 ? before.root : tree.root, claimed.root));
      return good(body, cosigned);
    });
    const client = await openClient([peer], "w1");
    expect(signersOf(await client.cosign(), client.policy)).toEqual(["w1"]);
    expect(signersOf(await client.cosign(), client.policy)).toEqual(["w1"]);
    expect(peer.asked).toEqual([
      "POST /add-checkpoint old 0",
      "POST /add-checkpoint old 200",
      "POST /add-checkpoint old 300",
    ]);
    expect(proven).toEqual([true, true]);
  });

  const text = parseNote(tree.submission.checkpoint).text;
  const other = keyOf("other");
  const own = keyOf("own");
  it.each<[string, (peer: Peer) => Reply, string]>([
    ["an error", () => ({ status: 500 }), "answers with HTTP status 500"],
    ["a redirect", () => ({ status: 302 }), "answers with HTTP status 302"],
    ["400", () => ({ status: 400 }), "says that the request is malformed"],
    ["403", () => ({ status: 403 }), "does not know the key that signed"],
    ["404", () => ({ status: 404 }), "does not know this log"],
    ["a conflict without a size", () => ({ status: 409, body: "2".repeat(20) }), "another size"],
    ["nothing", () => ({ status: 200 }), "its answer is no cosignature"],
    ["garbage", () => ({ status: 200, body: "— x\n" }), "its answer is no cosignature"],
    ["another's cosignature", () => ({ status: 200, body: other.lineFor(text) }), "no known key has signed"],
    ["its cosignature of something else", (peer) => ({ status: 200, body: peer.lineFor("x\n") }), "does not hold"],
    ["a cosignature without a time", (peer) => ({ status: 200, body: peer.lineFor(text, 0) }), "states no time"],
    [
      "more text under a cosignature of all",
      (peer) => {
        const more = `${tree.submission.checkpoint}more\n`;
        return { status: 200, body: `more\n\n${peer.lineFor(more)}` };
      },
      "its answer is more than signature lines",
    ],
  ])("takes %s for a no, and does not ask again in the same round", async (_what, reply, said) => {
    const peer: Peer = await openPeer("w1", () => reply(peer));
    const client = await openClient([peer], "w1");
    expect(await client.cosign()).toBeUndefined();
    expect(peer.asked).toHaveLength(1);
    const [answer = ""] = await answerOf(client);
    expect(answer).toContain("w1 refused: ");
    expect(answer).toContain(said);
    expect((await client.witnesses.status()).quorum).toBe("missing");
  });

  it("ignores lines of others beside the one it wants", async () => {
    const peer: Peer = await openPeer("w1", (_body, cosigned) => ({
      status: 200,
      body: other.lineFor(text) + cosigned() + own.lineFor("x\n"),
    }));
    const client = await openClient([peer], "w1");
    const note = (await client.cosign()) ?? "";
    expect(parseNote(note).signatures.map(({ name }) => name)).toEqual([origin, "w1.example"]);
  });

  it("gives up on one that states a size twice", async () => {
    let size = 100;
    const peer = await openPeer("w1", () => {
      size += 1;
      return { status: 409, body: `${size}\n` };
    });
    const client = await openClient([peer], "w1");
    expect(await client.cosign()).toBeUndefined();
    expect(peer.asked).toEqual(["POST /add-checkpoint old 0", "POST /add-checkpoint old 101"]);
  });

  it.each<[string, Reply, string]>([
    ["has seen a larger ledger", { status: 409, body: "301\n" }, "has cosigned 301 entries, and there are 300"],
    ["has seen another ledger", { status: 422 }, "has cosigned another ledger"],
  ])("says loudly that a witness %s", async (_what, reply, said) => {
    const peer = await openPeer("w1", () => reply);
    const client = await openClient([peer], "w1");
    expect(await client.cosign()).toBeUndefined();
    expect((await answerOf(client))[0]).toContain(`w1 contradicts: ${said}`);
    expect(client.said).toContain("error: a witness contradicts this ledger");
  });

  it("waits for stragglers a second when there are enough, and five for any", async () => {
    const peers = [await openPeer("w1", good), await openPeer("w2", good), await openPeer("w3", () => undefined)];
    const client = await openClient(peers, "any2");
    let note: string | undefined | "running" = "running";
    const running = client.cosign().then((signed) => (note = signed));
    await expect.poll(async () => (await client.witnesses.status()).answers.length).toBe(2);
    await expect.poll(() => peers[2]?.asked.length).toBe(1);
    expect(note).toBe("running");
    await client.clock.advance(1_000);
    expect(signersOf(await running, client.policy)).toEqual(["w1", "w2"]);
    // It owes an answer: it is not asked a second time meanwhile.
    const again = client.cosign();
    await expect.poll(() => peers[1]?.asked.length).toBe(2);
    await client.clock.advance(1_000);
    await again;
    expect(peers[2]?.asked).toHaveLength(1);
    await client.clock.advance(3_000);
    await expect
      .poll(() => answerOf(client))
      .toContainEqual(expect.stringMatching(/^w3 unreachable: 127.0.0.1:\d+: no complete answer within 5000 ms$/));
  });

  it("ends when told to, whoever has not answered", async () => {
    const client = await openClient([await openPeer("w1", () => undefined)], "w1");
    const running = client.cosign();
    client.stop.abort();
    expect(await running).toBeUndefined();
  });

  it("says once that the quorum is missing and once that it is there again, and asks less often meanwhile", async () => {
    let isUp = true;
    const peer = await openPeer("w1", (body, cosigned) => (isUp ? good(body, cosigned) : { status: 503 }));
    const client = await openClient([peer], "w1");
    const pauseMs = async () => {
      await client.cosign();
      let ms = 0;
      for (; !client.witnesses.due(); ms += 500) await client.clock.advance(500);
      return ms;
    };
    expect(client.witnesses.due()).toBe(true);
    expect(await pauseMs()).toBe(1_000);
    isUp = false;
    expect([await pauseMs(), await pauseMs(), await pauseMs(), await pauseMs(), await pauseMs()]).toEqual([
      2_000, 4_000, 8_000, 10_000, 10_000,
    ]);
    isUp = true;
    expect(await pauseMs()).toBe(1_000);
    expect(client.said).toEqual([
      "warn: a witness does not cosign",
      "error: the quorum of witnesses is missing: the public checkpoint waits, sealing goes on",
      "warn: a witness cosigns again",
      "warn: the quorum of witnesses is there again",
    ]);
  });

  it("calls nobody at a private address that is not listed", async () => {
    const peer = await openPeer("w1", good);
    const client = await openClient([peer], "w1", []);
    expect(await client.cosign()).toBeUndefined();
    expect(peer.asked).toEqual([]);
    expect((await answerOf(client))[0]).toContain("w1 unreachable: http to 127.0.0.1:");
  });

  it("publishes with whoever cosigned where the policy asks for nobody", async () => {
    const client = await openClient(
      [await openPeer("w1", good), await openPeer("w2", () => ({ status: 500 }))],
      "none",
    );
    expect(signersOf(await client.cosign(), client.policy)).toEqual(["w1"]);
    expect((await client.witnesses.status()).quorum).toBe("none");
  });

  it("tells of the newest checkpoint that was kept, also before it has asked anybody", async () => {
    const peer = await openPeer("w1", good);
    const client = await openClient([peer], "w1");
    expect(await client.witnesses.status()).toEqual({ quorum: "unknown", answers: [] });
    await client.rows.insert({
      _id: cosignedId(300),
      shard,
      size: 300,
      checkpoint: `${tree.submission.checkpoint}${peer.lineFor(text)}`,
    });
    expect(await client.witnesses.status()).toMatchObject({ cosigned: { size: 300, seconds: 1_795_000_000 } });
  });

  it("does not take a policy that cannot be asked, or is another ledger's", () => {
    const check = (lines: string) => () => checkPolicy(parsePolicy(lines), [verifierKey]);
    expect(check(`log ${verifierKey}\nquorum none\n`)).toThrow("the witness policy has no witness");
    expect(check(`log ${verifierKey}\nwitness w1 ${own.vkey}\nquorum w1\n`)).toThrow(
      "witness w1 of the policy has no URL",
    );
    expect(check(`log ${verifierKey}\nwitness w1 ${own.vkey} ftp://x/\nquorum w1\n`)).toThrow("has no URL");
    expect(check(`witness w1 ${own.vkey} https://w1.example/\nquorum w1\n`)).toThrow(`which is: log ${verifierKey}`);
  });
});
