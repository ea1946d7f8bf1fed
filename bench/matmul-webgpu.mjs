// Times the matrix products of real models on WebGPU in Node: one token (gemv) and a chunk of a prompt (gemm).
//
//   node bench/matmul-webgpu.mjs [--models smollm2-135m,llama3.2-1b] [--types Q4_0,Q8_0,Q4_K,F16] [--tokens 1,512]
//                                [--weights 256] [--tuning '{"gemmTokens":64}'] [--json]
//
// On the first GPU that the package `webgpu` finds, or on Chromium's software adapter where VK_ICD_FILENAMES names none;
// there the defaults are one small model and short chunks. One submit multiplies with copies of a matrix that together have
// `--weights` MiB, more than caches hold, as the layers of a model follow each other; the time is the median of several
// submits, the round trip of an empty one taken off, divided by the copies. GB/s counts the weights' bytes once per
// product; the copy moves 64 MiB and counts bytes read and written. Absolute times of a software adapter mean
// nothing; ratios in one run do.

import { register } from "node:module";
import { parseArgs } from "node:util";
import { register as registerTsx } from "tsx/esm/api";

registerTsx();
register("../test/fixtures/wgsl-loader.mjs", import.meta.url);
const { nodeDevice } = await import("../test/fixtures/node-gpu.ts");
const { GpuOps } = await import("../src/backend/webgpu/gpu-ops.ts");
const { BufferUse } = await import("../src/backend/webgpu/usage.ts");
const { tensorType } = await import("../src/gguf/tensor-types.ts");
const { PRESETS } = await import("../tools/gguf/presets.mjs");

const found = await nodeDevice();
if (found.skip !== false) {
  console.error(`no GPU: ${found.skip}`);
  process.exit(1);
}
const { device } = found;
const { isSoftware } = device;

const { values: options } = parseArgs({
  options: {
    models: { type: "string", default: isSoftware ? "smollm2-135m" : "smollm2-135m,llama3.2-1b" },
    types: { type: "string", default: "Q4_0,Q8_0,Q4_K,F16" },
    tokens: { type: "string", default: isSoftware ? "1,32" : "1,512" },
    weights: { type: "string", default: isSoftware ? "1" : "256" },
    tuning: { type: "string", default: "{}" },
    json: { type: "boolean", default: false },
  },
});

/** Submits per number: at least these many, and until this much time has passed. */
const MIN_RUNS = 5;
const MIN_MS = 300;
/** A submit that takes longer than this needs no repetition. */
const LONG_MS = 3000;
const MAX_COPIES = 256;
const COPY_BYTES = 64 * 2 ** 20;

/** The matrices of a model's layers by what they are, (rows, cols). */
function matricesOf(model) {
  const { dModel, nHeads, nKvHeads, dFfn, headDim = dModel / nHeads, vocabSize } = PRESETS[model];
  return {
    "q, output": [nHeads * headDim, dModel],
    "k, v": [nKvHeads * headDim, dModel],
    "gate, up": [dFfn, dModel],
    down: [dModel, dFfn],
    logits: [vocabSize, dModel],
  };
}

/** Milliseconds of one submit of what `record` records: median, without the first unless it is long. */
async function time(record) {
  const { queue } = device.handle;
  const once = async () => {
    const start = performance.now();
    record();
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

/** Bytes per millisecond, read and written, of a copy between two buffers. */
async function copyBandwidth(emptyMs) {
  const make = () => device.handle.createBuffer({ size: COPY_BYTES, usage: BufferUse.storage });
  const [from, to] = [make(), make()];
  const ms = await time(() => {
    const encoder = device.handle.createCommandEncoder();
    encoder.copyBufferToBuffer(from, 0, to, 0, COPY_BYTES);
    device.handle.queue.submit([encoder.finish()]);
  });
  from.destroy();
  to.destroy();
  return (2 * COPY_BYTES) / Math.max(0.001, ms - emptyMs);
}

/** Uploads a matrix of this shape whose bytes are varied and whose scales are finite. */
async function randomWeight(ops, type, rows, cols) {
  const rowBytes = (cols / type.blockElements) * type.blockBytes;
  const row = Uint8Array.from({ length: rowBytes }, (_, i) => (Math.imul(i + 1, 2654435761) >>> 25) % 0x5c);
  const byteLength = rows * rowBytes;
  const info = { name: "w", dims: [cols, rows], type, offset: 0, byteLength, rows, cols, shard: 0 };
  const writer = ops.createWeight(info);
  for (let i = 0; i < rows; i++) writer.write(row);
  return { weight: await writer.finish(), byteLength };
}

/** One shape in one type: a row of the report for every number of tokens. */
async function* timeMatrix(model, name, type, emptyMs) {
  const [rows, cols] = matricesOf(model)[name];
  const ops = await GpuOps.create(device, { tuning: JSON.parse(options.tuning) });
  try {
    const { byteLength, weight } = await randomWeight(ops, type, rows, cols);
    const nCopies = Math.min(MAX_COPIES, Math.ceil((Number(options.weights) * 2 ** 20) / byteLength));
    const weights = [weight];
    while (weights.length < nCopies) weights.push((await randomWeight(ops, type, rows, cols)).weight);
    for (const nTokens of options.tokens.split(",").map(Number)) {
      if (name === "logits" && nTokens > 1) continue; // of a prompt, only the last token's are computed
      const x = ops.tensors.upload(new Float32Array(nTokens * cols).fill(0.01), cols);
      const submitMs = await time(() => {
        for (const w of weights) for (const out of ops.linear(x, [{ weight: w }])) out[Symbol.dispose]();
        ops.recorder.submit();
      });
      x[Symbol.dispose]();
      const ms = Math.max(1e-6, submitMs - emptyMs) / nCopies;
      const gmacs = (rows * cols * nTokens) / ms / 1e6;
      yield {
        model,
        name,
        rows,
        cols,
        type: type.name,
        nTokens,
        ms,
        gmacs,
        weightGBs: byteLength / ms / 1e6,
      };
    }
  } finally {
    ops.dispose();
  }
}

const emptyMs = await time(() => device.handle.queue.submit([]));
const copyGBs = (await copyBandwidth(emptyMs)) / 1e6;
if (!options.json) {
  console.log(device.adapterInfo);
  console.log(`empty submit ${emptyMs.toFixed(2)} ms, copy ${copyGBs.toFixed(1)} GB/s`);
  console.log(
    "model           matrix       rows x cols     type    tokens         ms    GMAC/s      GB/s  of copy",
  );
}
const report = [];
for (const model of options.models.split(",")) {
  for (const typeName of options.types.split(",")) {
    for (const name of Object.keys(matricesOf(model))) {
      for await (const row of timeMatrix(model, name, tensorType(typeName), emptyMs)) {
        report.push(row);
        if (options.json) continue;
        const { rows, cols, type, nTokens, ms, gmacs, weightGBs } = row;
        console.log(
          model.padEnd(15),
          name.padEnd(12),
          `${rows} x ${cols}`.padEnd(15),
          type.padEnd(6),
          String(nTokens).padStart(7),
          ms.toPrecision(3).padStart(10),
          gmacs.toPrecision(3).padStart(9),
          weightGBs.toPrecision(3).padStart(9),
          `${((100 * weightGBs) / copyGBs).toPrecision(2)} %`.padStart(8),
        );
      }
    }
  }
}
if (options.json)
  console.log(JSON.stringify({ adapter: device.adapterInfo, emptyMs, copyGBs, rows: report }));
device.dispose();
