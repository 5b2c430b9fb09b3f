import { execFile } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { create, createFileRegistry, fromBinary, getOption, hasOption } from "@bufbuild/protobuf";
import { type FileDescriptorProto, FileDescriptorProtoSchema, FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { secret } from "@curfew/contracts/gen/curfew/options/v1/options_pb.ts";
import { VerifierService } from "@curfew/contracts/gen/curfew/verifier/v1/verifier_pb.ts";
import { ServerReflection } from "@curfew/contracts/gen/grpc/reflection/v1/reflection_pb.ts";
import { ServerReflection as ServerReflectionAlpha } from "@curfew/contracts/gen/grpc/reflection/v1alpha/reflection_pb.ts";
import { afterEach, expect, test } from "vitest";
import { openChannel, type RpcChannel } from "./channel.ts";
import { createClient } from "./client.ts";
import { parseRpcError } from "./errors.ts";
import { bindService } from "./service-definition.ts";
import { EchoService } from "./testing/echo.ts";
import { echoHandlers, type Harness, issue, openHarness } from "./testing/harness.ts";

let harness: Harness;
let channel: RpcChannel;
afterEach(async () => {
  channel.close();
  await harness.close();
});

const refuse = () => {
  throw new Error("not called");
};
const open = async (reflection = true) => {
  const verifier = { verifyToken: refuse, batchVerifyTokens: refuse, reportUses: refuse };
  const services = [bindService(EchoService, echoHandlers), bindService(VerifierService, verifier)];
  harness = await openHarness({}, { services, reflection });
  channel = openChannel(await harness.channelOptions());
};

const ask = async (
  version: typeof ServerReflection,
  request: { case: "fileContainingSymbol" | "listServices"; value: string },
) => {
  const exchange = createClient(version, channel).serverReflectionInfo();
  await exchange.send({ messageRequest: request });
  exchange.end();
  const [answer] = await Array.fromAsync(exchange.responses);
  return answer?.messageResponse;
};
const alpha = ServerReflectionAlpha as unknown as typeof ServerReflection;

test.each([
  ["v1", ServerReflection],
  ["v1alpha", alpha],
])("%s lists every service, health and itself included", async (_name, version) => {
  await open();
  const answer = await ask(version, { case: "listServices", value: "" });
  expect(answer?.value).toMatchObject({
    service: [
      { name: EchoService.typeName },
      { name: VerifierService.typeName },
      { name: "grpc.health.v1.Health" },
      { name: "grpc.reflection.v1.ServerReflection" },
      { name: "grpc.reflection.v1alpha.ServerReflection" },
    ],
  });
});

test.each([
  ["v1", ServerReflection],
  ["v1alpha", alpha],
])("%s answers a service's file with all it imports, custom options intact", async (_name, version) => {
  await open();
  const answer = await ask(version, { case: "fileContainingSymbol", value: VerifierService.typeName });
  if (answer?.case !== "fileDescriptorResponse") return expect.unreachable(String(answer?.case));
  const files = answer.value.fileDescriptorProto.map((bytes) => fromBinary(FileDescriptorProtoSchema, bytes));
  // Imports before what imports them; protobuf-es itself takes a file that is imported twice out of order.
  const file: FileDescriptorProto[] = [];
  const add = (one: FileDescriptorProto | undefined) => {
    if (!one) return expect.unreachable("a dependency is missing");
    for (const name of one.dependency) add(files.find((other) => other.name === name));
    if (!file.includes(one)) file.push(one);
  };
  add(files[0]);
  const registry = createFileRegistry(create(FileDescriptorSetSchema, { file }));
  const request = registry.getMessage("curfew.verifier.v1.VerifyTokenRequest");
  const marked = request?.fields.filter((f) => hasOption(f, secret) && getOption(f, secret)).map((f) => f.name);
  expect(marked).toEqual(["secret", "secret_sha256"]);
  const method = registry.getService(VerifierService.typeName)?.method.reportUses;
  expect(method?.idempotency).toBe(VerifierService.method.reportUses.idempotency);
});

test("answers by file name, nested symbol, field, method and extension, and NOT_FOUND for what is not there", async () => {
  await open();
  const exchange = createClient(ServerReflection, channel).serverReflectionInfo();
  const answers = exchange.responses[Symbol.asyncIterator]();
  const extension = { containingType: "google.protobuf.FieldOptions", extensionNumber: 50001 };
  const there = [
    { case: "fileByFilename", value: "buf/validate/validate.proto" },
    { case: "fileContainingSymbol", value: "grpc.health.v1.HealthCheckResponse.ServingStatus" },
    { case: "fileContainingSymbol", value: "grpc.health.v1.HealthCheckResponse.SERVING" },
    { case: "fileContainingSymbol", value: "curfew.verifier.v1.VerifyTokenRequest.use" },
    { case: "fileContainingSymbol", value: "curfew.verifier.v1.VerifierService.VerifyToken" },
    { case: "fileContainingExtension", value: extension },
  ] as const;
  for (const messageRequest of there) {
    await exchange.send({ messageRequest });
    const { value } = await answers.next();
    expect(value?.messageResponse.case, JSON.stringify(messageRequest)).toBe("fileDescriptorResponse");
  }
  await exchange.send({ messageRequest: { case: "allExtensionNumbersOfType", value: extension.containingType } });
  const numbers = (await answers.next()).value?.messageResponse.value;
  expect(numbers).toMatchObject({ extensionNumber: expect.arrayContaining([50001, 1159]) as number[] });
  for (const value of ["no.Such", "toString"]) {
    await exchange.send({ messageRequest: { case: "fileContainingSymbol", value } });
    expect((await answers.next()).value?.messageResponse.case).toBe("errorResponse");
  }
  exchange.end();
});

test("is not there unless asked for", async () => {
  await open(false);
  const call = ask(ServerReflection, { case: "listServices", value: "" });
  expect(await call.catch((error: unknown) => parseRpcError(error).status)).toBe("UNIMPLEMENTED");
});

test("lets buf curl call a method it knows nothing of", async () => {
  await open();
  const folder = await mkdtemp(join(tmpdir(), "curfew-curl-"));
  try {
    const { certPem, keyPem } = await issue(harness.authority, "/workload/billing");
    await writeFile(join(folder, "ca.pem"), harness.authority.certPem);
    await writeFile(join(folder, "cert.pem"), certPem);
    await writeFile(join(folder, "key.pem"), keyPem, { mode: 0o600 });
    const buf = fileURLToPath(new URL("../../node_modules/.bin/buf", import.meta.url));
    const tls = ["--cacert", "ca.pem", "--cert", "cert.pem", "--key", "key.pem", "--protocol", "grpc"];
    const url = `https://localhost:${harness.server.port}/${EchoService.typeName}/Echo`;
    const env = { PATH: process.env.PATH ?? "", HOME: folder };
    const { stdout } = await promisify(execFile)(buf, ["curl", ...tls, "-d", '{"text":"hi","count":"7"}', url], {
      cwd: folder,
      env,
    });
    expect(JSON.parse(stdout)).toEqual({ text: "hi", count: "7" });
  } finally {
    await rm(folder, { recursive: true });
  }
});
