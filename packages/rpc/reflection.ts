import { type DescFile, type DescMessage, type DescService, toBinary } from "@bufbuild/protobuf";
import { FileDescriptorProtoSchema } from "@bufbuild/protobuf/wkt";
import {
  ServerReflection,
  type ServerReflectionRequest,
} from "@curfew/contracts/gen/grpc/reflection/v1/reflection_pb.ts";
import { ServerReflection as ServerReflectionAlpha } from "@curfew/contracts/gen/grpc/reflection/v1alpha/reflection_pb.ts";
import { status as grpcStatus } from "@grpc/grpc-js";
import { type BoundService, bindService } from "./service-definition.ts";

interface Index {
  readonly services: readonly string[];
  readonly files: ReadonlyMap<string, DescFile>;
  /** Full names of messages, fields, enums, values, services, methods and extensions. */
  readonly symbols: ReadonlyMap<string, DescFile>;
  /** By extended message, then by field number. */
  readonly extensions: ReadonlyMap<string, ReadonlyMap<number, DescFile>>;
}

const filesOf = (file: DescFile, into = new Map<string, DescFile>()): Map<string, DescFile> => {
  if (into.has(file.proto.name)) return into;
  into.set(file.proto.name, file);
  for (const dependency of file.dependencies) filesOf(dependency, into);
  return into;
};

const buildIndex = (services: readonly DescService[]): Index => {
  const files = new Map<string, DescFile>();
  for (const service of services) filesOf(service.file, files);
  const symbols = new Map<string, DescFile>();
  const extensions = new Map<string, Map<number, DescFile>>();
  const addScope = (scope: DescFile | DescMessage, file: DescFile) => {
    for (const anEnum of "enums" in scope ? scope.enums : scope.nestedEnums) {
      symbols.set(anEnum.typeName, file);
      const parent = anEnum.typeName.slice(0, anEnum.typeName.lastIndexOf(".") + 1);
      for (const value of anEnum.values) symbols.set(parent + value.name, file);
    }
    for (const extension of "extensions" in scope ? scope.extensions : scope.nestedExtensions) {
      symbols.set(extension.typeName, file);
      const of = extensions.get(extension.extendee.typeName) ?? new Map<number, DescFile>();
      extensions.set(extension.extendee.typeName, of.set(extension.number, file));
    }
    for (const message of "messages" in scope ? scope.messages : scope.nestedMessages) {
      symbols.set(message.typeName, file);
      for (const field of message.fields) symbols.set(`${message.typeName}.${field.name}`, file);
      addScope(message, file);
    }
  };
  for (const file of files.values()) {
    addScope(file, file);
    for (const service of file.services) {
      symbols.set(service.typeName, file);
      for (const method of service.methods) symbols.set(`${service.typeName}.${method.name}`, file);
    }
  }
  return { services: services.map((service) => service.typeName).sort(), files, symbols, extensions };
};

/** The file and everything it imports, the bytes protoc made: re-encoding keeps custom options, which travel as unknown fields. */
const descriptors = (file: DescFile | undefined) =>
  file && {
    case: "fileDescriptorResponse" as const,
    value: {
      fileDescriptorProto: [...filesOf(file).values()].map((f) => toBinary(FileDescriptorProtoSchema, f.proto)),
    },
  };

const find = (request: ServerReflectionRequest["messageRequest"], index: Index) => {
  switch (request.case) {
    case "fileByFilename":
      return descriptors(index.files.get(request.value));
    case "fileContainingSymbol":
      return descriptors(index.symbols.get(request.value));
    case "fileContainingExtension":
      return descriptors(index.extensions.get(request.value.containingType)?.get(request.value.extensionNumber));
    case "allExtensionNumbersOfType": {
      if (!index.symbols.has(request.value)) return undefined;
      const extensionNumber = [...(index.extensions.get(request.value)?.keys() ?? [])];
      return {
        case: "allExtensionNumbersResponse" as const,
        value: { baseTypeName: request.value, extensionNumber },
      };
    }
    case "listServices":
      return { case: "listServicesResponse" as const, value: { service: index.services.map((name) => ({ name })) } };
    default:
      return undefined;
  }
};

const notFound = {
  case: "errorResponse" as const,
  value: { errorCode: grpcStatus.NOT_FOUND, errorMessage: "not found" },
};

/**
 * Server reflection v1 and v1alpha (the same messages under two names) for these services and itself. Descriptors are those the
 * code was generated from, with all they import; older clients ask for v1alpha first.
 */
export const createReflection = (services: readonly DescService[]): readonly BoundService[] => {
  const index = buildIndex([...services, ServerReflection, ServerReflectionAlpha]);
  return [
    bindService(ServerReflection, {
      async *serverReflectionInfo(requests) {
        for await (const request of requests) {
          const messageResponse = find(request.messageRequest, index) ?? notFound;
          yield { validHost: request.host, originalRequest: request, messageResponse };
        }
      },
    }),
    bindService(ServerReflectionAlpha, {
      async *serverReflectionInfo(requests) {
        for await (const request of requests) {
          const asked = request.messageRequest as ServerReflectionRequest["messageRequest"];
          yield { validHost: request.host, originalRequest: request, messageResponse: find(asked, index) ?? notFound };
        }
      },
    }),
  ];
};
