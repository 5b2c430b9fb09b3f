import { create } from "@bufbuild/protobuf";
import {
  DataSubjectErasedSchema,
  EpochKeyDestroyedSchema,
  type ErasureAcknowledged,
} from "@curfew/contracts/gen/curfew/events/v1/data_subjects_pb.ts";
import type { UseDecided, UseSource } from "@curfew/contracts/gen/curfew/events/v1/uses_pb.ts";
import { personKeyIn } from "@curfew/personal-data/person-keys.ts";
import { rotatedMark } from "@curfew/personal-data/personal-store.ts";
import { openField } from "@curfew/personal-data/sealed-field.ts";
import { afterEach, beforeEach, expect, it, vi } from "vitest";
import { issued } from "./testing/histories.ts";
import { openVerifierSuite, useOf, type VerifierSuite } from "./testing/suite.ts";

const bound = { timeout: 15_000, interval: 10 };
const hourMs = 3_600_000;
const sourceAddress = "203.0.113.77";
let suite: VerifierSuite;
let secret = "";
beforeEach(async () => {
  suite = await openVerifierSuite();
  const minted = suite.mint();
  secret = minted.secret;
  const times = { notBeforeMs: Date.now() - hourMs, expiresAtMs: Date.now() + hourMs, digest: minted.digest };
  await suite.publish(issued("a", times));
});
afterEach(() => suite.close());

const ready = async () => {
  const service = await suite.start();
  await service.ready;
  return service;
};
const factsOf = <M>(name: string) =>
  suite.facts().flatMap(({ message }) => (message.$typeName.endsWith(name) ? [message as M] : []));
/** A use from there, as it stands on the log. */
const useFrom = async (port: number, address = sourceAddress) => {
  const client = await suite.client(port);
  const { useId } = await client.verifyToken({
    credential: { case: "secret", value: secret },
    use: useOf({ sourceAddress: address, sourceCountry: "DE" }),
  });
  const find = () => factsOf<UseDecided>("UseDecided").find((use) => use.useId === useId);
  await vi.waitFor(() => expect(find()).toBeDefined(), bound);
  return find() as UseDecided;
};
const open = async ({ useId, source }: UseDecided) => {
  const sealed = source?.address;
  const row = sealed && (await suite.personal.persons.get(sealed.pseudonym));
  const key = row && personKeyIn(suite.personal.epochs, row);
  const place = { eventType: "curfew.use.decided.v1", field: "source.address", id: useId };
  return sealed && key ? openField(key, sealed, place) : undefined;
};
/** As the auditor does it. */
const destroy = async (pseudonym: string) => {
  const { persons, identities } = suite.personal;
  await persons.set(pseudonym, { erased: true });
  await persons.unset(pseudonym, "w1");
  for (const { _id } of await identities.find({ limit: 100 })) await identities.delete(_id);
  await persons.set(pseudonym, { destroyed: true });
};
const erasedEvent = (pseudonym: string, consumers: string[] = []) =>
  create(DataSubjectErasedSchema, { pseudonym, consumers, epoch: 1 });

it("a use has its source's address sealed and the country in clear; the person's key opens it, for this use alone", async () => {
  const { port } = await ready();
  const [use, next] = [await useFrom(port), await useFrom(port)];
  expect(use.source).toMatchObject({ country: "DE", addressPseudonym: use.source?.address?.pseudonym } as UseSource);
  expect(next.source?.addressPseudonym).toBe(use.source?.addressPseudonym);
  expect(await open(use)).toBe(sourceAddress);
  expect(next.source?.address?.ciphertext).not.toEqual(use.source?.address?.ciphertext);
  await expect(open({ ...next, source: use.source } as UseDecided)).rejects.toThrow("committed");
  const longer = await useFrom(port, "2001:db8:1:2:3:4:5:6");
  expect(longer.source?.address?.ciphertext).toHaveLength(use.source?.address?.ciphertext.length ?? 0);
  expect(suite.traces().some((bytes) => bytes.includes(sourceAddress))).toBe(false);
});

it("on an erasure a replica forgets, acknowledges once, and whoever comes from there next is somebody new", async () => {
  const { port } = await ready();
  const before = await useFrom(port);
  const pseudonym = before.source?.addressPseudonym ?? "";
  const [holder] = await suite.personal.holders.find({ limit: 10 });
  await destroy(pseudonym);
  await suite.publish(erasedEvent(pseudonym, [holder?._id ?? "", "verifier-9"]));
  const acknowledged = () => factsOf<ErasureAcknowledged>("ErasureAcknowledged");
  await vi.waitFor(() => expect(acknowledged()).toHaveLength(1), bound);
  expect(acknowledged()[0]).toMatchObject({ pseudonym, consumer: "verifier-1" });
  const after = await useFrom(port);
  expect(after.source?.addressPseudonym).not.toBe(pseudonym);
  expect([await open(before), await open(after)]).toEqual([undefined, sourceAddress]);
  expect(acknowledged()).toHaveLength(1);
});

it("a store that lacks an erasure of the log serves nobody until it is done", async () => {
  const first = await ready();
  const { source } = await useFrom(first.port);
  await first.close();
  await suite.publish(erasedEvent(source?.addressPseudonym ?? ""));
  const service = await suite.start();
  await vi.waitFor(() => expect(suite.logged.join("\n")).toContain("holds somebody who was erased"), bound);
  const client = await suite.client(service.port);
  await expect(client.verifyToken({ credential: { case: "secret", value: secret }, use: useOf() })).rejects.toThrow(
    "has not read the log yet",
  );
  expect(await suite.serving(service.port)).toBe(false);
  await destroy(source?.addressPseudonym ?? "");
  await service.ready;
  expect((await useFrom(service.port)).source?.addressPseudonym).not.toBe(source?.addressPseudonym);
});

it("nor does one of an epoch whose key is destroyed, until it is wrapped anew", async () => {
  await suite.publish(create(EpochKeyDestroyedSchema, { epoch: 1, successor: 2 }));
  const service = await suite.start();
  await vi.waitFor(() => expect(suite.logged.join("\n")).toContain("epoch whose key was destroyed"), bound);
  expect(await suite.serving(service.port)).toBe(false);
  await suite.personal.marks.insert({ _id: rotatedMark(1) });
  await service.ready;
});

it("an instance has its row from before it serves until it ends; what a killed one left is removed by the next", async () => {
  await suite.personal.holders.insert({ _id: "verifier-killed", seenMs: 0 });
  const service = await ready();
  expect((await suite.personal.holders.find({ limit: 10 })).map(({ _id }) => _id)).toEqual(["verifier-1"]);
  await service.close();
  expect(await suite.personal.holders.find({ limit: 10 })).toEqual([]);
});
