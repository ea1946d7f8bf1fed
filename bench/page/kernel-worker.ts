/** A worker that times Inlay's WASM kernels by themselves: one job, one answer. */

import { DensePolicy } from "../../src/attention/dense.ts";
import type { Tensor, Weight } from "../../src/backend/backend.ts";
import { WasmModule } from "../../src/backend/wasm/module.ts";
import { WasmAttention } from "../../src/backend/wasm/wasm-attention.ts";
import { WasmOps } from "../../src/backend/wasm/wasm-ops.ts";
import { type TensorType, tensorType } from "../../src/gguf/tensor-types.ts";
import { Tokenizer } from "../../src/tokenizer/tokenizer.ts";
import { vocabularyFromMetadata } from "../../src/tokenizer/vocabulary.ts";
import { ggufMetadata } from "../../test/fixtures/tokenizer-gguf.ts";
import type {
  AttentionJob,
  KernelRequest,
  KernelTimes,
  LayerShape,
  MatmulJob,
  TokenizerJob,
} from "./kernel-jobs.ts";

/** Before anything is timed: by then the browser has compiled the loops with its optimizing compiler. */
const WARM_UP_SECONDS = 0.4;
/** A round repeats its work until this much time has passed. */
const ROUND_SECONDS = 0.15;
/** Queries per block of a prefill, as in src/model/forward.ts. */
const BLOCK_SIZE = 32;

function secondsOf(work: () => void): number {
  const start = performance.now();
  work();
  return (performance.now() - start) / 1000;
}

/** Seconds per call of `work`, round by round. */
function time(work: () => void, rounds: number): number[] {
  for (let total = 0; total < WARM_UP_SECONDS; ) total += secondsOf(work);
  return Array.from({ length: rounds }, () => {
    let total = 0;
    let n = 0;
    for (; total < ROUND_SECONDS; n++) total += secondsOf(work);
    return total / n;
  });
}

/** A matrix with varied bytes. Read as f16 they are normal numbers: arithmetic on subnormal scales is slow, and no model has them. */
async function makeWeight(ops: WasmOps, type: TensorType, rows: number, cols: number): Promise<Weight> {
  const rowBytes = (cols / type.blockElements) * type.blockBytes;
  const row = Uint8Array.from(
    { length: rowBytes },
    (_, i) => ((Math.imul(i + 1, 2654435761) >>> 25) % 0x3c) + 0x20,
  );
  const byteLength = rows * rowBytes;
  const info = { name: "w", dims: [cols, rows], type, offset: 0, byteLength, rows, cols, shard: 0 };
  const writer = ops.createWeight(info);
  for (let i = 0; i < rows; i++) writer.write(row);
  return writer.finish();
}

/** Maps of a layer that share an input, and that input's width. */
interface Group {
  readonly cols: number;
  readonly weights: Weight[];
}

function groupsOf({ dModel, nHeads, nKvHeads, headDim, dFfn }: LayerShape) {
  const [q, kv] = [nHeads * headDim, nKvHeads * headDim];
  return [
    { cols: dModel, rows: [q, kv, kv] },
    { cols: q, rows: [dModel] },
    { cols: dModel, rows: [dFfn, dFfn] },
    { cols: dFfn, rows: [dModel] },
  ];
}

function randomRows(ops: WasmOps, nTokens: number, width: number): Tensor {
  const tensor = ops.heap.create(nTokens, width);
  tensor.view.set(Float32Array.from({ length: nTokens * width }, (_, i) => ((i * 7919) % 1999) / 1000 - 1));
  return tensor;
}

