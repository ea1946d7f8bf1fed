/**
 * Does this browser, on this adapter, compute attention correctly? Run once before the GPU is trusted: drivers do
 * miscompile shaders. The kernels under test are the model's own variants, so nothing is compiled in vain.
 *
 * Inputs are multiples of 1/64 that f16 holds exactly, so one tolerance serves all page formats; the expected values
 * come from the plain f64 computation at the end of this file.
 */

import { blockCount, lastQuery, type QueryBlocks, type Selection } from "../../attention/policy.ts";
import { PAGE_TOKENS } from "../../kv/page.ts";
import type { Tensor } from "../backend.ts";
import type { GpuDevice } from "./device.ts";
import { HybridAttention } from "./hybrid-attention.ts";
import type { KernelShape } from "./kernels.ts";

/** What {@link selfTest} found. */
export interface SelfTestResult {
  readonly ok: boolean;
  /** Largest error of an element relative to the largest of its row; infinite if a number was not finite. */
  readonly maxError: number;
  readonly ms: number;
}

/** Rounding gives 1e-6; a wrong index or a lost barrier gives 0.1 and more. */
const TOLERANCE = 1e-4;

/** The calls of the test: a prefill that ends inside a page and inside a pair, then decode, then a second prefill. */
const CALLS: readonly {
  qLen: number;
  blockSize: number;
  softcap?: number;
  window?: number;
  isSparse: boolean;
}[] = [
  { qLen: 71, blockSize: 32, isSparse: false },
  { qLen: 1, blockSize: 1, isSparse: true },
  { qLen: 30, blockSize: 64, softcap: 8, window: 40, isSparse: true },
  { qLen: 1, blockSize: 1, softcap: 8, window: 40, isSparse: false },
];

/** One KV head's group, in the widths of `shape`, with every call in one piece and in three splits. */
export async function selfTest(device: GpuDevice, shape: KernelShape): Promise<SelfTestResult> {
  const start = performance.now();
  const small: KernelShape = {
    ...shape,
    nLayers: 1,
    nKvHeads: 2,
    nHeads: (2 * shape.nHeads) / shape.nKvHeads,
  };
  let maxError = 0;
  for (const nSplits of [1, 3]) maxError = Math.max(maxError, await testCalls(device, small, nSplits));
  return { ok: maxError <= TOLERANCE, maxError, ms: performance.now() - start };
}

async function testCalls(device: GpuDevice, shape: KernelShape, nSplits: number): Promise<number> {
  const { nHeads, nKvHeads, headDim } = shape;
  const tensors = new Map<Tensor, Float32Array>();
  const tensor = (elements: Float32Array, width: number): Tensor => {
    const made: Tensor = {
      nTokens: elements.length / width,
      width,
      [Symbol.dispose]: () => void tensors.delete(made),
    };
    tensors.set(made, elements);
    return made;
  };
  const host = {
    view: (t: Tensor) => tensors.get(t) ?? new Float32Array(0),
    create: (nTokens: number, width: number) => tensor(new Float32Array(nTokens * width), width),
  };
  const attention = await HybridAttention.create(device, host, shape, { tuning: { nSplits } });
  try {
    const random = seeded(nSplits);
    const cache = attention.createCache();
    const k: number[] = [];
    const v: number[] = [];
    let maxError = 0;
    for (const { qLen, blockSize, softcap, window, isSparse } of CALLS) {
      const blocks = { qStart: cache.nTokens, qLen, blockSize };
      const rows = (heads: number) => Float32Array.from({ length: qLen * heads * headDim }, random);
      const inputs = { q: rows(nHeads), k: rows(nKvHeads), v: rows(nKvHeads) };
      k.push(...inputs.k);
      v.push(...inputs.v);
      const selection = isSparse ? sparseSelection(blocks, nKvHeads) : denseSelection(blocks, nKvHeads);
      cache.reserve(qLen);
      const scale = 1 / Math.sqrt(headDim);
      using out = await attention.attend({
        layer: 0,
        q: tensor(inputs.q, nHeads * headDim),
        k: tensor(inputs.k, nKvHeads * headDim),
        v: tensor(inputs.v, nKvHeads * headDim),
        cache,
        blocks,
        selections: [selection],
        scale,
        softcap,
        window,
      });
      cache.commit(qLen);
      const expected = reference({ shape, q: inputs.q, k, v, blocks, selection, scale, softcap, window });
      maxError = Math.max(maxError, relativeError(host.view(out), expected, headDim));
    }
    cache.dispose();
    return maxError;
  } finally {
    attention.dispose();
  }
}

/** Multiples of 1/64 in [-2, 2). */
function seeded(seed: number): () => number {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0; // Numerical Recipes' generator
    return (state >>> 24) / 64 - 2;
  };
}

