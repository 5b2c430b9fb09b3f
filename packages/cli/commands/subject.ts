import { randomUUID } from "node:crypto";
import type { MessageInitShape } from "@bufbuild/protobuf";
import {
  type DataSubject,
  DataSubjectService,
  ErasureState,
  type SubjectSchema,
} from "@curfew/contracts/gen/curfew/auditor/v1/data_subjects_pb.ts";
import { AccessGround, HoldGround } from "@curfew/contracts/gen/curfew/events/v1/data_subjects_pb.ts";
import { buildCommand, buildRouteMap } from "@stricli/core";
import { type Connection, type ConnectionFlags, onConnection } from "../connection.ts";
import { enumName } from "../enum-name.ts";
import { CommandFailed, exitCode } from "../exit.ts";
import { connectionFlags, outputAlias, outputFlag } from "../flags.ts";
import { type Format, printOne, say } from "../output.ts";
import { readSecret } from "../read-small.ts";
import { erasureLines, holdOf } from "../subject-text.ts";
import { exportSubject } from "./subject-export.ts";

interface SubjectFlags extends ConnectionFlags {
  readonly identity?: readonly [string, string];
  readonly valueFile: string;
}
interface ReferenceFlags {
  readonly reference: string;
}
interface PrintFlags {
  readonly output: Format;
}

const parseKind = (text: string): readonly [string, string] => {
  const [, controller, type] = /^([a-z0-9][a-z0-9-]{0,62})\/([a-z0-9][a-z0-9-]{0,62})$/.exec(text) ?? [];
  if (!controller || !type)
    throw new Error("CONTROLLER/TYPE is needed, e.g. acme/email; the value is read from --value-file");
  return [controller, type];
};

const subjectFlags = {
  ...connectionFlags,
  identity: {
    kind: "parsed",
    parse: parseKind,
    brief: "who, by controller and kind of identifier; the identifier itself is read from --value-file",
    optional: true,
    placeholder: "CONTROLLER/TYPE",
  },
  valueFile: {
    kind: "parsed",
    parse: String,
    brief: "file with the identifier (- for standard input): a command line can be read by everybody on the machine",
    default: "-",
    placeholder: "FILE",
  },
} as const;
const reference = {
  kind: "parsed",
  parse: String,
  brief: "file or case it belongs to: an opaque id, recorded; no personal data",
  placeholder: "ID",
} as const;
const referenceFlag = { reference: { ...reference, default: "" } } as const;
const pseudonymArgument = {
  kind: "tuple",
  parameters: [{ parse: String, brief: "pseudonym, as in events", placeholder: "PSEUDONYM", optional: true }],
} as const;
const pseudonymForm = /^psn_[0-9a-f]{32}$/;

const accessGrounds = {
  incident: AccessGround.INCIDENT,
  "data-subject-request": AccessGround.DATA_SUBJECT_REQUEST,
  "legal-claims": AccessGround.LEGAL_CLAIMS,
  authority: AccessGround.AUTHORITY,
} as const;
const holdGrounds = {
  "legal-obligation": HoldGround.LEGAL_OBLIGATION,
  "legal-claims": HoldGround.LEGAL_CLAIMS,
} as const;
type GroundName = keyof typeof accessGrounds;
const accessGroundFlag = (fallback?: GroundName) =>
  ({
    ground: {
      kind: "enum",
      values: Object.keys(accessGrounds) as GroundName[],
      brief: "why",
      ...(fallback && { default: fallback }),
    },
  }) as const;

/** Whom the command is about: exactly one way to say it. */
const subjectOf = async (
  { identity, valueFile }: SubjectFlags,
  pseudonym: string | undefined,
): Promise<MessageInitShape<typeof SubjectSchema>> => {
  if ((pseudonym === undefined) === (identity === undefined))
    throw new CommandFailed(exitCode.usage, "say who: either PSEUDONYM or --identity CONTROLLER/TYPE");
  // What was given is not repeated: it may be the identifier itself.
  if (pseudonym !== undefined && !pseudonymForm.test(pseudonym))
    throw new CommandFailed(
      exitCode.usage,
      "PSEUDONYM is psn_ and 32 hexadecimal digits (0-9, a-f), as events have it; for an identifier: --identity CONTROLLER/TYPE",
    );
  if (pseudonym !== undefined) return { who: { case: "pseudonym", value: pseudonym } };
  const [controller = "", identifierType = ""] = identity ?? [];
  if (valueFile === "-" && process.stdin.isTTY) say("The identifier, then Ctrl-D:");
  return { who: { case: "identity", value: { controller, identifierType, value: await readSecret(valueFile) } } };
};

const print = (format: Format, subject: DataSubject | undefined): void => {
  if (!subject) throw new Error("the auditor answered without the person");
  const { pseudonym, holds, erasure } = subject;
  const state = erasure ? enumName(ErasureState, erasure.state) : "none";
  const told = holds.map(holdOf);
  const shown = told.map(({ hold, ground, reference, since }) => `${hold}: ${ground}, ${reference}, since ${since}`);
  if (format === "json") printOne("json", { pseudonym, holds: told, erasure: state, facts: erasureLines(erasure) });
  else {
    printOne("table", { pseudonym, erasure: state, holds: shown.length > 0 ? shown : "none" });
    for (const line of erasureLines(erasure)) printOne("table", { "": line });
  }
};

