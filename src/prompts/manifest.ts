/**
 * What a stored prompt says about itself, and how its bytes are cut into records.
 *
 * Record 0 is the text or messages (JSON), record 1 the token ids (u32, little-endian). Then follow the KV pages, layer by
 * layer, about 1 MiB a record: (pages, nKvHeads, K then V), see src/kv/page.ts. The first page and those of the last 128
 * tokens are f32 or f16; what lies between may be quantized, as in a live cache (src/kv/quantize.ts), and some heads of it
 * less than the others (src/kv/mixed-format.ts). Last come the clusters of a prompt that has them (squeezed-records.ts).
 */

import { InlayError } from "../errors.ts";
import { type ColdFormat, layerPageBytes, MixedFormat, NARROW, type SlotFormat } from "../kv/mixed-format.ts";
import { type KvShape, type PageFormat, pageCount } from "../kv/page.ts";
import { isQuantized, type QuantizedFormat, SINK_PAGES, settledPages } from "../kv/quantize.ts";
import { isSqueezedInfo, type SqueezedInfo, squeezedRecordBytes } from "./squeezed-info.ts";

/** Of manifest and records together. */
export const FORMAT_VERSION = 3;
/** What can be read; version 2 has no `shape.wide`, and its clusters have no spreads: those are not read. */
export const READABLE_VERSIONS: readonly number[] = [2, FORMAT_VERSION];

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
  /**
   * Where `cold` is 2-bit and that was tried on each head: those that are stored at 4 bits, `layer * nKvHeads + kvHead`,
   * ascending. null: not tried, all heads as `cold` says.
   */
  readonly wide: readonly number[] | null;
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
  /** The time that its chat template was told, which may show a date. */
  readonly renderedAt: number;
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
  readonly format: SlotFormat;
}

/** How the pages are stored that are neither sinks nor in the window, if not as the others. */
export function coldFormat({ cold, wide }: PageCoding): ColdFormat | undefined {
  return wide && wide.length > 0 ? new MixedFormat(wide) : (cold ?? undefined);
}

/** Pages [from, to) of a prompt, in runs of one stored format. */
export function storedRuns(shape: PageCoding, nTokens: number, from: number, to: number): PageRun[] {
  const cold = coldFormat(shape);
  const coldTo = cold ? settledPages(nTokens) : SINK_PAGES;
  const runs: PageRun[] = [
    { from: 0, to: SINK_PAGES, format: shape.format },
    { from: SINK_PAGES, to: coldTo, format: cold ?? shape.format },
    { from: coldTo, to, format: shape.format },
  ];
  return runs
    .map((run) => ({ ...run, from: Math.max(run.from, from), to: Math.min(run.to, to) }))
    .filter((run) => run.from < run.to);
}

/** Bytes of one layer of pages. */
export function runBytes(shape: PromptShape, layer: number, { from, to, format }: PageRun): number {
  return (to - from) * layerPageBytes(format, layer, shape);
}

function layerBytes(shape: PromptShape, layer: number, nTokens: number, from: number, to: number): number {
  return storedRuns(shape, nTokens, from, to).reduce((sum, run) => sum + runBytes(shape, layer, run), 0);
}

/** How many heads of each layer are wide, for layers that have some. */
function wideCounts({ wide, nKvHeads }: PromptShape): Map<number, number> {
  const counts = new Map<number, number>();
  for (const head of wide ?? []) {
    const layer = Math.floor(head / nKvHeads);
    counts.set(layer, (counts.get(layer) ?? 0) + 1);
  }
  return counts;
}

/** How the pages of a layer are cut: `perRecord` pages a record, in all layers as many as in the largest. */
function layerCut(shape: PromptShape, nTokens: number): { nPages: number; perRecord: number } {
  const nPages = pageCount(nTokens);
  let [widest, most] = [0, 0];
  for (const [layer, count] of wideCounts(shape)) if (count > most) [widest, most] = [layer, count];
  const byteLength = layerBytes(shape, widest, nTokens, 0, nPages);
  const nRecords = Math.min(nPages, Math.ceil(byteLength / RECORD_BYTES));
  return { nPages, perRecord: Math.ceil(nPages / nRecords) };
}

