import { readFileSync } from "node:fs";
import specs from "@asyncapi/specs";
import { eventTypes, siemTopic } from "@curfew/event-log/event-types.ts";
import { topics } from "@curfew/event-log/topics.ts";
import { Ajv, type AnySchema } from "ajv";
import { expect, it } from "vitest";
import { parse } from "yaml";
import { asyncApi, documentFile } from "./asyncapi.ts";

/** The parts that are looked at here. */
interface Document {
  channels: Record<string, { address: string; messages: Record<string, unknown> }>;
  components: { messages: Record<string, { summary?: string }> };
}
const text = readFileSync(documentFile, "utf8");
const document = (): Document => parse(text);

/** It brings the schema of JSON Schema with it. */
const ajv = new Ajv({ strict: false, validateFormats: false, meta: false, validateSchema: false });
const validate = ajv.compile(specs.schemas["3.0.0"] as AnySchema);

it("docs/asyncapi.yaml is what the code says", () => {
  expect(text, "run: npm run gen").toBe(asyncApi());
});

it("it is an AsyncAPI 3.0 document, which a spoilt one is not", () => {
  validate(document());
  expect(validate.errors ?? []).toEqual([]);
  const spoilt = { ...document(), channels: { tokens: { address: 7 } } };
  expect(validate(spoilt)).toBe(false);
  expect(validate({ ...document(), surprise: true })).toBe(false);
});

it("it has every topic, with every event that stands on it, and every reference in it leads somewhere", () => {
  const { channels, components } = document();
  expect(Object.values(channels).map(({ address }) => address)).toEqual(
    expect.arrayContaining(topics.map(({ name }) => name)),
  );
  for (const { address, messages } of Object.values(channels))
    if (address !== siemTopic)
      expect(Object.keys(messages)).toEqual(eventTypes.filter((t) => t.topic === address).map((t) => t.type));
  expect(Object.keys(components.messages)).toHaveLength(eventTypes.length + 5);
  for (const { type } of eventTypes) expect(components.messages[type]?.summary, type).toMatch(/[\w)]\.$/);
  const whole: Record<string, unknown> = JSON.parse(JSON.stringify(document()));
  const targets = [...text.matchAll(/\$ref: "#\/([^"]+)"/g)].map((found) => found[1] ?? "");
  expect(targets.length).toBeGreaterThan(eventTypes.length);
  for (const target of targets)
    expect(
      target.split("/").reduce<unknown>((at, step) => (at as Record<string, unknown>)?.[step], whole),
      target,
    ).toBeDefined();
});
