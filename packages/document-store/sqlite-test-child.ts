/** Writes to the store in argv[2] from 16 callers at once and reports each acknowledged `_id`; argv[3] bounds how many, if given. */
import { openSqliteStore } from "./sqlite.ts";

const [, , file = "", bound = "Infinity"] = process.argv;
const store = await openSqliteStore({ file });
const documents = await store.collection("acknowledged", { indexes: ["unpublished"] });
let next = 0;
const caller = async () => {
  while (next < Number(bound)) {
    const _id = `${process.pid}-${next++}`;
    await documents.insert({ _id, unpublished: true, bytes: Buffer.from(_id) });
    process.send?.(_id);
  }
};
await Promise.all(Array.from({ length: 16 }, caller));
process.stdout.write(JSON.stringify(store.stats()));
await store.close();
process.disconnect?.();
