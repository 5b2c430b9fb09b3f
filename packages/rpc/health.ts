import { Health, HealthCheckResponse_ServingStatus as Status } from "@curfew/contracts/gen/grpc/health/v1/health_pb.ts";
import { RpcError } from "./errors.ts";
import { type BoundService, bindService, type CallContext } from "./service-definition.ts";

export interface HealthState {
  readonly service: BoundService;
  /** Sets one service's status, `""` for the whole server. Watchers are told; names not served are refused (throws). */
  set(service: string, status: "SERVING" | "NOT_SERVING"): void;
  /** Sets the server and every service at once, as before stopping. */
  setAll(status: "SERVING" | "NOT_SERVING"): void;
}

/**
 * grpc.health.v1 for these services (full names) and `""`. All begin NOT_SERVING: a service says itself when it is ready. A
 * watcher that reads slowly gets the newest status, not each one between.
 */
export const createHealth = (services: readonly string[]): HealthState => {
  const statuses = new Map<string, Status>(["", ...services].map((name) => [name, Status.NOT_SERVING]));
  const watchers = new Set<() => void>();
  const tell = () => {
    for (const wake of watchers) wake();
  };

  async function* watch(name: string, ctx: CallContext) {
    let changed = Promise.withResolvers<void>();
    const wake = () => changed.resolve();
    watchers.add(wake);
    ctx.signal.addEventListener("abort", wake);
    try {
      let last: Status | undefined;
      while (!ctx.signal.aborted) {
        const status = statuses.get(name) ?? Status.SERVICE_UNKNOWN;
        if (status !== last) yield { status };
        last = status;
        await changed.promise;
        changed = Promise.withResolvers();
      }
    } finally {
      watchers.delete(wake);
    }
  }

  const service = bindService(Health, {
    check: ({ service: name }) => {
      const status = statuses.get(name);
      if (status !== undefined) return { status };
      throw new RpcError({ status: "NOT_FOUND", reason: "SERVICE_UNKNOWN", message: "no such service here" });
    },
    list: () => ({ statuses: Object.fromEntries([...statuses].map(([name, status]) => [name, { status }])) }),
    watch: ({ service: name }, ctx) => watch(name, ctx),
  });

  return {
    service,
    set(name, status) {
      if (!statuses.has(name)) throw new TypeError(`health of a service that is not served: ${name}`);
      statuses.set(name, Status[status]);
      tell();
    },
    setAll(status) {
      for (const name of statuses.keys()) statuses.set(name, Status[status]);
      tell();
    },
  };
};
