/**
 * What a stored prompt says about itself, and how its bytes are cut into records.
 *
 * Record 0 is the text or messages (JSON), record 1 the token ids (u32, little-endian). Then follow the KV pages, layer by
 * layer, about 1 MiB a record: (pages, nKvHeads, K then V), see src/kv/page.ts. The first page and those of the last 128
 * tokens are f32 or f16; what lies between may be quantized, as in a live cache (src/kv/quantize.ts). Last come the clusters
 * of a prompt that has them (squeezed-records.ts).
 */

import { InlayError } from "../errors.ts";
import { type CacheFormat, type KvShape, type PageFormat, pageCount } from "../kv/page.ts";
import {
  isQuantized,
  type QuantizedFormat,
  SINK_PAGES,
  settledPages,
  wholePageBytes,
} from "../kv/quantize.ts";
import { isSqueezedInfo, type SqueezedInfo, squeezedRecordBytes } from "./squeezed-info.ts";

/** Of manifest and records together; another number cannot be read. */
export const FORMAT_VERSION = 3;

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

/** How pages are stored: `format`, but those that are neither sinks nor in the window as `cold`, if not null. */
export interface PageCoding {
  readonly format: PageFormat;
  readonly cold: QuantizedFormat | null;
}

export interface PromptShape extends Pick<KvShape, "nLayers" | "nKvHeads" | "headDim">, PageCoding {}

export interface PromptManifest {
  readonly id: string;
  readonly model: ModelIdentity;
  /** Raw text; false: messages. */
  readonly raw: boolean;
  readonly nTokens: number;
  /** Milliseconds since 1970. */
  readonly createdAt: number;
  /** How it was attended to when it was computed: "dense", or a policy and its budget as "dhsa 0.25". */
  readonly attention: string;
  /** How long that took. */
  readonly prefillSeconds: number;
  readonly shape: PromptShape;
  /** Clusters of its keys; null: none, its pages lie in the order of its tokens. */
  readonly squeezed: SqueezedInfo | null;
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

/** Pages [from, to) of one format. */
export interface PageRun {
  readonly from: number;
  readonly to: number;
  readonly format: CacheFormat;
}

/** Pages [from, to) of a prompt, in runs of one stored format. */
export function storedRuns(shape: PageCoding, nTokens: number, from: number, to: number): PageRun[] {
  const coldTo = shape.cold ? settledPages(nTokens) : SINK_PAGES;
  const runs: PageRun[] = [
    { from: 0, to: SINK_PAGES, format: shape.format },
    { from: SINK_PAGES, to: coldTo, format: shape.cold ?? shape.format },
    { from: coldTo, to, format: shape.format },
  ];
  return runs
    .map((run) => ({ ...run, from: Math.max(run.from, from), to: Math.min(run.to, to) }))
    .filter((run) => run.from < run.to);
}

/** Bytes of one layer of pages. */
export function runBytes({ nKvHeads, headDim }: PromptShape, { from, to, format }: PageRun): number {
  return (to - from) * nKvHeads * wholePageBytes(format, headDim);
}

function layerBytes(shape: PromptShape, nTokens: number, from: number, to: number): number {
  return storedRuns(shape, nTokens, from, to).reduce((sum, run) => sum + runBytes(shape, run), 0);
}

/** How the pages of one layer are cut: `perRecord` pages a record. */
function layerCut(shape: PromptShape, nTokens: number): { nPages: number; perRecord: number } {
  const nPages = pageCount(nTokens);
  const byteLength = layerBytes(shape, nTokens, 0, nPages);
  const nRecords = Math.min(nPages, Math.ceil(byteLength / RECORD_BYTES));
  return { nPages, perRecord: Math.ceil(nPages / nRecords) };
}

/** Bytes of all KV records of a prompt. */
export function kvBytes(shape: PromptShape, nTokens: number): number {
  return shape.nLayers * layerBytes(shape, nTokens, 0, pageCount(nTokens));
}

/** Where the records of a prompt's clusters begin. */
export function firstSqueezedRecord({ shape, nTokens }: Pick<PromptManifest, "shape" | "nTokens">): number {
  const { nPages, perRecord } = layerCut(shape, nTokens);
  return FIRST_KV_RECORD + shape.nLayers * Math.ceil(nPages / perRecord);
}

/** The KV records of a prompt, in order. */
export function kvRecords(shape: PromptShape, nTokens: number): KvRecord[] {
  const { nPages, perRecord } = layerCut(shape, nTokens);
  const records: KvRecord[] = [];
  for (let layer = 0; layer < shape.nLayers; layer++)
    for (let from = 0; from < nPages; from += perRecord) {
      const to = Math.min(nPages, from + perRecord);
      records.push({ layer, from, to, byteLength: layerBytes(shape, nTokens, from, to) });
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
  const { shape, nTokens, squeezed, records } = value;
  const firstSqueezed = firstSqueezedRecord(value);
  const squeezedBytes = squeezedRecordBytes(squeezed, shape.headDim);
  const nRecords = firstSqueezed + squeezedBytes.length;
  const misfit = damaged("the records of the pinned prompt do not fit its tokens and layers", {
    records: records.length,
    expected: nRecords,
  });
  // Counted before they are listed: a manifest may claim billions.
  if (records.length !== nRecords || records[TOKENS_RECORD]!.byteLength !== 4 * nTokens) throw misfit;
  for (const [i, { byteLength }] of kvRecords(shape, nTokens).entries())
    if (records[FIRST_KV_RECORD + i]!.byteLength !== byteLength) throw misfit;
  for (const [i, byteLength] of squeezedBytes.entries())
    if (records[firstSqueezed + i]!.byteLength !== byteLength) throw misfit;
  return value;
}

function isManifest(value: Partial<PromptManifest> | null): value is PromptManifest {
  const { id, model, raw, nTokens, createdAt, attention, prefillSeconds, shape, squeezed, records } =
    value ?? {};
  const isCount = (n: unknown) => Number.isSafeInteger(n) && (n as number) > 0 && (n as number) < 2 ** 31;
  const isText = (text: unknown) => typeof text === "string";
  return (
    [id, attention, model?.name, model?.fileType, model?.fingerprint].every(isText) &&
    [nTokens, shape?.nLayers, shape?.nKvHeads, shape?.headDim].every(isCount) &&
    (shape?.format === "f32" || shape?.format === "f16") &&
    (shape.cold === null || (isText(shape.cold) && isQuantized(shape.cold as string))) &&
    (squeezed === null ||
      isSqueezedInfo(squeezed, { ...(shape as PromptShape), nTokens: nTokens as number })) &&
    typeof raw === "boolean" &&
    Number.isFinite(createdAt) &&
    Number.isFinite(prefillSeconds) &&
    Array.isArray(records) &&
    records.every(({ byteLength, sha256 }: Partial<RecordInfo>) => isCount(byteLength) && isText(sha256))
  );
}
