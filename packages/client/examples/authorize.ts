import type { LocalVerifier } from "@curfew/client/local-verifier.ts";

export interface Invoice {
  readonly id: string;
  readonly customer: string;
}

/** invoices lets a bearer read one, and says whose data was read. Rejects with Denied, and then has read nothing. */
export const readInvoice = (
  verifier: LocalVerifier,
  bearer: { readonly secret: string; readonly certificateThumbprint: string },
  load: (id: string) => Promise<Invoice>,
  id: string,
): Promise<Invoice> =>
  verifier.authorize(
    bearer.secret,
    {
      scope: "invoices:read",
      resource: `invoices/${id}`,
      purpose: "billing",
      dataCategories: ["contact"],
      controller: "acme",
      maxPeople: 1,
      maxRecords: 1,
      presenterThumbprint: bearer.certificateThumbprint,
    },
    async (use) => {
      const invoice = await load(id);
      use.touched({ records: 1, people: [{ identifierType: "customer-id", value: invoice.customer }] });
      return invoice;
    },
  );
