/** A use that the tokens of these benchmarks allow: `UseRequest`. */
export const use = {
  scope: "invoices:read",
  resource: "invoices/7",
  purpose: "billing",
  dataCategories: ["contact"],
  controller: "acme",
  maxPeople: 1n,
  maxRecords: 1n,
};

/** The same as an SDK's `AccessRequest`. */
export const access = { ...use, maxPeople: 1, maxRecords: 1 };
