import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import type { IdentityCreated } from "@curfew/contracts/gen/curfew/events/v1/tokens_pb.ts";
import type { Aggregates } from "@curfew/event-log/handle-command.ts";
import { parseSpiffeId } from "@curfew/rpc/identity.ts";
import type { Log } from "@curfew/runtime/log.ts";
import { type IdentityState, identityStream, type RecordIdentity } from "./domain/records.ts";

/** The notes that `curfew identity create` leaves (packages/rpc/identity-files.ts) become IdentityCreated events, each once. */

const fileForm = /^([A-Za-z0-9_-]{43})\.json$/;
const maxNoteBytes = 4_096;
const maxNotesAtOnce = 1_000;

/** The note of a certificate, or undefined for what is none; its name is the thumbprint. */
const parseNote = (text: string, thumbprint: string, trustDomain: string): RecordIdentity | undefined => {
  if (text.length > maxNoteBytes) return undefined;
  let note: unknown;
  try {
    note = JSON.parse(text);
  } catch {
    return undefined;
  }
  if (typeof note !== "object" || note === null) return undefined;
  const { spiffeId, certificateThumbprint, notAfter, createdAt } = note as Readonly<Record<string, unknown>>;
  const caller = parseSpiffeId(spiffeId, trustDomain);
  const [notAfterMs, createdAtMs] = [notAfter, createdAt].map((at) =>
    typeof at === "string" ? Date.parse(at) : Number.NaN,
  );
  if (!caller || certificateThumbprint !== thumbprint || !notAfterMs || !createdAtMs) return undefined;
  return { type: "RecordIdentity", spiffeId: caller.uri, thumbprint, notAfterMs, createdAtMs };
};

export const openIdentityImport = (parts: {
  readonly dir: string;
  readonly identities: Aggregates<IdentityState, RecordIdentity, IdentityCreated>;
  readonly trustDomain: string;
  readonly log: Log;
}) => {
  /** Files that need not be looked at again by this process. */
  const done = new Set<string>();
  return {
    /** One look at the directory. Rejects with StoreUnavailable; the next look goes on. */
    async scan(): Promise<void> {
      const names = await readdir(parts.dir).catch(() => []);
      for (const name of names.filter((n) => !done.has(n)).slice(0, maxNotesAtOnce)) {
        const [, thumbprint] = fileForm.exec(name) ?? [];
        // A half-written note has another name.
        if (thumbprint) {
          const note = parseNote(await readFile(join(parts.dir, name), "utf8"), thumbprint, parts.trustDomain);
          if (note) await parts.identities.handle(identityStream(thumbprint), note);
          else parts.log.warn({ file: name }, "not the note of an identity: left alone");
        }
        done.add(name);
      }
    },
  };
};
