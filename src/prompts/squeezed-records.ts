/**
 * The clusters of a stored prompt: the records that follow those of its pages, one for each layer that is clustered. Per
 * KV head:
 *
 *     u32 ends (nEntries) · u32 coarse ends (nCoarse) · f32 spreads (nEntries) · f16 centroids (nEntries, headDim)
 *
 * little-endian, in the order of src/attention/cluster-index.ts. Such a prompt's pages lie in the order of its clusters, each layer's and KV
 * head's own.
 */

import { type HeadClusters, type LayerClusters, SINK_ENTRIES } from "../attention/cluster-index.ts";
import type { PageConverter } from "../backend/wasm/page-converter.ts";
import { PAGE_TOKENS } from "../kv/page.ts";
import { damaged } from "./manifest.ts";
import { clusteredEnd, type HeadSizes } from "./squeezed-info.ts";

type Bytes = Uint8Array<ArrayBuffer>;

/** The record of a layer. Throws `invalid-model` for a centroid that is not finite or too large for f16. */
export function encodeClusters(heads: LayerClusters, headDim: number, converter: PageConverter): Bytes {
  const parts = heads.flatMap(({ ends, coarseEnds, centroids, spreads }) => [
    bytesOf(ends),
    bytesOf(coarseEnds),
    bytesOf(spreads),
    converter
      .convert(paddedPages(bytesOf(centroids), 4 * headDim), "f32", "f16")
      .subarray(0, 2 * centroids.length),
  ]);
  const record = new Uint8Array(parts.reduce((sum, { byteLength }) => sum + byteLength, 0));
  let at = 0;
  for (const part of parts) {
    record.set(part, at);
    at += part.byteLength;
  }
  return record;
}

/** The clusters in a record of the right length. Throws `storage-failed` for lists that no prompt of `nTokens` has. */
export function decodeClusters(
  record: Bytes,
  sizes: readonly HeadSizes[],
  { nTokens, headDim }: { readonly nTokens: number; readonly headDim: number },
  converter: PageConverter,
): LayerClusters {
  let at = 0;
  const take = (byteLength: number) => {
    at += byteLength;
    return record.slice(at - byteLength, at);
  };
  const words = (n: number) => new Uint32Array(take(4 * n).buffer);
  return sizes.map(({ entries, coarse }): HeadClusters => {
    const ends = words(entries);
    const coarseEnds = words(coarse);
    const spreads = new Float32Array(take(4 * entries).buffer);
    const half = paddedPages(take(2 * entries * headDim), 2 * headDim);
    const centroids = new Float32Array(converter.convert(half, "f16", "f32").buffer, 0, entries * headDim);
    const areSpreads = spreads.every((x) => x >= 0 && x < Infinity);
    const areSinks = ends.subarray(0, SINK_ENTRIES).every((end, e) => end === e + 1);
    if (
      !areSpreads ||
      !areSinks ||
      !covers(ends, clusteredEnd(nTokens)) ||
      !covers(coarseEnds, entries - SINK_ENTRIES)
    )
      throw damaged("the clusters of the pinned prompt do not fit its tokens", { nTokens, entries, coarse });
    return { ends, coarseEnds, centroids, spreads };
  });
}

/** Whether ascending ends cover [0, end) without empty runs. */
function covers(ends: Uint32Array, end: number): boolean {
  return ends.at(-1) === end && ends.every((e, i) => e > (i === 0 ? 0 : ends[i - 1]!));
}

/** The converter takes whole pages, K and V. */
function paddedPages(rows: Bytes, rowBytes: number): Bytes {
  const page = 2 * PAGE_TOKENS * rowBytes;
  const padded = new Uint8Array(Math.ceil(rows.byteLength / page) * page);
  padded.set(rows);
  return padded;
}

function bytesOf(numbers: Uint32Array | Float32Array): Bytes {
  return new Uint8Array(numbers.slice().buffer as ArrayBuffer);
}
