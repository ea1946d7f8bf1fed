/**
 * What selection policies remember of a sequence's keys: sums over short runs of tokens ("granules") of every layer and
 * KV head, and the chunks that they add up to. It lives beside the sequence's KV cache, and is forked and truncated
 * with it.
 *
 * A chunk's feature is its sum / sqrt(length), that is sqrt(length) times the mean key: the scores of long and short
 * chunks are then comparable (algorithms.md A.4).
 */

import { internalError } from "../errors.ts";
import type { CacheCompanion } from "../kv/paged-cache.ts";
import { BoundaryDetector, type BoundaryScore, type ChunkTable, FixedChunks } from "./boundaries.ts";
import { KeyNovelty } from "./key-novelty.ts";

/** What is to be remembered. */
export interface FeatureShape {
  readonly nLayers: number;
  readonly nKvHeads: number;
  readonly headDim: number;
  /** Tokens of a granule; chunks end at multiples of it. A divisor of PAGE_TOKENS. */
  readonly granule: number;
  /**
   * The layer whose keys say where chunks end, for itself and all layers after it. Layers before it, and all if
   * undefined, have fixed chunks of FIXED_CHUNK tokens.
   */
  readonly boundaryLayer?: number | undefined;
  /** Scores the ends of chunks, as before token 0. @default training-free (key-novelty.ts) */
  readonly boundaryScore?: BoundaryScore | undefined;
}

/** Tokens of a chunk where no boundaries are detected. */
export const FIXED_CHUNK = 32;

/**
 * Sums over runs of tokens of the call: run i is tokens [ends[i-1], ends[i]). `sums` is (nRuns, nKvHeads * headDim);
 * run 0 is added to what is there, the others start from zero.
 */
export type PoolRuns = (ends: Uint32Array, sums: Float32Array) => void;

interface LayerSums {
  /** (capacity, nKvHeads * headDim); the last granule may be partial. */
  sums: Float32Array;
  nTokens: number;
  /** The partial granule as it was when the cache was last committed; undefined: it is as it was. */
  committedTail: Float32Array | undefined;
  /** Features of the first `n` chunks. */
  chunks: { n: number; features: Float32Array };
}

export class KeyFeatures implements CacheCompanion {
  readonly #layers: LayerSums[];
  readonly #fixed = new FixedChunks(FIXED_CHUNK);
  #detector: BoundaryDetector | undefined;
  #committed = 0;

