import { type DescMethod, fromBinary } from "@bufbuild/protobuf";
import { anyUnpack } from "@bufbuild/protobuf/wkt";
import { ErrorInfoSchema } from "@curfew/contracts/gen/google/rpc/error_details_pb.ts";
import { StatusSchema } from "@curfew/contracts/gen/google/rpc/status_pb.ts";
import { methodDefinition } from "@curfew/rpc/service-definition.ts";
import { type Client, status as grpcStatus, Metadata, type ServiceError } from "@grpc/grpc-js";

/** How a call ended. `reason` and `domain` are ErrorInfo's; undefined: no such detail. */
export interface Answer {
  readonly status: string;
  readonly message: string;
  readonly reason: string | undefined;
  readonly domain: string | undefined;
  /** Messages that came, at most `RawCall.take`. */
  readonly messages: readonly Buffer[];
}

export interface RawCall {
  readonly deadlineMs?: number;
  readonly metadata?: Readonly<Record<string, string>>;
  /** Of a stream: as many answers are enough, then the call is cancelled. Default 1. */
  readonly take?: number;
}

const same = (bytes: Buffer) => bytes;

const answerOf = (error: ServiceError | null, messages: readonly Buffer[]): Answer => {
  if (!error) return { status: "OK", message: "", reason: undefined, domain: undefined, messages };
  const [details] = error.metadata.get("grpc-status-details-bin");
  const infos = Buffer.isBuffer(details) ? fromBinary(StatusSchema, details).details : [];
  const info = infos.map((any) => anyUnpack(any, ErrorInfoSchema)).find((found) => found !== undefined);
  return {
    status: grpcStatus[error.code] ?? String(error.code),
    message: error.details,
    reason: info?.reason,
    domain: info?.domain,
    messages,
  };
};

/** One call with these bytes as its messages, whatever they are; a stream of requests is ended after them. */
export const call = (
  client: Client,
  method: DescMethod,
  requests: readonly Uint8Array[],
  options: RawCall = {},
): Promise<Answer> =>
  new Promise((resolve) => {
    const metadata = new Metadata();
    for (const [key, value] of Object.entries(options.metadata ?? {})) metadata.set(key, value);
    const limits = { deadline: Date.now() + (options.deadlineMs ?? 10_000) };
    const { path } = methodDefinition(method);
    const [first = Buffer.alloc(0)] = requests;
    const buffer = Buffer.from(first);
    const messages: Buffer[] = [];
    if (method.methodKind === "unary") {
      client.makeUnaryRequest(path, same, same, buffer, metadata, limits, (error, message) =>
        resolve(answerOf(error, message ? [message] : [])),
      );
      return;
    }
    if (method.methodKind === "client_streaming") throw new Error("there is no such method yet: write it here");
    const duplex =
      method.methodKind === "bidi_streaming"
        ? client.makeBidiStreamRequest(path, same, same, metadata, limits)
        : undefined;
    const stream = duplex ?? client.makeServerStreamRequest(path, same, same, buffer, metadata, limits);
    stream.on("data", (message: Buffer) => {
      messages.push(message);
      if (messages.length < (options.take ?? 1)) return;
      resolve(answerOf(null, messages));
      stream.cancel();
    });
    stream.on("error", (error: ServiceError) => resolve(answerOf(error, messages)));
    stream.on("end", () => setImmediate(() => resolve(answerOf(null, messages))));
    for (const request of requests) duplex?.write(Buffer.from(request));
    duplex?.end();
  });
