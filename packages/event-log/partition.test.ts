import kafkajs from "kafkajs";
import { expect, test } from "vitest";
import { partitionFor } from "./partition.ts";

test("a key goes where kafkajs's default partitioner would put it", () => {
  const theirs = kafkajs.Partitioners.DefaultPartitioner();
  const keys = ["", "a", "ab", "abc", "abcd", "schlüssel", "鍵🔑", "\u0000", "x".repeat(1000)];
  for (let i = 0; i < 500; i += 1) keys.push(`k${i ** 3}`);
  for (const count of [1, 2, 12]) {
    const partitionMetadata = Array.from({ length: count }, (_, partitionId) => ({
      partitionId,
      partitionErrorCode: 0,
      leader: 0,
      replicas: [],
      isr: [],
    }));
    for (const key of keys)
      expect(partitionFor(key, count)).toBe(theirs({ topic: "t", partitionMetadata, message: { key, value: null } }));
  }
});

test("twelve partitions are all used", () => {
  const used = new Set(Array.from({ length: 1000 }, (_, i) => partitionFor(`key-${i}`, 12)));
  expect(used.size).toBe(12);
});
