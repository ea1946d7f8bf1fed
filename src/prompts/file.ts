/**
 * `.inlaykv`: one pinned prompt as a file, written and read by browsers and Node alike.
 *
 *     "INLAYKV\0" · u32 version · u32 length · manifest (JSON, `length` bytes)     the head
 *     · the records, in the manifest's order
 *     · SHA-256 of the head (32 bytes)
 *
 * Integers are little-endian. The manifest has the SHA-256 of every record, so the trailer vouches for all bytes.
 */

import { InlayError } from "../errors.ts";
import { fromHex, sha256, toHex } from "../storage/digest.ts";
import type { Bytes } from "../storage/prompt-store.ts";
import {
  damaged,
  FORMAT_VERSION,
  type PromptManifest,
  parseManifest,
  READABLE_VERSIONS,
} from "./manifest.ts";

const MAGIC = new TextEncoder().encode("INLAYKV\0");
const PREFIX_BYTES = MAGIC.byteLength + 8;
const DIGEST_BYTES = 32;
/** A manifest has about 100 bytes a record of up to 1 MiB. */
const MAX_MANIFEST_BYTES = 64 << 20;

/** The head of a prompt's file, and its SHA-256. */
export async function writeHead(manifest: PromptManifest): Promise<{ head: Bytes; sha256: string }> {
  const json = new TextEncoder().encode(JSON.stringify(manifest));
  const head = new Uint8Array(PREFIX_BYTES + json.byteLength);
  head.set(MAGIC);
  const view = new DataView(head.buffer);
  view.setUint32(MAGIC.byteLength, FORMAT_VERSION, true);
  view.setUint32(MAGIC.byteLength + 4, json.byteLength, true);
  head.set(json, PREFIX_BYTES);
  return { head, sha256: await sha256(head) };
}

/** The manifest in a head. Rejects with `cache-mismatch` for another version, `storage-failed` for damage. */
export async function readHead(head: Bytes, digest: string): Promise<PromptManifest> {
  manifestBytes(head.subarray(0, PREFIX_BYTES));
  if ((await sha256(head)) !== digest) throw manifestDamaged();
  return parseManifest(jsonOf(head), versionOf(head));
}

function jsonOf(head: Bytes): string {
  return new TextDecoder().decode(head.subarray(PREFIX_BYTES));
}

function versionOf(prefix: Uint8Array): number {
  return new DataView(prefix.buffer, prefix.byteOffset).getUint32(MAGIC.byteLength, true);
}

export function manifestDamaged(): InlayError {
  return damaged("the manifest of the pinned prompt is damaged");
}

/** The file: a head, the records that it names, and the trailer. */
export function promptFile(head: Bytes, records: readonly Blob[], digest: string): Blob {
  return new Blob([head, ...records, fromHex(digest)], { type: "application/octet-stream" });
}

/** An `.inlaykv` file whose head has been checked. */
export interface PromptFile {
  readonly manifest: PromptManifest;
  readonly head: Bytes;
  readonly sha256: string;
  /** Bytes of record `i`, whose checksum is still to be compared. */
  read(i: number): Promise<Bytes>;
}

/**
 * Reads and checks head, trailer and length. Rejects with `storage-failed` for what is truncated, damaged or no such
 * file, and with `cache-mismatch` for another version.
 */
export async function openPromptFile(file: Blob): Promise<PromptFile> {
  const bytes = async (from: number, to: number) => new Uint8Array(await file.slice(from, to).arrayBuffer());
  const length = manifestBytes(await bytes(0, PREFIX_BYTES));
  const head = await bytes(0, PREFIX_BYTES + length);
  if (head.byteLength < PREFIX_BYTES + length) throw truncated(file.size, PREFIX_BYTES + length);
  // Checked before the trailer is looked for: where that lies follows from the manifest.
  const headDigest = await sha256(head);
  const trailer = toHex(await bytes(file.size - DIGEST_BYTES, file.size));
  if (headDigest !== trailer) throw truncatedOrDamaged(file.size, head);
  const manifest = parseManifest(jsonOf(head), versionOf(head));
  const offsets = [head.byteLength];
  for (const { byteLength } of manifest.records) offsets.push(offsets.at(-1)! + byteLength);
  const size = offsets.at(-1)! + DIGEST_BYTES;
  if (file.size !== size) throw truncated(file.size, size);
  return { manifest, head, sha256: headDigest, read: (i) => bytes(offsets[i]!, offsets[i + 1]!) };
}

/** Length of the manifest, from the first bytes. */
function manifestBytes(prefix: Uint8Array): number {
  if (prefix.byteLength < PREFIX_BYTES || MAGIC.some((byte, i) => prefix[i] !== byte))
    throw new InlayError(
      "storage-failed",
      `this is not an .inlaykv file: it starts with the bytes ${toHex(prefix.subarray(0, 8)) || "(none)"} ` +
        'instead of "INLAYKV"',
    );
  const version = versionOf(prefix);
  if (!READABLE_VERSIONS.includes(version))
    throw new InlayError(
      "cache-mismatch",
      `the pinned prompt has format version ${version}; this version of Inlay reads ${READABLE_VERSIONS.join(" and ")}: pin it again`,
      { version, supported: FORMAT_VERSION },
    );
  const length = new DataView(prefix.buffer, prefix.byteOffset).getUint32(MAGIC.byteLength + 4, true);
  if (length > MAX_MANIFEST_BYTES)
    throw damaged(`the manifest of the pinned prompt claims ${length} bytes`, { length });
  return length;
}

/** A wrong trailer is a truncated file if the manifest, should it be sound, asks for more bytes. */
function truncatedOrDamaged(size: number, head: Bytes): InlayError {
  try {
    const { records } = parseManifest(jsonOf(head), versionOf(head));
    const needed = records.reduce((sum, { byteLength }) => sum + byteLength, head.byteLength + DIGEST_BYTES);
    if (size < needed) return truncated(size, needed);
  } catch (error) {
    if (!(error instanceof InlayError)) throw error;
  }
  return damaged("the .inlaykv file is damaged: its manifest does not have the checksum at its end");
}

function truncated(found: number, expected: number): InlayError {
  return damaged(
    `the .inlaykv file has ${found} bytes and should have ${expected}: it is truncated or damaged`,
    {
      found,
      expected,
    },
  );
}