type Call = (
  connection: Connection,
  subject: MessageInitShape<typeof SubjectSchema>,
) => Promise<DataSubject | undefined>;

const run = (flags: SubjectFlags & PrintFlags, pseudonym: string | undefined, call: Call): Promise<void> =>
  onConnection(flags, async (connection) =>
    print(flags.output, await call(connection, await subjectOf(flags, pseudonym))),
  );

const subjects = (connection: Connection) => connection.service(DataSubjectService, "auditor");

const erase = buildCommand({
  docs: {
    brief: "Erase a person (Art. 17): destroys their key and mapping; says until when what can be read (role dpo)",
    fullDescription:
      "Goes on by itself: instances acknowledge, the epoch's key is destroyed, the last backup runs out; status says how far it is. Refused while a legal hold is in force. Cannot be taken back.",
  },
  parameters: {
    flags: { ...subjectFlags, ...referenceFlag, ...outputFlag },
    aliases: outputAlias,
    positional: pseudonymArgument,
  },
  func: (flags: SubjectFlags & ReferenceFlags & PrintFlags, pseudonym?: string) =>
    run(flags, pseudonym, async (connection, subject) => {
      const { reference } = flags;
      return (await subjects(connection).eraseDataSubject({ requestId: randomUUID(), subject, reference })).subject;
    }),
});

const status = buildCommand({
  docs: { brief: "Show holds on a person's data, and how their erasure stands (role dpo)" },
  parameters: { flags: { ...subjectFlags, ...outputFlag }, aliases: outputAlias, positional: pseudonymArgument },
  func: (flags: SubjectFlags & PrintFlags, pseudonym?: string) =>
    run(
      flags,
      pseudonym,
      async (connection, subject) => (await subjects(connection).getDataSubject({ subject })).subject,
    ),
});

const hold = buildCommand({
  docs: { brief: "Place a legal hold: the person's data must be kept, Art. 17(3) (role dpo)" },
  parameters: {
    flags: {
      ...subjectFlags,
      reference,
      ground: { kind: "enum", values: Object.keys(holdGrounds) as (keyof typeof holdGrounds)[], brief: "why" },
      ...outputFlag,
    },
    aliases: outputAlias,
    positional: pseudonymArgument,
  },
  func: (
    flags: SubjectFlags & ReferenceFlags & PrintFlags & { ground: keyof typeof holdGrounds },
    pseudonym?: string,
  ) =>
    run(flags, pseudonym, async (connection, subject) => {
      const request = {
        requestId: randomUUID(),
        subject,
        ground: holdGrounds[flags.ground],
        reference: flags.reference,
      };
      return (await subjects(connection).placeLegalHold(request)).subject;
    }),
});

const release = buildCommand({
  docs: { brief: "Release a legal hold (role dpo)" },
  parameters: {
    flags: {
      ...subjectFlags,
      hold: { kind: "parsed", parse: String, brief: "id of the hold, as in status", placeholder: "HOLD" },
      ...outputFlag,
    },
    aliases: outputAlias,
    positional: pseudonymArgument,
  },
  func: (flags: SubjectFlags & PrintFlags & { hold: string }, pseudonym?: string) =>
    run(flags, pseudonym, async (connection, subject) => {
      const request = { requestId: randomUUID(), subject, holdId: flags.hold };
      return (await subjects(connection).releaseLegalHold(request)).subject;
    }),
});

const export_ = buildCommand({
  docs: {
    brief: "Write what is held about a person (Art. 15) as export.json and export.html into a folder (role dpo)",
    fullDescription:
      "Their sealed addresses are opened in it; other people are left out. That it was made is recorded.",
  },
  parameters: {
    flags: {
      ...subjectFlags,
      ...referenceFlag,
      ...accessGroundFlag("data-subject-request"),
      out: { kind: "parsed", parse: String, brief: "the folder; nothing in it is overwritten", placeholder: "DIR" },
    },
    aliases: { o: "out" },
    positional: pseudonymArgument,
  },
  func: (flags: SubjectFlags & ReferenceFlags & { ground: GroundName; out: string }, pseudonym?: string) =>
    onConnection(flags, async (connection) => {
      const why = { ground: accessGrounds[flags.ground], reference: flags.reference, directory: flags.out };
      const events = await exportSubject(connection, await subjectOf(flags, pseudonym), why);
      printOne("table", { events: String(events), written: `${flags.out}/export.json, ${flags.out}/export.html` });
    }),
});

const open = buildCommand({
  docs: { brief: "Show the address that a use came from; that you looked, and why, is recorded (roles dpo, auditor)" },
  parameters: {
    flags: {
      ...connectionFlags,
      reference,
      ...accessGroundFlag(),
      ...outputFlag,
    },
    aliases: outputAlias,
    positional: { kind: "tuple", parameters: [{ parse: String, brief: "id of the use", placeholder: "USE" }] },
  },
  func: (flags: ConnectionFlags & ReferenceFlags & PrintFlags & { ground: GroundName }, useId: string) =>
    onConnection(flags, async (connection) => {
      const { reference, ground } = flags;
      const request = { requestId: randomUUID(), useId, ground: accessGrounds[ground], reference };
      const { pseudonym, address, country } = await subjects(connection).openSealedField(request);
      printOne(flags.output, { pseudonym, address, country });
    }),
});

export const subject = buildRouteMap({
  docs: { brief: "People whose data is held: erasure, holds, access" },
  routes: { erase, status, hold, release, export: export_, open },
});
