/** What the manifest of a stored prompt says of its clusters (squeezed-records.ts). */

import { SINK_ENTRIES } from "../attention/cluster-index.ts";
import type { Thresholds } from "../attention/squeezed.ts";
import { PAGE_TOKENS } from "../kv/page.ts";
import { settledPages } from "../kv/quantize.ts";

/** A share of keys to leave out, and the thresholds that do so on average. */
export interface CalibratedSparsity extends Thresholds {
  readonly sparsity: number;
}

/** The clusters of a stored prompt. */
export interface SqueezedInfo {
  /** How it is read: one of `thresholds`. */
  readonly sparsity: number;
  /** Above this estimated probability of what is left out, all is read. 0 < maxMissing <= 1. */
  readonly maxMissing: number;
  readonly thresholds: readonly CalibratedSparsity[];
  /** Of coarse clusters, where those are looked up first. */
  readonly coarse: Thresholds | null;
  /** Per layer, of each KV head; none where the layer is not clustered. */
  readonly layers: readonly (readonly HeadSizes[])[];
}

export interface HeadSizes {
  readonly entries: number;
  readonly coarse: number;
}

/** Slots before this one are sinks or clustered. */
export function clusteredEnd(nTokens: number): number {
  return settledPages(nTokens) * PAGE_TOKENS;
}

/** Bytes of each clustered layer's record, in order. */
export function squeezedRecordBytes(info: SqueezedInfo | null, headDim: number): number[] {
  const clustered = (info?.layers ?? []).filter((heads) => heads.length > 0);
  return clustered.map((heads) =>
    heads.reduce((sum, { entries, coarse }) => sum + 4 * (2 * entries + coarse) + 2 * entries * headDim, 0),
  );
}

/** Whether `info`, of any JSON value, describes clusters of a prompt with these sizes. */
export function isSqueezedInfo(
  info: unknown,
  { nLayers, nKvHeads, nTokens }: { nLayers: number; nKvHeads: number; nTokens: number },
): info is SqueezedInfo {
  const { sparsity, maxMissing, thresholds, coarse, layers } = (info ?? {}) as Partial<SqueezedInfo>;
  const isCount = (n: unknown, least: number) =>
    Number.isSafeInteger(n) && (n as number) >= least && (n as number) <= nTokens;
  const areFinite = (numbers: unknown[]) => numbers.every((x) => typeof x === "number" && Number.isFinite(x));
  const isCalibrated = (t: Partial<CalibratedSparsity> | null) =>
    areFinite([t?.sparsity, t?.query, t?.block]);
  return (
    typeof maxMissing === "number" &&
    maxMissing > 0 &&
    maxMissing <= 1 &&
    Array.isArray(thresholds) &&
    thresholds.every(isCalibrated) &&
    thresholds.some((calibrated) => calibrated.sparsity === sparsity) &&
    (coarse === null || areFinite([coarse?.query, coarse?.block])) &&
    Array.isArray(layers) &&
    layers.length === nLayers &&
    layers.every(
      (heads) =>
        Array.isArray(heads) &&
        (heads.length === 0 || heads.length === nKvHeads) &&
        heads.every((head) => isCount(head?.entries, SINK_ENTRIES + 1) && isCount(head?.coarse, 1)),
    )
  );
}
