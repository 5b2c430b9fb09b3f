import { bearerOf, currentUse, tokenInterceptor } from "@curfew/client/interceptor.ts";
import type { LocalVerifier } from "@curfew/client/local-verifier.ts";
import type { TokenSource } from "@curfew/client/token-source.ts";
import { type Client, Server, type ServiceDefinition, type UntypedServiceImplementation } from "@grpc/grpc-js";

const encode = (value: object) => Buffer.from(JSON.stringify(value));
const decode = (bytes: Buffer) => JSON.parse(bytes.toString());
const path = "/invoices.v1.Invoices/Get";
const codecs = {
  requestSerialize: encode,
  requestDeserialize: decode,
  responseSerialize: encode,
  responseDeserialize: decode,
};
const definition: ServiceDefinition = { get: { path, requestStream: false, responseStream: false, ...codecs } };

/** The resource service: no handler runs without a good token for what its method declares. */
export const createInvoicesServer = (verifier: LocalVerifier, customers: ReadonlyMap<string, string>): Server => {
  const accessOf = (method: string) =>
    method === path
      ? {
          scope: "invoices:read",
          resource: "invoices/all",
          purpose: "billing",
          dataCategories: ["contact"],
          controller: "acme",
          maxPeople: 1,
          maxRecords: 1,
        }
      : undefined;
  const server = new Server({ interceptors: [tokenInterceptor({ verifier, accessOf })] });
  const handlers: UntypedServiceImplementation = {
    get: (call: { request: { id: string } }, answer: (error: null, response: object) => void) => {
      const customer = customers.get(call.request.id) ?? "";
      currentUse().touched({ records: 1, people: [{ identifierType: "customer-id", value: customer }] });
      answer(null, { customer });
    },
  };
  server.addService(definition, handlers);
  return server;
};

/** The workload: sends the newest secret of its token source with the call. */
export const getInvoice = (client: Client, source: TokenSource, id: string): Promise<{ customer: string }> =>
  new Promise((resolve, reject) => {
    const options = { credentials: bearerOf(source) };
    client.makeUnaryRequest(path, encode, decode, { id }, options, (error, response) =>
      error ? reject(error) : resolve(response as { customer: string }),
    );
  });
