import type { DescService } from "@bufbuild/protobuf";
import type { DocumentStore } from "@curfew/document-store/port.ts";
import type { Bus } from "@curfew/event-log/bus.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import type { Log } from "@curfew/runtime/log.ts";
import type { HealthState } from "./health.ts";

const lookEveryMs = 1_000;

/**
 * Keeps the health of a service that has become ready: a service is SERVING while all that it `needs` answers, the whole server ("")
 * while store and bus both do. One that goes on accepting commands without the bus therefore needs the store alone. `close` says
 * NOT_SERVING.
 */
export const watchHealth = (parts: {
  readonly health: HealthState;
  readonly service: DescService;
  readonly needs: readonly ("store" | "bus")[];
  readonly store: Pick<DocumentStore, "ping">;
  readonly bus: Pick<Bus, "ping">;
  readonly clock: Clock;
  readonly log: Log;
}): { close(): void } => {
  const { health, service, needs, clock, log } = parts;
  const closing = new AbortController();
  const answers = (what: "store" | "bus") =>
    parts[what].ping().then(
      () => true,
      () => false,
    );
  void (async () => {
    let before = "";
    while (!closing.signal.aborted) {
      const [store, bus] = await Promise.all([answers("store"), answers("bus")]);
      if (closing.signal.aborted) return;
      const serves = needs.every((need) => (need === "store" ? store : bus));
      health.set(service.typeName, serves ? "SERVING" : "NOT_SERVING");
      health.set("", store && bus ? "SERVING" : "NOT_SERVING");
      const now = `${store} ${bus}`;
      if (now !== before) log[store && bus ? "info" : "warn"]({ store, bus }, "what can be reached has changed");
      before = now;
      await clock.sleep(lookEveryMs, closing.signal);
    }
  })();
  return {
    close() {
      closing.abort();
      health.setAll("NOT_SERVING");
    },
  };
};
