/** Decoding after a clustered prompt beside dense attention of the same queries, and what clustering takes. */

import { WasmAttention } from "../src/backend/wasm/wasm-attention.ts";
import { WasmOps } from "../src/backend/wasm/wasm-ops.ts";
import { GpuOps } from "../src/backend/webgpu/gpu-ops.ts";
import { GpuPairAttention } from "../src/backend/webgpu/gpu-pair-attention.ts";
import type { PageFormat } from "../src/kv/page.ts";
import type { QuantizedFormat } from "../src/kv/quantize.ts";
import {
  measureSqueezed,
  type SqueezedResult,
  type SqueezedVariant,
} from "../src/placement/measure-squeezed.ts";
import { measureSqueezedGpu, type SqueezedGpuTimes } from "../src/placement/measure-squeezed-gpu.ts";
import { nodeDevice } from "../test/fixtures/node-gpu.ts";
import { cannotRun, instantiate } from "../test/fixtures/wasm.ts";
import type { Section } from "./section.ts";
import { limitResult, pairedResult } from "./statistics.ts";

const HEADS = { nLayers: 1, nHeads: 9, nKvHeads: 3, headDim: 64 } as const;
const SHAPE = { ...HEADS, window: [undefined] };
const LENGTH = 16_384;

/** The cells of one prompt. */
interface Prompt {
  readonly format: PageFormat;
  readonly cold: QuantizedFormat | undefined;
  readonly cells: readonly (SqueezedVariant & { readonly id: string })[];
}

const cell = (name: string, sparsity: number, isTwoLevel = false) => ({
  id: `squeezed-decode/16k/${name}/wasm`,
  sparsity,
  isTwoLevel,
});

const PROMPTS: readonly Prompt[] = [
  {
    ...{ format: "f32", cold: "q2" },
    cells: [
      ...[70, 80, 90].map((percent) => cell(`${percent}`, percent / 100)),
      cell("90-two-level", 0.9, true),
    ],
  },
  { format: "f32", cold: "q4", cells: [cell("90-q4", 0.9)] },
  { format: "f16", cold: undefined, cells: [cell("90-f16", 0.9)] },
];

/** Tokens that are decoded on the GPU before it is waited for. */
const GPU_TOKENS = 8;
const GPU_ID = "squeezed-decode/16k/90/webgpu";

const CLUSTER_ID = "squeezed-cluster/16k/wasm";

async function measure({ format, cold, cells }: Prompt, rounds: number): Promise<SqueezedResult> {
  const ops = new WasmOps(await instantiate(cannotRun("relaxed") ? "simd" : "relaxed"));
  const attention = new WasmAttention(ops, { ...HEADS, format });
  try {
    const variants = { cold, length: LENGTH, variants: cells, nTokens: 48, rounds };
    return await measureSqueezed({ ops, attention, shape: SHAPE, ...variants });
  } finally {
    attention.dispose();
  }
}

async function measureGpu(rounds: number): Promise<SqueezedGpuTimes> {
  const found = await nodeDevice();
  if (found.skip !== false) throw new Error(found.skip);
  const { device } = found;
  const ops = new WasmOps(await instantiate(cannotRun("relaxed") ? "simd" : "relaxed"));
  const attention = new WasmAttention(ops, { ...HEADS, format: "f32" });
  const gpuOps = await GpuOps.create(device);
  const gpuAttention = await GpuPairAttention.create(gpuOps, { ...HEADS, nLayers: 2, format: "f16" });
  try {
    const variant = { sparsity: 0.9, isTwoLevel: false };
    const sizes = { shape: SHAPE, length: LENGTH, nTokens: GPU_TOKENS, rounds };
    return await measureSqueezedGpu({ ops, attention, gpuOps, gpuAttention, variant, ...sizes });
  } finally {
    gpuAttention.dispose();
    gpuOps.dispose();
    attention.dispose();
    device.dispose();
  }
}

const share = (x: number) => `${(100 * x).toFixed(1)} %`;

export const squeezed: Section = {
  title: "Squeezed attention",
  about:
    "`squeezed-decode`: milliseconds of one token's attention in one layer of smollm2-135m's shape (9 heads on 3 of 64) after a " +
    "clustered prompt of 16,384 made-up tokens, lookup included, beside dense attention of the same queries over the same pages: " +
    "2-bit ones, or q4 or f16 where the id says so. The share of keys that is left out (70, 80, 90 %) was calibrated with the " +
    "prompt's own last queries; the last 128 tokens and the first 32 are read besides. In Node, one thread of the relaxed build. " +
    "`webgpu`: the same on device webgpu over f16 pages, which were written into its cache, on SwiftShader; nothing is read back " +
    "between lookup and attention, and 8 tokens are recorded before the GPU is waited for. " +
    "`squeezed-cluster`: seconds of clustering that layer, beside " +
    "the dense attention of the prompt's prefill in it.",
  baseline: "dense",
  owns: (id) => /^squeezed-(decode|cluster)\//.test(id),
  ids: [...PROMPTS.flatMap(({ cells }) => cells.map(({ id }) => id)), GPU_ID, CLUSTER_ID],
  leftOut: [{ what: "squeezed decoding on a GPU that is not software", reason: "this machine has none" }],
  needsPeer: false,
  async *run({ repeat, log }, wanted) {
    for (const [i, prompt] of PROMPTS.entries()) {
      const cells = prompt.cells.filter(({ id }) => wanted.has(id));
      const clusters = i === 0 && wanted.has(CLUSTER_ID);
      if (cells.length === 0 && !clusters) continue;
      const result = await measure({ ...prompt, cells }, repeat ?? 7);
      for (const [at, { dense, selection, attention, selected, inPages }] of result.variants.entries()) {
        const { id } = cells[at]!;
        log(`  ${id}: ${share(selected)} of the keys selected, in pages that hold ${share(inPages)}`);
        yield pairedResult(
          id,
          "ms",
          attention.map((ms, round) => ms + selection[round]!),
          dense,
        );
      }
      if (clusters) yield limitResult(CLUSTER_ID, "s", [result.clusterSeconds], result.prefillSeconds);
    }
    if (!wanted.has(GPU_ID)) return;
    const { dense, squeezed, selected, inPages } = await measureGpu(repeat ?? 7);
    log(`  ${GPU_ID}: ${share(selected)} of the keys selected, in pages that hold ${share(inPages)}`);
    yield pairedResult(GPU_ID, "ms", squeezed, dense);
  },
};
