import { open, rename, rm } from "node:fs/promises";

/** Makes durable which names a folder holds. */
export const syncFolder = async (path: string): Promise<void> => {
  const folder = await open(path, "r");
  try {
    await folder.sync();
  } finally {
    await folder.close();
  }
};

/**
 * Puts `bytes` in the place of `file` (0600), whole or not at all, by way of `draft`, a name of its own in the same file system. Its bytes are
 * durable when this resolves; its name is after `syncFolder`.
 */
export const replaceFile = async (file: string, draft: string, bytes: string | Uint8Array): Promise<void> => {
  try {
    const handle = await open(draft, "wx", 0o600);
    try {
      await handle.writeFile(bytes);
      await handle.sync();
    } finally {
      await handle.close();
    }
    await rename(draft, file);
  } catch (error) {
    await rm(draft, { force: true });
    throw error;
  }
};
