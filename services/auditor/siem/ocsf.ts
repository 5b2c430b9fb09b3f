/**
 * The part of the Open Cybersecurity Schema Framework (OCSF) 1.8 that we speak: five event classes, without profiles. An object is checked
 * against the published schema in test/ocsf, where captions are too.
 */
export const ocsfVersion = "1.8.0";

interface OcsfClass {
  readonly uid: number;
  readonly caption: string;
  readonly category: readonly [uid: number, caption: string];
  /** Those that we use; any other name is activity 99, Other. */
  readonly activities: Readonly<Record<string, number>>;
}

const identity = [3, "Identity & Access Management"] as const;
const findings = [2, "Findings"] as const;
const findingActivities = { Create: 1, Update: 2, Close: 3 };

export const ocsfClasses = {
  entity_management: {
    uid: 3004,
    caption: "Entity Management",
    category: identity,
    activities: { Create: 1, Read: 2, Update: 3, Delete: 4, Enroll: 6 },
  },
  authentication: { uid: 3002, caption: "Authentication", category: identity, activities: { Logon: 1 } },
  api_activity: {
    uid: 6003,
    caption: "API Activity",
    category: [6, "Application Activity"],
    activities: { Read: 2, Update: 3, Delete: 4 },
  },
  detection_finding: { uid: 2004, caption: "Detection Finding", category: findings, activities: findingActivities },
  incident_finding: { uid: 2005, caption: "Incident Finding", category: findings, activities: findingActivities },
} as const satisfies Record<string, OcsfClass>;
export type OcsfClassName = keyof typeof ocsfClasses;

const severities = { Informational: 1, Low: 2, Medium: 3, High: 4, Critical: 5 } as const;

/** What of an event depends on its type. */
export interface Told {
  readonly class: OcsfClassName;
  /** A caption of the class's activities, or a name of our own: then it is 99, Other. */
  readonly activity: string;
  readonly severity: keyof typeof severities;
  /** One sentence for people. */
  readonly message: string;
  /** What the events of one use, case or finding share. */
  readonly correlation?: string;
  /** Attributes of the class; undefined ones are left out. */
  readonly attributes: Readonly<Record<string, unknown>>;
}

/** Where the event stands, the same for all types. */
export interface Place {
  /** `metadata.uid`: id of the event. */
  readonly uid: string;
  /** CloudEvents type of the event; undefined: the record is no event. */
  readonly type: string | undefined;
  /** Who wrote it, e.g. /issuer. */
  readonly source: string;
  readonly topic: string;
  /** Milliseconds since the epoch. */
  readonly timeMs: number;
  readonly sealedAtMs: number;
  /** Index in the ledger. */
  readonly index: number;
}

/** One OCSF object, to be written as JSON. */
export const ocsfObject = (told: Told, place: Place) => {
  const { uid, caption, category, activities }: OcsfClass = ocsfClasses[told.class];
  const known = Object.hasOwn(activities, told.activity) ? activities[told.activity] : undefined;
  const activity = known ?? 99;
  return {
    class_uid: uid,
    class_name: caption,
    category_uid: category[0],
    category_name: category[1],
    activity_id: activity,
    activity_name: told.activity,
    type_uid: uid * 100 + activity,
    type_name: `${caption}: ${known === undefined ? "Other" : told.activity}`,
    severity_id: severities[told.severity],
    severity: told.severity,
    time: place.timeMs,
    message: told.message,
    metadata: {
      version: ocsfVersion,
      product: { name: "Curfew", vendor_name: "Curfew" },
      uid: place.uid,
      event_code: place.type,
      correlation_uid: told.correlation || undefined,
      log_name: place.topic,
      log_provider: place.source || undefined,
      logged_time: place.sealedAtMs,
      sequence: place.index,
    },
    ...told.attributes,
  };
};
