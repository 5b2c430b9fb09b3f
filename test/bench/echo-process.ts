import { randomUUID } from "node:crypto";
import { openTestSuite, trustDomain } from "@curfew/rpc/testing/suite.ts";
import { Server, ServerCredentials, type UntypedServiceImplementation } from "@grpc/grpc-js";
import { answer } from "./child.ts";

/**
 * The bound of every unary call: grpc-js itself over mutual TLS 1.3, bytes in, the same bytes out; with `insertBytes` it inserts so many
 * into a store of ours first.
 */
const { insertBytes = 0 } = JSON.parse(process.argv[2] ?? "{}") as { readonly insertBytes?: number };
const suite = await openTestSuite();
const { caPem, identity } = await suite.parts("echo");
const { certPem, keyPem } = identity.current();
const same = (bytes: Buffer) => bytes;
const echo = {
  path: "/echo/Echo",
  requestStream: false,
  responseStream: false,
  requestSerialize: same,
  requestDeserialize: same,
  responseSerialize: same,
  responseDeserialize: same,
};
const rows = await (await suite.store("echo")).collection("commits");
const doc = Buffer.alloc(insertBytes, 1);
const server = new Server({ "grpc.enable_channelz": 0 });
type Call = { readonly request: Buffer };
type Respond = (error: null, bytes: Buffer) => void;
const inserting = async ({ request }: Call, respond: Respond) => {
  await rows.insert({ _id: `tokens/tok_${randomUUID()}@0000000001`, doc });
  respond(null, request);
};
const implementation: UntypedServiceImplementation = {
  echo: insertBytes > 0 ? inserting : ({ request }: Call, respond: Respond) => respond(null, request),
};
server.addService({ echo }, implementation);
const pair = { cert_chain: Buffer.from(certPem), private_key: Buffer.from(keyPem) };
const credentials = ServerCredentials.createSsl(Buffer.from(caPem), [pair], true);
const port = await new Promise<number>((resolve, reject) => {
  server.bindAsync("localhost:0", credentials, (error, bound) => (error ? reject(error) : resolve(bound)));
});
let before = { all: process.cpuUsage(), main: process.threadCpuUsage() };
const ms = ({ user, system }: { user: number; system: number }) => (user + system) / 1000;

answer(
  {
    ports: () => ({ echo: port }),
    trust: () => ({ caPem, trustDomain }),
    identity: async (path: string) => (await suite.identity(path)).current(),
    cpu: () => {
      const now = { all: process.cpuUsage(before.all), main: process.threadCpuUsage(before.main) };
      before = { all: process.cpuUsage(), main: process.threadCpuUsage() };
      return { all: ms(now.all), main: ms(now.main) };
    },
  },
  async () => {
    server.forceShutdown();
    await suite.close();
  },
);
