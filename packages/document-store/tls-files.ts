import { readFileSync } from "node:fs";
import { createSecureContext, type SecureContext } from "node:tls";

/** Paths of PEM files. */
export interface TlsFiles {
  readonly ca: string;
  readonly cert: string;
  readonly key: string;
}

/**
 * A context that is made of the files anew whenever a socket asks for it: the driver copies its options once, and knows no other way to
 * change them while a client lives. Throws when the files cannot be used at first; later, as when half of them are renewed, the last
 * that could be used stays.
 */
export const followedContext = (files: TlsFiles): SecureContext => {
  const read = () =>
    createSecureContext({
      ca: readFileSync(files.ca),
      cert: readFileSync(files.cert),
      key: readFileSync(files.key),
    });
  let latest = read();
  return {
    get context() {
      try {
        latest = read();
      } catch {
        // A renewal under way: the next connection looks again.
      }
      return latest.context;
    },
  };
};
