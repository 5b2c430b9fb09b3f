import { trace } from "@opentelemetry/api";
import { type DestinationStream, destination, pino, stdTimeFunctions } from "pino";

export type LogLevel = "debug" | "info" | "warn" | "error";
type Write = (fields: Readonly<Record<string, unknown>> | string, message?: string) => void;

/** Fields first, then a fixed message: `log.warn({ tokenId }, "not collected")`. An Error goes under `err`. */
export interface Log {
  readonly debug: Write;
  readonly info: Write;
  readonly warn: Write;
  readonly error: Write;
  child(fields: Readonly<Record<string, unknown>>): Log;
}

/** Every Curfew secret has this form (design "Secret format"); ids do not. */
const secretFormat = /(cfw[sxc])_[0-9A-Za-z]{36}/g;
const secretKeys = ["secret", "token", "password", "authorization", "private_key", "privateKey"];
const depths = ["", "*.", "*.*.", "*.*.*."];

/** Masks every Curfew secret in a text. */
export const maskSecrets = (text: string): string => text.replace(secretFormat, "$1_[masked]");

/**
 * JSON lines, by default to standard error, written before the call returns so that a crash loses none. Secrets must not come
 * here at all; should one, two nets remain: fields with a telling name are redacted, and the finished line is searched.
 */
export const openLog = (options: {
  readonly service: string;
  readonly level: LogLevel;
  readonly write?: (line: string) => void;
}): Log => {
  const stderr = options.write ? undefined : destination({ fd: 2, sync: true });
  const write = options.write ?? ((line: string) => stderr?.write(line));
  const masked: DestinationStream = { write: (line) => void write(maskSecrets(line)) };
  const logger = pino(
    {
      level: options.level,
      base: { service: options.service },
      timestamp: stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
      redact: { paths: depths.flatMap((d) => secretKeys.map((k) => d + k)), censor: "[redacted]" },
      mixin: () => {
        const span = trace.getActiveSpan()?.spanContext();
        return span ? { trace_id: span.traceId, span_id: span.spanId } : {};
      },
    },
    masked,
  );
  return logger as Log;
};
