import type { MessageInitShape } from "@bufbuild/protobuf";
import {
  VerifierService,
  type VerifyTokenRequestSchema,
  type VerifyTokenResponse,
} from "@curfew/contracts/gen/curfew/verifier/v1/verifier_pb.ts";
import type { RpcChannel } from "@curfew/rpc/channel.ts";
import { createClient } from "@curfew/rpc/client.ts";
import { parseRpcError } from "@curfew/rpc/errors.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import { unwatchedAnswerMs } from "@curfew/token-format/answer-life.ts";
import { Denied } from "./denied.ts";
import type { Instant } from "./freshness.ts";

/**
 * Questions to the verifier: those of one turn of the event loop travel together. An answer is handed over in the same turn as it
 * arrives, with nothing in between, so that whoever asked can look at what was pushed meanwhile and act on it at once.
 */

export interface Question {
  readonly request: MessageInitShape<typeof VerifyTokenRequestSchema>;
  /** `sentAt`: before it was sent. */
  readonly answered: (response: VerifyTokenResponse, sentAt: Instant) => void;
  readonly failed: (denied: Denied) => void;
}

/** An answer older than this is not used, though the asker's own watch vouches that nothing was revoked since. */
export const answerGoodForMs = 2_000;
const maxBatch = 256;
const maxOpen = 10_000;

export const openQuestions = (options: { readonly channels: readonly RpcChannel[]; readonly clock: Clock }) => {
  const { channels, clock } = options;
  const clients = channels.map((channel) => createClient(VerifierService, channel));
  if (clients.length === 0) throw new RangeError("openQuestions: at least one channel to a verifier");
  let waiting: Question[] = [];
  let open = 0;
  /** The one that answered last is asked first. */
  let preferred = 0;
  const now = (): Instant => ({ monotonicMs: clock.monotonicMs(), wallMs: clock.now() });

  /** Every verifier once, within the time that an answer is good for. */
  const ask = async (questions: readonly Question[], sentAt: Instant): Promise<VerifyTokenResponse[]> => {
    const requests = questions.map(({ request }) => request);
    for (let tries = 0; ; tries += 1) {
      const leftMs = answerGoodForMs - (clock.monotonicMs() - sentAt.monotonicMs);
      try {
        const client = clients[preferred % clients.length];
        if (!client) throw new RangeError("no verifier");
        return (await client.batchVerifyTokens({ requests }, { deadlineMs: leftMs })).responses;
      } catch (error) {
        if (parseRpcError(error).status !== "UNAVAILABLE" || tries + 1 >= clients.length || leftMs <= 0) throw error;
        preferred += 1;
      }
    }
  };

  const fail = async (questions: readonly Question[], error: unknown): Promise<void> => {
    const { status, reason, message } = parseRpcError(error);
    const isRefusal = status === "INVALID_ARGUMENT" || status === "PERMISSION_DENIED";
    // One that the verifier refuses must not take the others with it.
    if (isRefusal && questions.length > 1) for (const question of questions) await send([question]);
    else {
      const why = isRefusal ? `${reason}: ${message}` : status;
      for (const { failed } of questions)
        failed(new Denied(isRefusal ? "QUESTION_REFUSED" : "VERIFIER_UNREACHABLE", "", why, { cause: error }));
    }
  };

  const send = async (questions: readonly Question[]): Promise<void> => {
    const sentAt = now();
    let responses: VerifyTokenResponse[];
    try {
      responses = await ask(questions, sentAt);
    } catch (error) {
      return fail(questions, error);
    }
    for (const [i, question] of questions.entries()) {
      const response = responses[i];
      if (response) question.answered(response, sentAt);
      else question.failed(new Denied("VERIFIER_UNREACHABLE", "", "no answer to this question"));
    }
  };

  const sendAll = () => {
    const all = waiting;
    waiting = [];
    for (let i = 0; i < all.length; i += maxBatch) {
      const batch = all.slice(i, i + maxBatch);
      void send(batch).finally(() => {
        open -= batch.length;
      });
    }
  };

  return {
    /** Exactly one of the question's functions is called, never in this turn. */
    ask(question: Question): void {
      if (open >= maxOpen) {
        setImmediate(() => question.failed(new Denied("OVERLOADED", "", `more than ${maxOpen} open questions`)));
        return;
      }
      open += 1;
      if (waiting.length === 0) setImmediate(sendAll);
      waiting.push(question);
    },
    /**
     * An answer to a question sent at `sentAt` is too old now, by the larger of both clocks. Without a live watch of our own
     * `revocation` does not wait for us, only as long as the verifier's answers count.
     */
    isTooOld(sentAt: Instant, at: Instant, isLive: boolean): boolean {
      const goodForMs = isLive ? answerGoodForMs : unwatchedAnswerMs;
      return at.monotonicMs - sentAt.monotonicMs >= goodForMs || at.wallMs - sentAt.wallMs >= goodForMs;
    },
  };
};
export type Questions = ReturnType<typeof openQuestions>;
