/** The name of an enum value in generated code (erasable enums have no reverse mapping). */
export const enumName = (values: Readonly<Record<string, number>>, value: number): string =>
  Object.keys(values).find((name) => values[name] === value) ?? String(value);
