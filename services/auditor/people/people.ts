import { openAggregates } from "@curfew/event-log/handle-command.ts";
import type { Tenure } from "@curfew/event-log/lease.ts";
import type { Outbox } from "@curfew/event-log/outbox.ts";
import type { PersonalStore } from "@curfew/personal-data/personal-store.ts";
import type { ServiceParts } from "@curfew/rpc/replica.ts";
import type { BoundService } from "@curfew/rpc/service-definition.ts";
import { dataSubject } from "../domain/data-subject.ts";
import type { Follower } from "../follower.ts";
import type { ReadModels } from "../projections.ts";
import { dataSubjectService } from "./data-subjects.ts";
import type { ErasureSettings } from "./erasure-settings.ts";
import { openErasures } from "./erasures.ts";

export interface PeopleParts {
  readonly personal: PersonalStore;
  readonly settings: ErasureSettings;
}

/** Erasures and access, where there is a personal store. */
export interface People {
  readonly services: readonly BoundService[];
  /** Whether the store has every erasure of the log: nothing is served before. */
  isReplayed(): boolean;
  /** What one replica does, under a lease. */
  work(tenure: Tenure): Promise<void>;
  /** Rejects when erasures cannot be followed any more. */
  readonly failed: Promise<never>;
  close(): Promise<void>;
}

const nobody: People = {
  services: [],
  isReplayed: () => false,
  work: ({ signal }) => new Promise((resolve) => signal.addEventListener("abort", () => resolve(), { once: true })),
  failed: new Promise(() => undefined),
  close: async () => undefined,
};

export const openPeople = (
  parts: Pick<ServiceParts, "bus" | "clock" | "random" | "log"> & {
    readonly people?: PeopleParts;
    readonly outbox: Outbox;
    readonly models: ReadModels;
    readonly follower: Follower;
  },
): People => {
  const { bus, clock, random, log, people, outbox, models, follower } = parts;
  if (!people) return nobody;
  const subjects = openAggregates({ streams: outbox.streams, decider: dataSubject, clock });
  const common = { ...people, outbox, subjects, models, sealedSize: () => follower.latest()?.size ?? 0, clock };
  const erasures = openErasures({ ...common, bus, random, log });
  let isReplayed = false;
  erasures.replayed.then(
    () => {
      isReplayed = true;
    },
    (error: unknown) => log.error({ err: error }, "erasures cannot be followed"),
  );
  return {
    services: [dataSubjectService({ ...common, erasures })],
    isReplayed: () => isReplayed,
    work: erasures.work,
    failed: erasures.failed,
    close: erasures.close,
  };
};
