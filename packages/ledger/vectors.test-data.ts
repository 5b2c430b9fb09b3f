import { createPrivateKey, type KeyObject } from "node:crypto";
import { readFileSync } from "node:fs";

type Vectors = {
  leaves_hex: string[];
  leaf_hashes: string[];
  roots_by_size: string[];
  inclusion: { index: number; size: number; proof: string[] }[];
  consistency: { old: number; new: number; proof: string[] }[];
  log_seed_hex: string;
  log_vkey: string;
  witness_seed_hex: string;
  witness_vkey: string;
  checkpoint_size8: string;
  cosignature_line: string;
  tlog_proof_index5_size8: string;
  tile_paths: Record<string, string>;
};

/** Computed with golang.org/x/mod sumdb/tlog and sumdb/note over the RFC 6962 reference leaves. */
export const vectors: Vectors = JSON.parse(readFileSync(new URL("tlog-vectors.json", import.meta.url), "utf8"));

export const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString("hex");

export const keyOf = (seedHex: string): KeyObject =>
  createPrivateKey({
    key: Buffer.from(`302e020100300506032b657004220420${seedHex}`, "hex"),
    format: "der",
    type: "pkcs8",
  });