/** Bytes of all KV records of a prompt. */
export function kvBytes(shape: PromptShape, nTokens: number): number {
  const nPages = pageCount(nTokens);
  const wide = [...wideCounts(shape).keys()];
  const narrow = layerBytes({ ...shape, wide: null }, 0, nTokens, 0, nPages);
  return wide.reduce(
    (sum, layer) => sum + layerBytes(shape, layer, nTokens, 0, nPages),
    (shape.nLayers - wide.length) * narrow,
  );
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
      records.push({ layer, from, to, byteLength: layerBytes(shape, layer, nTokens, from, to) });
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

/**
 * Reads a manifest of a readable version from JSON whose checksum was right. Throws `storage-failed` for one that contradicts itself,
 * `cache-mismatch` for clusters of an older version.
 */
export function parseManifest(json: string, version: number): PromptManifest {
  let value: Partial<PromptManifest> | null;
  try {
    value = JSON.parse(json) as Partial<PromptManifest> | null;
  } catch {
    throw damaged("the manifest of the pinned prompt is not JSON");
  }
  // Version 2 did not try heads, nor tell the time.
  if (value?.shape && value.shape.wide === undefined)
    value = { ...value, shape: { ...value.shape, wide: null } };
  if (value && value.renderedAt === undefined && value.createdAt !== undefined)
    value = { ...value, renderedAt: value.createdAt };
  if (!isManifest(value)) throw damaged("the manifest of the pinned prompt lacks fields");
  const { shape, nTokens, squeezed, records } = value;
  if (version < FORMAT_VERSION && squeezed)
    throw new InlayError(
      "cache-mismatch",
      `the pinned prompt ${JSON.stringify(value.id)} has clusters of format version ${version}; this version of Inlay reads those of ` +
        `${FORMAT_VERSION}: pin it again`,
      { version, supported: FORMAT_VERSION },
    );
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
  const {
    id,
    model,
    raw,
    nTokens,
    createdAt,
    renderedAt,
    attention,
    prefillSeconds,
    shape,
    squeezed,
    records,
  } = value ?? {};
  const isCount = (n: unknown) => Number.isSafeInteger(n) && (n as number) > 0 && (n as number) < 2 ** 31;
  const isText = (text: unknown) => typeof text === "string";
  return (
    [id, attention, model?.name, model?.fileType, model?.fingerprint].every(isText) &&
    [nTokens, shape?.nLayers, shape?.nKvHeads, shape?.headDim].every(isCount) &&
    (shape?.format === "f32" || shape?.format === "f16") &&
    (shape.cold === null || (isText(shape.cold) && isQuantized(shape.cold as string))) &&
    (shape.wide === null || isHeadList(shape.wide, shape as PromptShape)) &&
    (squeezed === null ||
      isSqueezedInfo(squeezed, { ...(shape as PromptShape), nTokens: nTokens as number })) &&
    typeof raw === "boolean" &&
    Number.isFinite(createdAt) &&
    Number.isFinite(renderedAt) &&
    Number.isFinite(prefillSeconds) &&
    Array.isArray(records) &&
    records.every(({ byteLength, sha256 }: Partial<RecordInfo>) => isCount(byteLength) && isText(sha256))
  );
}

/** Whether `wide`, of any JSON value, lists heads of 2-bit pages. */
function isHeadList(wide: unknown, { cold, nLayers, nKvHeads }: PromptShape): boolean {
  const isHead = (head: unknown, i: number, all: unknown[]) =>
    Number.isSafeInteger(head) &&
    (head as number) >= 0 &&
    (head as number) < nLayers * nKvHeads &&
    (i === 0 || (head as number) > (all[i - 1] as number));
  return cold === NARROW && Array.isArray(wide) && wide.every(isHead);
}
