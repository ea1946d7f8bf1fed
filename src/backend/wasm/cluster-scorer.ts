/** Centroids in the WASM heap, and what queries estimate of them (wasm/cluster/score.h). Used where queries are on the host, and for thresholds. */

import {
  type ClusterIndex,
  coarseEntries,
  entryCounts,
  type LayerClusters,
  SINK_ENTRIES,
} from "../../attention/cluster-index.ts";
import { blockCount, type ClusterScores } from "../../attention/policy.ts";
import type { ClusterScorer, ScoreQueries } from "../../attention/squeezed-prefix.ts";
import { InlayError, internalError } from "../../errors.ts";
import { PAGE_TOKENS } from "../../kv/page.ts";
import type { WasmModule } from "./module.ts";

/** 32-bit fields of the C struct ScoreCall. */
const CALL_FIELDS = 14;

/** One level of one layer. */
class Level {
  readonly starts: readonly number[];
  /** Entries of all KV heads, each head's filled up to whole tiles. */
  readonly stride: number;
  /** Centroids (nTiles, headDim, 32), counts (stride), spreads (stride), tiles (nKvHeads + 1), one after the other. */
  #ptr: number;
  readonly #countsPtr: number;
  readonly #spreadsPtr: number;
  readonly #tilesPtr: number;

  constructor(
    private readonly wasm: WasmModule,
    heads: LayerClusters,
    headDim: number,
  ) {
    const tiles = [0];
    for (const { ends } of heads) tiles.push(tiles.at(-1)! + Math.ceil(ends.length / PAGE_TOKENS));
    this.starts = tiles.slice(0, -1).map((tile) => tile * PAGE_TOKENS);
    this.stride = tiles.at(-1)! * PAGE_TOKENS;
    const floats = this.stride * headDim;
    this.#ptr = wasm.alloc((floats + 2 * this.stride + tiles.length) * 4, "the centroids of a pinned prompt");
    this.#countsPtr = this.#ptr + floats * 4;
    this.#spreadsPtr = this.#countsPtr + this.stride * 4;
    this.#tilesPtr = this.#spreadsPtr + this.stride * 4;
    const centroids = wasm.f32(this.#ptr, floats).fill(0);
    const counts = wasm.f32(this.#countsPtr, this.stride).fill(0);
    const spreads = wasm.f32(this.#spreadsPtr, this.stride).fill(0);
    wasm.u32(this.#tilesPtr, tiles.length).set(tiles);
    for (const [h, head] of heads.entries()) {
      counts.set(entryCounts(head), this.starts[h]!);
      spreads.set(head.spreads, this.starts[h]!);
      for (let e = 0; e < head.ends.length; e++) {
        const at =
          tiles[h]! * PAGE_TOKENS * headDim +
          Math.floor(e / PAGE_TOKENS) * headDim * PAGE_TOKENS +
          (e % PAGE_TOKENS);
        for (let c = 0; c < headDim; c++) centroids[at + c * PAGE_TOKENS] = head.centroids[e * headDim + c]!;
      }
    }
  }

  get counts(): Float32Array {
    return this.wasm.f32(this.#countsPtr, this.stride);
  }

  /** `counts`: of each block's entries, (nBlocks, stride), where not the same for all. */
  score({ q, shape, blocks, scale, softcap }: ScoreQueries, counts?: Float32Array): ClusterScores {
    const { wasm, stride } = this;
    const { qLen, blockSize } = blocks;
    const length = blockCount(blocks) * stride;
    const countsLength = counts?.length ?? 0;
    const ptr = wasm.alloc((length + countsLength + q.length + CALL_FIELDS) * 4, "scores of clusters");
    try {
      const qPtr = ptr + length * 4;
      const countsPtr = qPtr + q.length * 4;
      const call = countsPtr + countsLength * 4;
      wasm.f32(qPtr, q.length).set(q);
      if (counts) wasm.f32(countsPtr, countsLength).set(counts);
      const fields = wasm.u32(call, CALL_FIELDS);
      fields.set([
        qPtr,
        this.#ptr,
        counts ? countsPtr : this.#countsPtr,
        this.#spreadsPtr,
        this.#tilesPtr,
        ptr,
      ]);
      fields.set([shape.nKvHeads, shape.nHeads, shape.headDim, qLen, blockSize, counts ? 1 : 0], 6);
      wasm.f32(call, CALL_FIELDS).set([scale, softcap ?? 0], 12);
      const status = wasm.call("cluster_scores", call);
      if (status === -1) throw new InlayError("out-of-memory", "no scratch memory for scoring clusters");
      if (status !== 0) throw internalError(`scoring clusters returned ${status}`);
      return { sigma: wasm.f32(ptr, length).slice(), stride, starts: this.starts, blockQueries: blockSize };
    } finally {
      wasm.free(ptr);
    }
  }

  dispose(): void {
    if (this.#ptr !== 0) this.wasm.free(this.#ptr);
    this.#ptr = 0;
  }
}

export class WasmClusterScorer implements ClusterScorer {
  readonly #fine: (Level | undefined)[] = [];
  /** Made when they are first asked for. */
  readonly #coarse: (Level | undefined)[] = [];

  /** Throws `out-of-memory`. */
  constructor(
    private readonly wasm: WasmModule,
    private readonly index: ClusterIndex,
  ) {
    try {
      for (const heads of index.layers) this.#fine.push(heads && new Level(wasm, heads, index.headDim));
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  fine(layer: number, queries: ScoreQueries): ClusterScores | undefined {
    return this.#fine[layer]?.score(queries);
  }

  coarse(layer: number, queries: ScoreQueries): ClusterScores | undefined {
    const heads = this.index.layers[layer];
    if (!heads) return undefined;
    const { headDim } = this.index;
    this.#coarse[layer] ??= new Level(
      this.wasm,
      heads.map((head) => coarseEntries(head, headDim)),
      headDim,
    );
    return this.#coarse[layer].score(queries);
  }

  twoLevel(layer: number, queries: ScoreQueries, threshold: number): ClusterScores | undefined {
    const fine = this.#fine[layer];
    const heads = this.index.layers[layer];
    const coarse = this.coarse(layer, queries);
    if (!fine || !heads || !coarse) return undefined;
    const all = fine.counts;
    const nBlocks = blockCount(queries.blocks);
    const counts = new Float32Array(nBlocks * fine.stride);
    for (let b = 0; b < nBlocks; b++)
      for (const [h, { coarseEnds }] of heads.entries()) {
        const first = fine.starts[h]!;
        const firstCluster = first + SINK_ENTRIES;
        const estimates = b * coarse.stride + coarse.starts[h]! + SINK_ENTRIES;
        counts.set(all.subarray(first, firstCluster), b * fine.stride + first);
        for (const [i, end] of coarseEnds.entries()) {
          if (!(coarse.sigma[estimates + i]! > threshold)) continue;
          const from = firstCluster + (i === 0 ? 0 : coarseEnds[i - 1]!);
          counts.set(all.subarray(from, firstCluster + end), b * fine.stride + from);
        }
      }
    return fine.score(queries, counts);
  }

  dispose(): void {
    for (const level of [...this.#fine, ...this.#coarse]) level?.dispose();
  }
}
