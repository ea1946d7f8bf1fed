/** Times of one layer's attention on a device, on made-up keys and values. */

import { DensePolicy } from "../attention/dense.ts";
import type { QueryBlocks, Selection } from "../attention/policy.ts";
import type { AttentionOps } from "../backend/backend.ts";
import { WasmAttention } from "../backend/wasm/wasm-attention.ts";
import type { WasmOps } from "../backend/wasm/wasm-ops.ts";
import type { GpuDevice } from "../backend/webgpu/device.ts";
import { HybridAttention } from "../backend/webgpu/hybrid-attention.ts";
import { type KvShape, PAGE_TOKENS } from "../kv/page.ts";

/** Milliseconds at one context length. */
export interface AttentionTimes {
  readonly context: number;
  readonly prefillMsPerToken: number;
  /** One token. */
  readonly decodeMs: number;
}

const CHUNK = 128;
const BLOCK = 32;
const REPEATS = 3;

export async function measureWasm(
  ops: WasmOps,
  shape: KvShape,
  lengths: readonly number[],
): Promise<AttentionTimes[]> {
  const oneLayer = { ...shape, nLayers: 1 };
  return measure(ops, new WasmAttention(ops, oneLayer), oneLayer, lengths);
}

export async function measureGpu(
  gpu: GpuDevice,
  ops: WasmOps,
  shape: KvShape,
  lengths: readonly number[],
): Promise<AttentionTimes[]> {
  const oneLayer = { ...shape, nLayers: 1 };
  const attention = await HybridAttention.create(gpu, ops.heap, oneLayer);
  try {
    return await measure(ops, attention, oneLayer, lengths);
  } finally {
    attention.dispose();
  }
}

/** `lengths` ascending. */
async function measure(
  ops: WasmOps,
  attention: AttentionOps,
  shape: KvShape,
  lengths: readonly number[],
): Promise<AttentionTimes[]> {
  const { nHeads, nKvHeads, headDim } = shape;
  const dense = new DensePolicy({ ...shape, window: [undefined] });
  const budget = { tokens: Infinity, sinks: 0, local: 0, denseBelow: Infinity };
  const cache = attention.createCache();
  try {
    /** Attends `qLen` new tokens; returns milliseconds. Tokens are kept if `commits`. */
    const attend = async (qLen: number, isLocal: boolean, commits: boolean): Promise<number> => {
      const blocks = { qStart: cache.nTokens, qLen, blockSize: qLen === 1 ? 1 : BLOCK };
      using q = madeUp(ops, qLen, nHeads * headDim);
      using k = madeUp(ops, qLen, nKvHeads * headDim);
      using v = madeUp(ops, qLen, nKvHeads * headDim);
      const selections = isLocal ? [ownPages(shape, blocks)] : dense.select(0, blocks, budget);
      cache.reserve(qLen);
      const start = performance.now();
      using _out = await attention.attend({
        layer: 0,
        q,
        k,
        v,
        cache,
        blocks,
        selections,
        scale: 1 / Math.sqrt(headDim),
      });
      const ms = performance.now() - start;
      if (commits) cache.commit(qLen);
      else cache.truncate(cache.nTokens);
      return ms;
    };
    const median = async (qLen: number): Promise<number> => {
      await attend(qLen, false, false); // compiles, warms up
      const times: number[] = [];
      for (let i = 0; i < REPEATS; i++) times.push(await attend(qLen, false, false));
      return times.sort((a, b) => a - b)[Math.floor(REPEATS / 2)]!;
    };
    const results: AttentionTimes[] = [];
    for (const context of lengths) {
      while (cache.nTokens < context) await attend(Math.min(CHUNK, context - cache.nTokens), true, true);
      const prefillMsPerToken = (await median(CHUNK)) / CHUNK;
      results.push({ context, prefillMsPerToken, decodeMs: await median(1) });
    }
    return results;
  } finally {
    cache.dispose();
  }
}

/** Numbers of the size of real queries, keys and values. */
function madeUp(ops: WasmOps, nTokens: number, width: number) {
  const tensor = ops.heap.create(nTokens, width);
  tensor.view.forEach((_, i, view) => {
    view[i] = Math.sin(i * 12.9898);
  });
  return tensor;
}

/** Each block reads only its own pages: fills the cache at little cost. */
function ownPages(shape: KvShape, blocks: QueryBlocks): Selection {
  const rowPtr = [0];
  const page: number[] = [];
  for (let first = 0; first < blocks.qLen; first += blocks.blockSize) {
    const last = Math.min(first + blocks.blockSize, blocks.qLen) - 1;
    const to = Math.floor((blocks.qStart + last) / PAGE_TOKENS);
    for (let p = Math.floor((blocks.qStart + first) / PAGE_TOKENS); p <= to; p++) page.push(p);
    rowPtr.push(page.length);
  }
  return {
    layer: 0,
    nKvHeads: shape.nKvHeads,
    nBlocks: rowPtr.length - 1,
    headShared: true,
    rowPtr: Uint32Array.from(rowPtr),
    page: Uint32Array.from(page),
    segment: "tail",
  };
}
