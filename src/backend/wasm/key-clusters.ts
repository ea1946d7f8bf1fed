/** Clustering the keys of a pinned prompt, one KV head at a time (wasm/cluster/kmeans.h). Computed in WASM on every device. */

import { InlayError, internalError } from "../../errors.ts";
import { PAGE_TOKENS } from "../../kv/page.ts";
import type { WasmModule } from "./module.ts";

type Bytes = Uint8Array<ArrayBuffer>;

/** How many clusters, and how long they are improved. */
export interface ClusterPlan {
  readonly nFine: number;
  readonly nCoarse: number;
  /** Of K-means, at most, on each level. */
  readonly passes: number;
}

/** The clusters of one KV head's keys. */
export interface KeyClustersResult {
  /** (nKeys): which token lies at each place; sorted by cluster, inside one by token. */
  readonly order: Uint32Array;
  /** (nClusters): cluster c is order[ends[c - 1] .. ends[c]). */
  readonly ends: Uint32Array;
  /** (nCoarse): coarse cluster i is clusters [coarseEnds[i - 1], coarseEnds[i]). */
  readonly coarseEnds: Uint32Array;
  /** (nClusters, headDim): means of the clusters' keys. */
  readonly means: Float32Array;
  /** (nClusters): variance of the clusters' keys, mean over channels. */
  readonly spreads: Float32Array;
}

/** 32-bit fields of the C struct ClusterCall. */
const CALL_FIELDS = 10;

export class KeyClusters {
  constructor(
    readonly wasm: WasmModule,
    private readonly headDim: number,
  ) {}

  /**
   * Clusters the keys of f32 pages (K, then V, of one KV head), which are all full, and puts the pages' tokens in the clusters'
   * order, in place. Throws `out-of-memory`.
   */
  sort(pages: Bytes, { nFine, nCoarse, passes }: ClusterPlan): KeyClustersResult {
    const { headDim } = this;
    const nPages = pages.byteLength / (2 * 4 * PAGE_TOKENS * headDim);
    const nKeys = nPages * PAGE_TOKENS;
    if (!Number.isInteger(nPages)) throw internalError(`${pages.byteLength} bytes are no whole f32 pages`);
    return this.#with(
      [pages.byteLength, pages.byteLength, nKeys * headDim * 4, 3 * nKeys * 4, (CALL_FIELDS + 2) * 4],
      ([input, output, rows, lists, callPtr]) => {
        const { wasm } = this;
        wasm.bytes(input!, pages.byteLength).set(pages);
        wasm.call("kv_key_rows", input!, nPages, headDim, rows!);
        const [order, ends, coarseEnds] = [0, 1, 2].map((i) => lists! + i * nKeys * 4) as [
          number,
          number,
          number,
        ];
        const made = callPtr! + CALL_FIELDS * 4;
        wasm
          .u32(callPtr!, CALL_FIELDS)
          .set([rows!, nKeys, headDim, nCoarse, nFine, passes, order, ends, coarseEnds, made]);
        const status = wasm.call("cluster_key_rows", callPtr!);
        if (status === -1)
          throw new InlayError("out-of-memory", `no memory to cluster ${nKeys} keys`, { nKeys });
        if (status !== 0)
          throw internalError(`clustering ${nKeys} keys returned ${status}`, { nFine, nCoarse });
        const [nMade, nCoarseMade] = wasm.u32(made, 2) as unknown as [number, number];
        // The pages' own place is free once they are permuted; means and spreads go there.
        wasm.call("kv_permute_pages", input!, rows!, order, nPages, headDim, output!);
        const spreads = input! + nMade * headDim * 4;
        wasm.call("cluster_mean_rows", rows!, headDim, order, ends, nMade, input!, spreads);
        pages.set(wasm.bytes(output!, pages.byteLength));
        return {
          order: wasm.u32(order, nKeys).slice(),
          ends: wasm.u32(ends, nMade).slice(),
          coarseEnds: wasm.u32(coarseEnds, nCoarseMade).slice(),
          means: wasm.f32(input!, nMade * headDim).slice(),
          spreads: wasm.f32(spreads, nMade).slice(),
        };
      },
    );
  }

  /** Blocks of the heap for the time of `use`. */
  #with<T>(sizes: readonly number[], use: (blocks: readonly number[]) => T): T {
    const blocks: number[] = [];
    try {
      for (const size of sizes) blocks.push(this.wasm.alloc(size, "the keys of a prompt being clustered"));
      return use(blocks);
    } finally {
      for (const block of blocks) this.wasm.free(block);
    }
  }
}
