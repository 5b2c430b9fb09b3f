import { type DescMessage, fromBinary, type MessageShape } from "@bufbuild/protobuf";
import { eventTypeNamed } from "@curfew/event-log/event-types.ts";
import type { CommitDoc, EventStreams } from "@curfew/event-log/streams.ts";

/** An event where it stands. */
export interface Found<D extends DescMessage = DescMessage> {
  readonly doc: CommitDoc;
  readonly message: MessageShape<D>;
  /** ce_id. */
  readonly eventId: string;
}

type Where<D extends DescMessage> = (message: MessageShape<D>) => boolean;

/** The first event of a type in a commit. */
export const findEvent = <D extends DescMessage>(
  doc: CommitDoc,
  desc: D,
  where: Where<D> = () => true,
): Found<D> | undefined => {
  for (const { headers, value } of doc.events) {
    if (eventTypeNamed(headers.ce_type ?? "")?.desc.typeName !== desc.typeName) continue;
    const message = fromBinary(desc, value);
    if (where(message)) return { doc, message, eventId: headers.ce_id ?? "" };
  }
  return undefined;
};

/** The first event of a type in a stream: exact reads from its beginning. */
export const findInStream = async <D extends DescMessage>(
  streams: EventStreams,
  stream: string,
  desc: D,
  where?: Where<D>,
): Promise<Found<D> | undefined> => {
  for (let version = 1; ; version += 1) {
    const next = await streams.read(stream, version);
    if (!next) return undefined;
    const found = findEvent(next.doc, desc, where);
    if (found) return found;
  }
};