function denseSelection(blocks: QueryBlocks, nKvHeads: number): Selection {
  return listPages(blocks, nKvHeads, true, () => true);
}

/** Per KV head every other page, the newest always, and of each page three tokens in four. */
function sparseSelection(blocks: QueryBlocks, nKvHeads: number): Selection {
  const isListed = (kvHead: number, page: number, newest: number) =>
    page === newest || page % 2 === kvHead % 2;
  return listPages(blocks, nKvHeads, false, isListed, 0xeeeeeeee);
}

function listPages(
  blocks: QueryBlocks,
  nKvHeads: number,
  headShared: boolean,
  isListed: (kvHead: number, page: number, newest: number) => boolean,
  mask?: number,
): Selection {
  const nBlocks = blockCount(blocks);
  const rowPtr = [0];
  const pages: number[] = [];
  for (let row = 0; row < (headShared ? 1 : nKvHeads) * nBlocks; row++) {
    const newest = Math.floor(lastQuery(blocks, row % nBlocks) / PAGE_TOKENS);
    for (let page = 0; page <= newest; page++)
      if (isListed(Math.floor(row / nBlocks), page, newest)) pages.push(page);
    rowPtr.push(pages.length);
  }
  return {
    layer: 0,
    nKvHeads,
    nBlocks,
    headShared,
    rowPtr: Uint32Array.from(rowPtr),
    page: Uint32Array.from(pages),
    ...(mask === undefined ? {} : { mask: new Uint32Array(pages.length).fill(mask) }),
    segment: "tail",
  };
}

interface Problem {
  readonly shape: KernelShape;
  /** (qLen, nHeads, headDim) of this call. */
  readonly q: ArrayLike<number>;
  /** (nTokens, nKvHeads, headDim) from position 0. */
  readonly k: ArrayLike<number>;
  readonly v: ArrayLike<number>;
  readonly blocks: QueryBlocks;
  readonly selection: Selection;
  readonly scale: number;
  readonly softcap: number | undefined;
  readonly window: number | undefined;
}

/** Softmax attention in f64, key by key. (qLen, nHeads, headDim); a row that reads nothing is 0. */
function reference({ shape, q, k, v, blocks, selection, scale, softcap, window }: Problem): Float64Array {
  const { nHeads, nKvHeads, headDim } = shape;
  const out = new Float64Array(q.length);
  for (let i = 0; i < blocks.qLen; i++) {
    for (let head = 0; head < nHeads; head++) {
      const kvHead = Math.floor(head / (nHeads / nKvHeads));
      const qAt = (i * nHeads + head) * headDim;
      let total = 0;
      for (const key of keysOf(selection, kvHead, Math.floor(i / blocks.blockSize))) {
        const distance = blocks.qStart + i - key;
        if (distance < 0 || (window !== undefined && distance >= window)) continue;
        const kvAt = (key * nKvHeads + kvHead) * headDim;
        let x = 0;
        for (let d = 0; d < headDim; d++) x += q[qAt + d]! * k[kvAt + d]! * scale;
        if (softcap !== undefined) x = softcap * Math.tanh(x / softcap);
        const weight = Math.exp(x); // |x| is far below 700 on these inputs
        total += weight;
        for (let d = 0; d < headDim; d++) out[qAt + d]! += weight * v[kvAt + d]!;
      }
      if (total > 0) for (let d = 0; d < headDim; d++) out[qAt + d]! /= total;
    }
  }
  return out;
}

/** Positions that a block's row lists. */
function* keysOf({ headShared, nBlocks, rowPtr, page, mask }: Selection, kvHead: number, block: number) {
  const row = headShared ? block : kvHead * nBlocks + block;
  for (let i = rowPtr[row]!; i < rowPtr[row + 1]!; i++)
    for (let t = 0; t < PAGE_TOKENS; t++)
      if (mask === undefined || (mask[i]! >>> t) & 1) yield page[i]! * PAGE_TOKENS + t;
}

/** Largest error of an element relative to the largest of its row of `width`. */
function relativeError(actual: ArrayLike<number>, expected: ArrayLike<number>, width: number): number {
  let worst = 0;
  for (let row = 0; row < expected.length; row += width) {
    let error = 0;
    let size = 0;
    for (let i = row; i < row + width; i++) {
      const e = Math.abs((actual[i] ?? Number.NaN) - expected[i]!);
      error = Math.max(error, Number.isFinite(e) ? e : Number.POSITIVE_INFINITY);
      size = Math.max(size, Math.abs(expected[i]!));
    }
    if (error > 0) worst = Math.max(worst, error / size);
  }
  return worst;
}
