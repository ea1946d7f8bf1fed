/**
 * What a stored prompt says about itself, and how its bytes are cut into records.
 *
 * Record 0 is the text or messages (JSON), record 1 the token ids (u32, little-endian). Then follow the KV pages as the
 * cache keeps them, layer by layer, up to 1 MiB a record: (pages, nKvHeads, K then V), see src/kv/page.ts. They are
 * stored in the cache's own format, so a restored prompt gives exactly the logits that the prefilled one gave.
 */

import { InlayError } from "../errors.ts";
import { type KvShape, pageBytes, pageCount } from "../kv/page.ts";

/** Of manifest and records together; another number cannot be read. */
export const FORMAT_VERSION = 1;

/** Where a record would be larger than this, a layer is cut into more of them. */
const RECORD_BYTES = 1 << 20;

/** Records before those of the KV pages. */
export const CONTENT_RECORD = 0;
export const TOKENS_RECORD = 1;
export const FIRST_KV_RECORD = 2;

/** Which model a prompt was computed by. */
export interface ModelIdentity {
  readonly name: string;
  readonly fileType: string;
  /** SHA-256, src/gguf/fingerprint.ts. */
  readonly fingerprint: string;
}

export type PromptShape = Pick<KvShape, "nLayers" | "nKvHeads" | "headDim" | "format">;

export interface PromptManifest {
  readonly id: string;
  readonly model: ModelIdentity;
  /** Raw text; false: messages. */
  readonly raw: boolean;
  readonly nTokens: number;
  /** Milliseconds since 1970. */
  readonly createdAt: number;
  /** `attention.prefill` that it was computed with. */
  readonly attention: string;
  readonly shape: PromptShape;
  readonly records: readonly RecordInfo[];
}

export interface RecordInfo {
  readonly byteLength: number;
  /** Hexadecimal. */
  readonly sha256: string;
}

/** Pages [from, to) of one layer. */
export interface KvRecord {
  readonly layer: number;
  readonly from: number;
  readonly to: number;
  readonly byteLength: number;
}

/** How the pages of one layer are cut: `size` bytes a page, `perRecord` pages a record. */
function layerCut(shape: PromptShape, nTokens: number): { nPages: number; size: number; perRecord: number } {
  const nPages = pageCount(nTokens);
  const size = shape.nKvHeads * 2 * pageBytes(shape.format, shape.headDim);
  const nRecords = Math.min(nPages, Math.ceil((nPages * size) / RECORD_BYTES));
  return { nPages, size, perRecord: Math.ceil(nPages / nRecords) };
}

/** The KV records of a prompt, in order. */
export function kvRecords(shape: PromptShape, nTokens: number): KvRecord[] {
  const { nPages, size, perRecord } = layerCut(shape, nTokens);
  const records: KvRecord[] = [];
  for (let layer = 0; layer < shape.nLayers; layer++)
    for (let from = 0; from < nPages; from += perRecord) {
      const to = Math.min(nPages, from + perRecord);
      records.push({ layer, from, to, byteLength: (to - from) * size });
    }
  return records;
}

/** "Qwen2.5 0.5B (Q8_0, 1f2e3d4c)" */
export function describeModel({ name, fileType, fingerprint }: ModelIdentity): string {
  return `${name} (${fileType}, ${fingerprint.slice(0, 8)})`;
}

/** The error for bytes that are not what was stored. */
export function damaged(what: string, details: Readonly<Record<string, unknown>> = {}): InlayError {
  return new InlayError("storage-failed", `${what}; pin the prompt again`, details);
}

/** Reads a manifest from JSON whose checksum was right. Throws `storage-failed` for one that contradicts itself. */
export function parseManifest(json: string): PromptManifest {
  let value: Partial<PromptManifest> | null;
  try {
    value = JSON.parse(json) as Partial<PromptManifest> | null;
  } catch {
    throw damaged("the manifest of the pinned prompt is not JSON");
  }
  if (!isManifest(value)) throw damaged("the manifest of the pinned prompt lacks fields");
  const { shape, nTokens, records } = value;
  const { nPages, perRecord } = layerCut(shape, nTokens);
  const nRecords = FIRST_KV_RECORD + shape.nLayers * Math.ceil(nPages / perRecord);
  const misfit = damaged("the records of the pinned prompt do not fit its tokens and layers", {
    records: records.length,
    expected: nRecords,
  });
  // Counted before they are listed: a manifest may claim billions.
  if (records.length !== nRecords || records[TOKENS_RECORD]!.byteLength !== 4 * nTokens) throw misfit;
  for (const [i, { byteLength }] of kvRecords(shape, nTokens).entries())
    if (records[FIRST_KV_RECORD + i]!.byteLength !== byteLength) throw misfit;
  return value;
}

function isManifest(value: Partial<PromptManifest> | null): value is PromptManifest {
  const { id, model, raw, nTokens, createdAt, attention, shape, records } = value ?? {};
  const isCount = (n: unknown) => Number.isSafeInteger(n) && (n as number) > 0 && (n as number) < 2 ** 31;
  const isText = (text: unknown) => typeof text === "string";
  return (
    [id, attention, model?.name, model?.fileType, model?.fingerprint].every(isText) &&
    [nTokens, shape?.nLayers, shape?.nKvHeads, shape?.headDim].every(isCount) &&
    (shape?.format === "f32" || shape?.format === "f16") &&
    typeof raw === "boolean" &&
    Number.isFinite(createdAt) &&
    Array.isArray(records) &&
    records.every(({ byteLength, sha256 }: Partial<RecordInfo>) => isCount(byteLength) && isText(sha256))
  );
}
