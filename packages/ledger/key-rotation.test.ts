import { generateKeyPairSync } from "node:crypto";
import { expect, test } from "vitest";
import { checkKeyRotation, signKeyRotation } from "./key-rotation.ts";
import { signNote } from "./note.ts";
import { noteSigner, verifierKeyText } from "./note-key.ts";

const origin = "ledger.example/log";
const keyOf = (name = origin) => {
  const { privateKey } = generateKeyPairSync("ed25519");
  return { text: verifierKeyText(name, privateKey), signer: noteSigner(name, privateKey) };
};
const [old, next, stranger] = [keyOf(), keyOf(), keyOf()];
const rotation = { origin, oldKey: old.text, newKey: next.text, size: 7 };
const statement = signKeyRotation(rotation, [old.signer, next.signer]);
const text = statement.slice(0, statement.indexOf("\n\n") + 1);

test("a rotation that both keys have stated is one, with lines of others beside theirs", () => {
  checkKeyRotation(rotation, statement);
  checkKeyRotation(rotation, signNote(text, [stranger.signer, next.signer, old.signer]));
});

test.each([
  ["the old key alone", [old.signer]],
  ["the new key alone: whoever writes to the log has one", [next.signer]],
  ["the old key and another than the new one", [old.signer, stranger.signer]],
  ["the new key and another than the old one", [stranger.signer, next.signer]],
])("%s rotates nothing", (_, signers) => {
  expect(() => checkKeyRotation(rotation, signNote(text, signers))).toThrow("a rotation is signed by both keys");
});

test("it is of these keys, this log and this size", () => {
  for (const other of [{ size: 8 }, { oldKey: next.text, newKey: old.text }])
    expect(() => checkKeyRotation({ ...rotation, ...other }, statement)).toThrow(
      "the statement is of another rotation",
    );
  expect(() => checkKeyRotation({ ...rotation, newKey: stranger.text }, statement)).toThrow("another rotation");
  const elsewhere = keyOf("other.example/log");
  const foreign = { ...rotation, newKey: elsewhere.text };
  expect(() => signKeyRotation(foreign, [old.signer, elsewhere.signer])).toThrow("a key that rotates is the log's");
});

test("a key does not follow itself", () => {
  const same = { ...rotation, newKey: old.text };
  expect(() => checkKeyRotation(same, signNote(text.replace(next.text, old.text), [old.signer]))).toThrow(
    "two verifiers have the same name",
  );
});
