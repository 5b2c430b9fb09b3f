import type { KeyObject } from "node:crypto";
import type { UseRequest } from "@curfew/contracts/gen/curfew/verifier/v1/verifier_pb.ts";
import type { Address } from "@curfew/personal-data/address.ts";
import { openPersonKeys } from "@curfew/personal-data/person-keys.ts";
import { keptMs, type PersonalStore } from "@curfew/personal-data/personal-store.ts";
import { openPseudonyms, type Pseudonyms } from "@curfew/personal-data/pseudonyms.ts";
import type { Clock } from "@curfew/runtime/clock.ts";
import type { Random } from "@curfew/runtime/random.ts";

/** Whoever an address belongs to, and the address. */
export interface Owner {
  readonly pseudonym: string;
  readonly key: KeyObject;
  readonly address: string;
}

/** Identities become pseudonyms here, and addresses get their owner's key. What was read lately stays in memory for 5 minutes. */
export interface People {
  pseudonymsOf: Pseudonyms["pseudonymsOf"];
  ownerOf(use: UseRequest, address: Address | undefined): Promise<Owner | undefined>;
  /** Forgets an erased person; resolves once nothing that may have read them before is under way. */
  forget(pseudonym: string): Promise<void>;
}

const cacheSize = 100_000;
const addressType = "address";
/** Erased between the look at the pseudonym and that at the key, so often in one call, is a broken store. */
const maxRounds = 4;

export const openPeople = (options: {
  readonly personal: PersonalStore;
  readonly random: Random;
  readonly clock: Clock;
}): People => {
  const { personal, random, clock } = options;
  const common = { epochs: personal.epochs, random, cacheSize, cacheMs: keptMs, clock };
  const pseudonyms = openPseudonyms({
    ...common,
    collection: personal.identities,
    identifierKey: personal.identifierKey,
  });
  const keys = openPersonKeys({ ...common, rows: personal.persons });
  return {
    pseudonymsOf: pseudonyms.pseudonymsOf,
    async ownerOf({ controller }, address) {
      if (!address) return undefined;
      const { text: value } = address;
      for (let round = 0; round < maxRounds; round += 1) {
        const pseudonym = await pseudonyms.pseudonymOf({ controller, identifierType: addressType, value });
        const key = await keys.keyOf(pseudonym);
        if (key) return { pseudonym, key, address: value };
        // Erased a moment ago: the next one to come from there is somebody new.
        await pseudonyms.drop(pseudonym);
      }
      throw new Error("the personal store has pseudonyms of people who are erased");
    },
    async forget(pseudonym) {
      await Promise.all([pseudonyms.drop(pseudonym), keys.drop(pseudonym)]);
    },
  };
};
