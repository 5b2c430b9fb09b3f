import {
  ArgumentScannerError,
  buildApplication,
  buildRouteMap,
  formatMessageForArgumentScannerError,
  text_en,
} from "@stricli/core";
import { audit } from "./commands/audit.ts";
import { auditor } from "./commands/auditor.ts";
import { ack, caseRoutes } from "./commands/case.ts";
import { identity } from "./commands/identity.ts";
import { keys } from "./commands/keys.ts";
import { policy } from "./commands/policy.ts";
import { restore } from "./commands/restore.ts";
import { revoke } from "./commands/revoke.ts";
import { scan } from "./commands/scan.ts";
import { subject } from "./commands/subject.ts";
import { token } from "./commands/token.ts";
import { verify } from "./commands/verify.ts";
import { verifyToken } from "./commands/verify-token.ts";
import { witness } from "./commands/witness.ts";
import { completion } from "./completion.ts";
import { exitCodesText, failureOf } from "./exit.ts";

const routes = buildRouteMap({
  docs: {
    brief: "Curfew: short-lived API tokens, ended everywhere when they leak, with evidence",
    fullDescription: `${exitCodesText}\n\nSecrets are never printed. Data goes to standard output, words to standard error; nothing is coloured.`,
  },
  routes: {
    token,
    "verify-token": verifyToken,
    revoke,
    scan,
    identity,
    keys,
    policy,
    case: caseRoutes,
    ack,
    audit,
    subject,
    auditor,
    verify,
    restore,
    witness,
    completion,
  },
});

const describe = (error: unknown) => `curfew: ${failureOf(error).text}`;

const asTyped = (flag: string) => `--${flag.replace(/[A-Z]/g, (c) => `-${c.toLowerCase()}`)}`;

const maxMessage = 1_000;

/** The parser repeats what it was given, however long. */
const brief = (message: string) => (message.length > maxMessage ? `${message.slice(0, maxMessage)}…` : message);

/** The parser suggests flags as the code names them, and knows of no environment. */
const misunderstood = (error: unknown) =>
  error instanceof ArgumentScannerError
    ? formatMessageForArgumentScannerError(error, {
        FlagNotFoundError: ({ input, corrections }) => {
          const meant = corrections.length > 0 ? `, did you mean ${corrections.map(asTyped).join(" or ")}?` : "";
          return `No flag registered for --${input}${meant}`;
        },
        UnsatisfiedFlagError: ({ message, externalFlagName }) =>
          externalFlagName === "as" ? `${message}: name who you are, e.g. person/sam, here or in CURFEW_AS` : message,
      })
    : describe(error);

export const app = buildApplication(routes, {
  name: "curfew",
  scanner: { caseStyle: "allow-kebab-for-camel", allowArgumentEscapeSequence: true },
  documentation: { caseStyle: "convert-camel-to-kebab" },
  determineExitCode: (error) => failureOf(error).code,
  localization: {
    text: {
      ...text_en,
      noCommandRegisteredForInput: (given) =>
        `${brief(text_en.noCommandRegisteredForInput(given))} (curfew --help lists them)`,
      exceptionWhileParsingArguments: (error) => brief(misunderstood(error)),
      // A message for people; a stack would help nobody who types a command.
      exceptionWhileRunningCommand: describe,
      exceptionWhileLoadingCommandFunction: describe,
      exceptionWhileLoadingCommandContext: describe,
    },
  },
});
