import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";

/** What becomes of a response on its way to the client: "destroy" closes the connection instead, a frame takes its place. */
export type Fate = "pass" | "swallow" | "destroy" | Buffer;

export const produceKey = 0;
export const fetchKey = 1;

export interface FaultyLink {
  /** A broker must advertise it, or clients go past the link after their first answer. */
  readonly port: number;
  /** Where connections go from now on. */
  target: number;
  /** Asked for every response of the broker; it may change the frame (4 bytes length, 4 bytes correlation id, body). */
  fate: (apiKey: number, frame: Buffer) => Fate;
  close(): Promise<void>;
}

/** A TCP link to a broker that understands the frames of the Kafka protocol, so that a test can lose any answer it likes. */
export const openFaultyLink = async (): Promise<FaultyLink> => {
  const sockets = new Set<Socket>();
  const server = createServer((client) => {
    const broker = connect(link.target, "127.0.0.1");
    const requests = new Map<number, number>();
    for (const [socket, other] of [
      [client, broker],
      [broker, client],
    ] as const) {
      sockets.add(socket);
      socket.setNoDelay(true);
      socket.on("error", () => other.destroy());
      socket.on("close", () => {
        sockets.delete(socket);
        other.destroy();
      });
    }
    onFrames(client, (frame) => {
      requests.set(frame.readInt32BE(8), frame.readInt16BE(4));
      broker.write(frame);
    });
    onFrames(broker, (frame) => {
      const fate = link.fate(requests.get(frame.readInt32BE(4)) ?? -1, frame);
      requests.delete(frame.readInt32BE(4));
      if (fate === "pass") client.write(frame);
      else if (fate === "destroy") client.resetAndDestroy();
      else if (fate !== "swallow") client.write(fate);
    });
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const link: FaultyLink = {
    port: (server.address() as AddressInfo).port,
    target: 0,
    fate: () => "pass",
    async close() {
      for (const socket of sockets) socket.destroy();
      server.close();
      await once(server, "close");
    },
  };
  return link;
};

const onFrames = (socket: Socket, each: (frame: Buffer) => void) => {
  let pending = Buffer.alloc(0);
  socket.on("data", (chunk: Buffer) => {
    pending = Buffer.concat([pending, chunk]);
    while (pending.length >= 4 && pending.length >= 4 + pending.readInt32BE(0)) {
      const end = 4 + pending.readInt32BE(0);
      each(Buffer.from(pending.subarray(0, end)));
      pending = pending.subarray(end);
    }
  });
};
