// Times dense attention on WebGPU in Node: prefill of 512 tokens and decode of one, after 512, 2048 and 8192 tokens.
//
//   node bench/attention-webgpu.mjs [--heads 9] [--kv-heads 3] [--head-dim 64] [--format f16|f32] [--json]
//
// On the first GPU that the package `webgpu` finds, or on Chromium's software adapter where VK_ICD_FILENAMES names none.
// Every time is the median of several submits of one layer each, the round trip of an empty submit taken off. GB/s counts
// each listed page once per KV head and query block, as an ideal kernel would read it; the copy moves 64 MiB and
// counts bytes read and written. Absolute times of a software adapter mean nothing; ratios in one run do.

import { register } from "node:module";
import { parseArgs } from "node:util";
import { register as registerTsx } from "tsx/esm/api";

registerTsx();
register("../test/fixtures/wgsl-loader.mjs", import.meta.url);
const { nodeDevice } = await import("../test/fixtures/node-gpu.ts");
const { GpuAttention } = await import("../src/backend/webgpu/attention.ts");
const { BufferUse } = await import("../src/backend/webgpu/usage.ts");
const { DensePolicy } = await import("../src/attention/dense.ts");

const { values: options } = parseArgs({
  options: {
    heads: { type: "string", default: "9" },
    "kv-heads": { type: "string", default: "3" },
    "head-dim": { type: "string", default: "64" },
    format: { type: "string", default: "f16" },
    json: { type: "boolean", default: false },
  },
});

const CONTEXTS = [512, 2048, 8192];
const PREFILL_TOKENS = 512;
const BLOCK_SIZE = 64;
/** Submits per number: at least these many, and until this much time has passed. */
const MIN_RUNS = 3;
const MIN_MS = 500;
/** A run that takes longer than this needs no repetition. */
const LONG_MS = 3000;
const COPY_BYTES = 64 * 2 ** 20;

const shape = {
  nLayers: 1,
  nHeads: Number(options.heads),
  nKvHeads: Number(options["kv-heads"]),
  headDim: Number(options["head-dim"]),
  format: options.format,
};

/** Milliseconds of one submit of what `record` encodes: median, without the first unless it is long. */
async function time(device, record) {
  const { queue } = device.handle;
  const once = async () => {
    const start = performance.now();
    const encoder = device.handle.createCommandEncoder();
    record(encoder);
    queue.submit([encoder.finish()]);
    await queue.onSubmittedWorkDone();
    return performance.now() - start;
  };
  const first = await once();
  if (first > LONG_MS) return first;
  const times = [];
  for (let total = 0; times.length < MIN_RUNS || total < MIN_MS; total += times.at(-1))
    times.push(await once());
  return times.sort((a, b) => a - b)[times.length >> 1];
}

function buffer(device, byteLength) {
  return device.handle.createBuffer({ size: byteLength, usage: BufferUse.storage });
}

/** Bytes per millisecond, read and written, of a copy between two buffers. */
async function copyBandwidth(device, emptyMs) {
  const [from, to] = [buffer(device, COPY_BYTES), buffer(device, COPY_BYTES)];
  const ms = await time(device, (encoder) => encoder.copyBufferToBuffer(from, 0, to, 0, COPY_BYTES));
  from.destroy();
  to.destroy();
  return (2 * COPY_BYTES) / Math.max(0.001, ms - emptyMs);
}

/** Attention of the last `qLen` of `context` tokens. */
async function timeAttention(device, attention, qLen, context, emptyMs) {
  const { nHeads, nKvHeads, headDim, format } = shape;
  const cache = attention.createCache();
  cache.reserve(context);
  cache.commit(context - qLen);
  await attention.prepare();
  const blocks = { qStart: context - qLen, qLen, blockSize: qLen === 1 ? 1 : BLOCK_SIZE };
  const policy = new DensePolicy({ nLayers: 1, nHeads, nKvHeads, headDim, window: [undefined] });
  const selections = policy.select(0, blocks, { tokens: context, sinks: 0, local: 0, denseBelow: context });
  const rows = (heads) => buffer(device, qLen * heads * headDim * 4);
  const [q, k, v, out] = [rows(nHeads), rows(nKvHeads), rows(nKvHeads), rows(nHeads)];
  const ms =
    (await time(device, (encoder) => {
      const pass = encoder.beginComputePass();
      attention.encode(pass, { layer: 0, q, k, v, out, cache, blocks, selections, scale: headDim ** -0.5 });
      pass.end();
      attention.submitted();
    })) - emptyMs;
  for (const b of [q, k, v, out]) b.destroy();
  cache.dispose();
  const pairs = qLen * (context - qLen) + (qLen * (qLen + 1)) / 2; // (query, key) pairs that count
  const pageBytes = 2 * 32 * headDim * (format === "f16" ? 2 : 4);
  return {
    phase: qLen === 1 ? "decode" : `prefill ${qLen}`,
    context,
    ms,
    gflops: (4 * pairs * nHeads * headDim) / ms / 1e6,
    kvGBs: (selections[0].page.length * nKvHeads * pageBytes) / ms / 1e6,
  };
}

const found = await nodeDevice();
if (found.skip !== false) {
  console.error(`no GPU: ${found.skip}`);
  process.exit(1);
}
const { device } = found;
const emptyMs = await time(device, () => {});
const copyGBs = (await copyBandwidth(device, emptyMs)) / 1e6;
const attention = await GpuAttention.create(device, shape);
const rows = [];
for (const qLen of [PREFILL_TOKENS, 1])
  for (const context of CONTEXTS) rows.push(await timeAttention(device, attention, qLen, context, emptyMs));
attention.dispose();
device.dispose();

if (options.json) {
  console.log(JSON.stringify({ adapter: device.adapterInfo, shape, emptyMs, copyGBs, rows }));
} else {
  const { nHeads, nKvHeads, headDim, format } = shape;
  console.log(`${device.adapterInfo}; ${nHeads}:${nKvHeads} heads of ${headDim}, ${format} pages`);
  console.log(`empty submit ${emptyMs.toFixed(2)} ms, copy ${copyGBs.toFixed(1)} GB/s`);
  console.log("phase          context         ms    GFLOP/s   KV GB/s   of copy");
  for (const { phase, context, ms, gflops, kvGBs } of rows)
    console.log(
      phase.padEnd(12),
      String(context).padStart(9),
      ms.toFixed(2).padStart(10),
      gflops.toPrecision(3).padStart(10),
      kvGBs.toPrecision(3).padStart(9),
      `${((100 * kvGBs) / copyGBs).toPrecision(2)} %`.padStart(9),
    );
}
