import type { Clock } from "@curfew/runtime/clock.ts";
import { type Random, systemRandom } from "@curfew/runtime/random.ts";
import { Client } from "@grpc/grpc-js";
import { type IdentitySource, MutualTlsChannelCredentials } from "./credentials.ts";

export interface ChannelOptions {
  /** `host:port` or `unix:path`; the host only says where to connect, never who is expected there. */
  readonly address: string;
  readonly identity: IdentitySource;
  readonly caPem: string;
  readonly trustDomain: string;
  /** The service whose SPIFFE URI the server must present: `issuer`. */
  readonly expectService: string;
  readonly clock: Clock;
  readonly random?: Random;
  /** Deadline of a call that answers once and names none. Default 10 s. */
  readonly defaultDeadlineMs?: number;
  readonly maxResponseBytes?: number;
  readonly maxRequestBytes?: number;
}

/** One connection, reconnecting by itself; shared by any number of clients. */
export interface RpcChannel {
  readonly client: Client;
  readonly clock: Clock;
  readonly random: Random;
  readonly defaultDeadlineMs: number;
  /** Aborts when the channel is closed. */
  readonly closed: AbortSignal;
  /** Cancels what is under way. */
  close(): void;
}

const defaultDeadlineMs = 10_000;
const megabyte = 1024 * 1024;

/** Opens nothing yet: the first call connects. An unreachable, foreign or untrusted server is UNAVAILABLE at each call. */
export const openChannel = (options: ChannelOptions): RpcChannel => {
  const { address, identity, caPem, trustDomain, expectService, clock } = options;
  const expectUri = `spiffe://${trustDomain}/service/${expectService}`;
  const credentials = new MutualTlsChannelCredentials(identity, caPem, trustDomain, expectUri);
  const client = new Client(address, credentials, {
    // The name asked for in TLS: an IP address is not allowed there (DEP0123), and identity does not depend on it.
    "grpc.ssl_target_name_override": expectService,
    "grpc.default_authority": expectService,
    "grpc.enable_http_proxy": 0,
    "grpc.enable_channelz": 0,
    "grpc.service_config_disable_resolution": 1,
    "grpc.use_local_subchannel_pool": 1,
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 5000,
    "grpc.keepalive_time_ms": 30_000,
    "grpc.keepalive_timeout_ms": 10_000,
    "grpc.max_receive_message_length": options.maxResponseBytes ?? 4 * megabyte,
    "grpc.max_send_message_length": options.maxRequestBytes ?? megabyte,
  });
  const closed = new AbortController();
  return {
    client,
    clock,
    random: options.random ?? systemRandom,
    defaultDeadlineMs: options.defaultDeadlineMs ?? defaultDeadlineMs,
    closed: closed.signal,
    close() {
      closed.abort();
      credentials.unsubscribe();
      client.close();
    },
  };
};
