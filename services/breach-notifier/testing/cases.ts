import type { Case } from "@curfew/contracts/gen/curfew/breach/v1/breach_pb.ts";
import { topicNames } from "@curfew/event-log/event-types.ts";
import { parseRpcError } from "@curfew/rpc/errors.ts";
import { eventually } from "@curfew/rpc/testing/suite.ts";
import { systemRandom, uuidV7 } from "@curfew/runtime/random.ts";
import { afterEach, expect } from "vitest";
import { type Notifier, openRig, type Rig, tokenIdOf } from "./rig.ts";

/** Notifiers and their cases; what a test has opened ends with it. */

export const closers: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).toReversed()) await close();
});
export const rigged = async (): Promise<Rig> => {
  const rig = await openRig();
  closers.push(() => rig.close());
  return rig;
};
export const opened = async <T extends { close(): Promise<unknown> }>(opening: Promise<T>): Promise<T> => {
  const each = await opening;
  closers.push(() => each.close());
  return each;
};
export const requestId = () => uuidV7(0, systemRandom);
export const reasonOf = async (call: Promise<unknown>): Promise<string> => {
  const error = await call.then(
    () => undefined,
    (e: unknown) => e,
  );
  const { status, reason } = parseRpcError(error);
  return `${status} ${reason}`;
};

export const tokenId = tokenIdOf(1);
export const caseId = `case/${tokenId}/1`;
export const hourMs = 3_600_000;

export const mailTo = (port: number, name = "mail") => ({
  targets: [{ name, channel: "smtp", host: "localhost", port, from: "curfew@acme.example", to: "oncall@acme.example" }],
  allow: [`localhost:${port}`],
});
export const caseOf = async (
  notifier: Notifier,
  id = caseId,
  check: (found: Case) => void = () => undefined,
): Promise<Case> =>
  await eventually(async () => {
    const found = (await notifier.dora.getCase({ caseId: id })).case;
    if (!found) throw new Error("no case");
    check(found);
    return found;
  });
/** Own events of a type, each once (delivery is at least once), when everything committed is on the topic. */
export const published = async (rig: Rig, type: string, atLeast: number) =>
  await eventually(async () => {
    const open = await (await rig.suite.store("breach-notifier")).collection("commits", { indexes: ["unpublished"] });
    expect(await open.find({ where: { unpublished: true }, limit: 10 })).toEqual([]);
    const events = await rig.suite.events(topicNames.breaches);
    const found = [...new Map(events.map((event) => [event.id, event])).values()].filter((e) => e.type === type);
    expect(found.length).toBeGreaterThanOrEqual(atLeast);
    return found;
  });
export const millis = (at: { seconds: bigint; nanos: number } | undefined) =>
  at ? Number(at.seconds) * 1_000 + at.nanos / 1e6 : Number.NaN;
export const milestones = (mails: readonly { headers: ReadonlyMap<string, string> }[]) =>
  mails.map((mail) => mail.headers.get("x-curfew-page")?.slice(caseId.length + 1));