  constructor(readonly shape: FeatureShape) {
    const { nLayers, nKvHeads, headDim, granule, boundaryLayer, boundaryScore } = shape;
    this.#layers = Array.from({ length: nLayers }, () => ({
      sums: new Float32Array(0),
      nTokens: 0,
      committedTail: undefined,
      chunks: { n: 0, features: new Float32Array(0) },
    }));
    if (boundaryLayer !== undefined)
      this.#detector = new BoundaryDetector(
        nKvHeads * headDim,
        granule,
        boundaryScore ?? new KeyNovelty(nKvHeads, headDim),
      );
  }

  /** Host memory held. */
  get bytes(): number {
    const sums = this.#layers.reduce(
      (n, { sums, chunks }) => n + sums.byteLength + chunks.features.byteLength,
      0,
    );
    return sums + (this.#detector?.bytes ?? 0);
  }

  /** Numbers of one granule or chunk: KV heads one after the other. */
  get width(): number {
    return this.shape.nKvHeads * this.shape.headDim;
  }

  /** Takes the next `n` tokens' keys of a layer, as the selection's scores see them: after RoPE. */
  append(layer: number, n: number, pool: PoolRuns): void {
    const state = this.#layers[layer]!;
    const { granule } = this.shape;
    const { width } = this;
    const from = state.nTokens;
    const to = from + n;
    const first = Math.floor(from / granule);
    const nRuns = Math.ceil(to / granule) - first;
    if ((first + nRuns) * width > state.sums.length) {
      const grown = new Float32Array(Math.max((first + nRuns) * width, Math.ceil(state.sums.length * 1.5)));
      grown.set(state.sums);
      state.sums = grown;
    }
    const runs = state.sums.subarray(first * width, (first + nRuns) * width);
    if (from % granule === 0) runs.fill(0, 0, width);
    else state.committedTail ??= runs.slice(0, width);
    const ends = new Uint32Array(nRuns);
    for (let i = 0; i < nRuns; i++) ends[i] = Math.min((first + i + 1) * granule, to) - from;
    pool(ends, runs);
    state.nTokens = to;
    if (layer === 0) this.#fixed.setTokens(to);
  }

  /** Takes the next tokens' keys before RoPE, (n, width), of the boundary layer. */
  appendBoundaryKeys(keys: Float32Array): void {
    this.#detector?.append(keys);
  }

  /** The chunks of a layer that have ended. */
  chunks(layer: number): ChunkTable {
    const { boundaryLayer } = this.shape;
    return this.#detector && layer >= boundaryLayer! ? this.#detector : this.#fixed;
  }

  /** Features of a layer's chunks, (nChunks, nKvHeads, headDim). Valid until the next `append`. */
  chunkFeatures(layer: number): Float32Array {
    const { granule } = this.shape;
    const { width } = this;
    const { sums, chunks } = this.#layers[layer]!;
    const { ends } = this.chunks(layer);
    if (ends.length * width > chunks.features.length) {
      const grown = new Float32Array(Math.max(ends.length, 2 * chunks.n) * width);
      grown.set(chunks.features.subarray(0, chunks.n * width));
      chunks.features = grown;
    }
    for (; chunks.n < ends.length; chunks.n++) {
      const from = chunks.n === 0 ? 0 : ends[chunks.n - 1]!;
      const to = ends[chunks.n]!;
      const scale = 1 / Math.sqrt(to - from);
      const feature = chunks.features.subarray(chunks.n * width, (chunks.n + 1) * width).fill(0);
      for (let at = (from / granule) * width; at < (to / granule) * width; at += width)
        for (let c = 0; c < width; c++) feature[c]! += sums[at + c]!;
      for (let c = 0; c < width; c++) feature[c]! *= scale;
    }
    return chunks.features.subarray(0, ends.length * width);
  }

  /** Sums of a layer's granules, (nGranules, nKvHeads, headDim); the last may be partial. Valid until `append`. */
  granuleSums(layer: number): Float32Array {
    const { sums, nTokens } = this.#layers[layer]!;
    return sums.subarray(0, Math.ceil(nTokens / this.shape.granule) * this.width);
  }

  // ---- beside the cache ---------------------------------------------------------------------------------

  commit(nTokens: number): void {
    for (const [layer, state] of this.#layers.entries()) {
      if (state.nTokens !== nTokens)
        throw internalError(`layer ${layer} has key features of ${state.nTokens} of ${nTokens} tokens`);
      state.committedTail = undefined;
    }
    this.#detector?.mark();
    this.#committed = nTokens;
  }

  /** The keys of the first tokens come layer by layer. */
  expect(nTokens: number): void {
    this.#fixed.setTokens(nTokens);
    this.#committed = nTokens;
  }

  /** Takes over what its origin, which it was forked from, has got of an expected layer since. */
  takeLayer(layer: number, origin: KeyFeatures): void {
    const { sums, nTokens } = origin.#layers[layer]!;
    const used = Math.ceil(nTokens / this.shape.granule) * this.width;
    this.#layers[layer] = {
      sums: sums.slice(0, used),
      nTokens,
      committedTail: undefined,
      chunks: { n: 0, features: new Float32Array(0) },
    };
    if (layer === this.shape.boundaryLayer) this.#detector = origin.#detector?.fork();
  }

  /** What was committed last, or any whole number of granules. */
  restorable(nTokens: number): number {
    return nTokens === this.#committed ? nTokens : nTokens - (nTokens % this.shape.granule);
  }

  truncate(nTokens: number): void {
    const { granule } = this.shape;
    const { width } = this;
    for (const state of this.#layers) {
      if (state.committedTail && nTokens % granule !== 0)
        state.sums.set(state.committedTail, Math.floor(nTokens / granule) * width);
      state.committedTail = undefined;
      state.nTokens = Math.min(state.nTokens, nTokens); // less, of an expected layer that has not come
      state.chunks.n = 0;
    }
    this.#fixed.setTokens(nTokens);
    if (this.#detector && this.#detector.nTokens > nTokens) this.#detector.truncate(nTokens);
    this.#committed = nTokens;
  }

  fork(): KeyFeatures {
    const fork = new KeyFeatures(this.shape);
    const used = Math.ceil(this.#committed / this.shape.granule) * this.width;
    for (const [layer, state] of fork.#layers.entries()) {
      const mine = this.#layers[layer]!;
      state.sums = mine.sums.slice(0, used);
      state.nTokens = mine.nTokens;
    }
    fork.#fixed.setTokens(this.#committed);
    fork.#detector = this.#detector?.fork();
    fork.#committed = this.#committed;
    return fork;
  }
}
