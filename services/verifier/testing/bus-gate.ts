import { type Bus, BusUnavailable, type Producer } from "@curfew/event-log/bus.ts";

/** A real bus that tests can hold up: sends to `topic` wait while it is closed, subscriptions and questions while it is out. */
export const gateBus = (bus: Bus, topic: string) => {
  let gate: PromiseWithResolvers<void> | undefined;
  let subscriptions: PromiseWithResolvers<void> | undefined;
  let isOut = false;
  let held = 0;
  let sends = 0;
  const gated = (producer: Producer): Producer => ({
    get reachable() {
      return producer.reachable;
    },
    async send(records) {
      sends += 1;
      held += 1;
      await gate?.promise;
      held -= 1;
      return producer.send(records);
    },
    close: () => producer.close(),
  });
  const open: Bus = {
    async openProducer(options) {
      const producer = await bus.openProducer(options);
      return options.topic === topic ? gated(producer) : producer;
    },
    async subscribe(options) {
      return bus.subscribe({
        ...options,
        onRecords: async (records) => {
          await subscriptions?.promise;
          await options.onRecords(records);
        },
      });
    },
    ends: (name) => (isOut ? Promise.reject(new BusUnavailable("out")) : bus.ends(name)),
    describe: (name) => (isOut ? Promise.reject(new BusUnavailable("out")) : bus.describe(name)),
    ping: () => (isOut ? Promise.reject(new BusUnavailable("out")) : bus.ping()),
    close: () => bus.close(),
  };
  return {
    bus: open,
    /** Sends that wait at the gate. */
    held: () => held,
    sends: () => sends,
    hold: () => {
      gate ??= Promise.withResolvers();
    },
    release: () => {
      gate?.resolve();
      gate = undefined;
    },
    holdReading: () => {
      subscriptions ??= Promise.withResolvers();
    },
    releaseReading: () => {
      subscriptions?.resolve();
      subscriptions = undefined;
    },
    setOut: (out: boolean) => {
      isOut = out;
    },
  };
};
