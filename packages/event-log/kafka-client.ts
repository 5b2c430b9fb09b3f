/**
 * kafkajs clients whose patience can be withdrawn. kafkajs goes on with a send after `disconnect` (it connects again and retries), so
 * a producer that was given up could write later; ended here, it has no sockets, gets no new ones and retries nothing.
 */
import { connect, isIP, type Socket } from "node:net";
import { connect as connectTls } from "node:tls";
import type { Clock } from "@curfew/runtime/clock.ts";
import type { Log } from "@curfew/runtime/log.ts";
import kafkajs, { type Kafka, type LogEntry } from "kafkajs";
import { BusUnavailable } from "./bus.ts";

/** PEM: the authority of the brokers' certificates, our certificate chain and its key. */
export interface KafkaTls {
  readonly ca: string;
  readonly cert: string;
  readonly key: string;
}

export interface KafkaClientSettings {
  /** `host:port` of some of the cluster's brokers. */
  readonly brokers: readonly string[];
  readonly clientId: string;
  /** Mutual TLS 1.3; a function is asked at every connection, so that a renewed certificate is used. Default: plain text. */
  readonly ssl?: KafkaTls | (() => KafkaTls);
  readonly clock: Clock;
  readonly log?: Log;
}

export interface KafkaClientLimits {
  /** Of one request; kafkajs allows a JoinGroup more. */
  readonly requestTimeoutMs: number;
  /** Infinity: for ever, until `end`. */
  readonly retries: number;
  /** Sees every line at level error. */
  readonly onError?: (entry: LogEntry["log"]) => void;
}

export interface KafkaClient {
  readonly kafka: Kafka;
  readonly retry: { readonly retries: number; readonly initialRetryTime: number; readonly maxRetryTime: number };
  /** Closes every connection at once; what waits fails within about a second. */
  end(): void;
}

const connectMs = 3000;
const keepAliveMs = 10_000;

export const openKafkaClient = (settings: KafkaClientSettings, limits: KafkaClientLimits): KafkaClient => {
  let ended = false;
  const sockets = new Set<Socket>();
  // kafkajs compares at every retry; so an object makes a number that changes while it waits.
  const retries = { valueOf: () => (ended ? 0 : Math.min(limits.retries, Number.MAX_SAFE_INTEGER)) };
  const retry = { retries: retries as unknown as number, initialRetryTime: 100, maxRetryTime: 1000 };
  const open = (host: string, port: number, onConnect: () => void): Socket => {
    if (ended) throw new BusUnavailable("this Kafka client was ended");
    const tls = typeof settings.ssl === "function" ? settings.ssl() : settings.ssl;
    const name = isIP(host) ? {} : { servername: host };
    const socket = tls
      ? connectTls({ host, port, minVersion: "TLSv1.3", ...name, ...tls }, onConnect)
      : connect({ host, port }, onConnect);
    socket.setKeepAlive(true, keepAliveMs);
    socket.setNoDelay(true);
    sockets.add(socket);
    socket.once("close", () => sockets.delete(socket));
    return socket;
  };
  const kafka = new kafkajs.Kafka({
    brokers: [...settings.brokers],
    clientId: settings.clientId,
    connectionTimeout: connectMs,
    requestTimeout: limits.requestTimeoutMs,
    retry,
    socketFactory: ({ host, port, onConnect }) => open(host, port, onConnect),
    logLevel: kafkajs.logLevel.ERROR,
    logCreator: () => (entry) => {
      if (ended) return;
      limits.onError?.(entry.log);
      settings.log?.debug({ kafkajs: entry.log.message, part: entry.namespace }, "kafkajs");
    },
  });
  return {
    kafka,
    retry,
    end() {
      ended = true;
      // With an error: kafkajs does not listen to "close", and its requests would wait for their timeouts.
      for (const socket of sockets) socket.destroy(new BusUnavailable("this Kafka client was ended"));
    },
  };
};

/** Every reason in a kafkajs error: it wraps what the broker said once per layer that retried. */
export function* reasonsOf(error: unknown): Generator<Error & { type?: string }> {
  for (let e = error; e instanceof Error; e = e.cause) yield e;
}

/** The broker's own name of its error, such as `TOPIC_AUTHORIZATION_FAILED`; undefined when it is no broker's. */
export const brokerErrorOf = (error: unknown): string | undefined =>
  [...reasonsOf(error)].find((e) => typeof e.type === "string")?.type;

/** `promise`, or BusUnavailable after `ms`. What comes later is ignored. */
export const within = async <T>(clock: Clock, ms: number, promise: Promise<T>): Promise<T> => {
  const settled = new AbortController();
  const late = clock.sleep(ms, settled.signal).then(() => {
    if (!settled.signal.aborted) throw new BusUnavailable(`Kafka: no answer in ${ms} ms`);
    return promise;
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    settled.abort();
    late.catch(() => {});
  }
};