async function timeMatmul(wasm: WasmModule, job: MatmulJob, rounds: number): Promise<KernelTimes> {
  const ops = new WasmOps(wasm);
  const type = tensorType(job.type);
  const groups: Group[] = [];
  while (ops.memory().weights < job.minBytes)
    for (const { cols, rows } of groupsOf(job.shape)) {
      const weights: Weight[] = [];
      for (const n of rows) weights.push(await makeWeight(ops, type, n, cols));
      groups.push({ cols, weights });
    }
  const inputs = new Map<number, Tensor>();
  for (const { cols } of groups) if (!inputs.has(cols)) inputs.set(cols, randomRows(ops, job.nTokens, cols));
  const work = () => {
    for (const { cols, weights } of groups) {
      const maps = weights.map((weight) => ({ weight }));
      for (const out of ops.linear(inputs.get(cols)!, maps)) out[Symbol.dispose]();
    }
  };
  const nWeights = groups.flatMap(({ weights }) => weights).reduce((sum, w) => sum + w.rows * w.cols, 0);
  return {
    seconds: time(work, rounds),
    macs: nWeights * job.nTokens,
    bytes: (nWeights / type.blockElements) * type.blockBytes,
  };
}

function timeAttention(wasm: WasmModule, job: AttentionJob, rounds: number): KernelTimes {
  const { nLayers, format, context, nQueries } = job;
  const { nHeads, nKvHeads, headDim } = job.shape;
  const ops = new WasmOps(wasm);
  const attention = new WasmAttention(ops, { nLayers, nHeads, nKvHeads, headDim, format });
  const cache = attention.createCache();
  cache.reserve(context);
  cache.commit(context - nQueries);
  const blocks = {
    qStart: context - nQueries,
    qLen: nQueries,
    blockSize: nQueries === 1 ? 1 : BLOCK_SIZE,
  };
  const window = new Array<undefined>(nLayers).fill(undefined);
  const policy = new DensePolicy({ nLayers, nHeads, nKvHeads, headDim, window });
  const selections = policy.select(0, blocks, { tokens: context, sinks: 0, local: 0, denseBelow: context });
  const q = randomRows(ops, nQueries, nHeads * headDim);
  const k = randomRows(ops, nQueries, nKvHeads * headDim);
  const call = { q, k, v: k, cache, blocks, selections, scale: headDim ** -0.5 };
  const work = () => {
    for (let layer = 0; layer < nLayers; layer++) attention.attend({ ...call, layer })[Symbol.dispose]();
  };
  // (query, key) pairs that the causal mask leaves.
  const pairs = nQueries * (context - nQueries) + (nQueries * (nQueries + 1)) / 2;
  return {
    seconds: time(work, rounds),
    macs: nLayers * pairs * nHeads * headDim * 2,
    bytes: nLayers * context * nKvHeads * headDim * 2 * (format === "f32" ? 4 : 2),
  };
}

async function timeTokenizer(wasm: WasmModule, job: TokenizerJob, rounds: number): Promise<KernelTimes> {
  const [file, utf8] = await Promise.all([fetchBytes(job.vocabulary), fetchBytes(job.text)]);
  const text = new TextDecoder().decode(utf8);
  const tokenizer = Tokenizer.create(wasm, vocabularyFromMetadata(ggufMetadata(file)));
  const seconds = time(() => void tokenizer.encode(text), rounds);
  return { seconds, macs: 0, bytes: utf8.byteLength };
}

async function fetchBytes(url: string): Promise<Uint8Array<ArrayBuffer>> {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url}: HTTP status ${response.status}`);
  return new Uint8Array(await response.arrayBuffer());
}

async function run({ job, rounds }: KernelRequest): Promise<KernelTimes> {
  const module = await WebAssembly.compile(await fetchBytes(job.wasm));
  const wasm = await WasmModule.instantiate({ module, shared: false });
  if (job.kind === "matmul") return timeMatmul(wasm, job, rounds);
  return job.kind === "attention" ? timeAttention(wasm, job, rounds) : timeTokenizer(wasm, job, rounds);
}

addEventListener("message", async ({ data }: MessageEvent<KernelRequest>) => {
  try {
    postMessage({ times: await run(data) });
  } catch (error) {
    postMessage({ error: error instanceof Error ? error.message : String(error) });
  }
});
