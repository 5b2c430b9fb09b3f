import fc from "fast-check";
import { expect, it } from "vitest";
import type { Job, Outcome, SqlValue } from "./sqlite-job.ts";
import { packJobs, packOutcomes, unpackJobs, unpackOutcomes } from "./sqlite-wire.ts";

const value: fc.Arbitrary<SqlValue> = fc.oneof(
  fc.constant(null),
  fc.double(),
  fc.string({ unit: "binary" }),
  fc.uint8Array({ maxLength: 3_000 }),
);
const statement = fc.tuple(fc.constantFrom("SELECT 1", "INSERT ?", "ü"), fc.array(value, { maxLength: 9 }));
const job = fc.array(
  statement.map(([sql, params]): Job[number] => [sql, ...params]),
  { maxLength: 9 },
);
const result = fc.record({ changes: fc.nat(), rows: fc.array(fc.array(value, { maxLength: 4 }), { maxLength: 4 }) });
const outcome: fc.Arbitrary<Outcome> = fc.oneof(
  fc.array(result, { maxLength: 4 }),
  fc.record({ code: fc.nat(), message: fc.string({ unit: "binary" }) }),
);

it("jobs and outcomes arrive as they were sent", () => {
  fc.assert(fc.property(fc.array(job), (jobs) => void expect(unpackJobs(packJobs(jobs))).toEqual(jobs)));
  fc.assert(fc.property(fc.array(outcome), (all) => void expect(unpackOutcomes(packOutcomes(all))).toEqual(all)));
});

it("a message larger than any before arrives whole, and so does the small one after it", () => {
  const large: Job[] = [[["x", new Uint8Array(9_000_000).fill(7), "ä".repeat(100_000)]]];
  for (const jobs of [large, [[["y", 1]]] as Job[]]) expect(unpackJobs(packJobs(jobs))).toEqual(jobs);
});

it("a small value does not keep the message it came in", () => {
  const [[[, bytes]] = [[]]] = unpackJobs(packJobs([[["x", new Uint8Array(3), new Uint8Array(100_000)]]])) as [Job];
  expect((bytes as Uint8Array).buffer.byteLength).toBe(3);
});
