/** Inlay's WASM kernels by themselves, one thread, beside what the hardware allows. */

import fs from "node:fs";
import path from "node:path";
import { tensorType } from "../src/gguf/tensor-types.ts";
import { PRESETS, type PresetName } from "../tools/gguf/model.mjs";
import { ROOT } from "../tools/setup/shell.mjs";
import type { KernelJob, KernelTimes, LayerShape } from "./page/kernel-jobs.ts";
import type { BenchResult } from "./report.ts";
import type { Section } from "./section.ts";
import { limitResult } from "./statistics.ts";

/**
 * Limits of one core of the machine of reference (an AMD EPYC, Zen 4), measured in WASM in Chromium: the fastest chain of
 * int8 dot products (GMAC/s), of f32 multiply-adds (GMAC/s), and streaming reads from memory (GB/s).
 */
const LIMITS = {
  relaxed: { int8: 87, f32: 27 },
  plain: { int8: 43, f32: 24 },
  stream: 27,
} as const;

/** Bytes per second of English that the tokenizers shall reach, in MB/s. */
const TOKENIZER_TARGET = 5;

const ROUNDS = 7;
const BUILDS = { relaxed: "/dist/inlay-relaxed.wasm", plain: "/dist/inlay-simd.wasm" } as const;
type Build = keyof typeof BUILDS;

/** Weights of decode come from memory: more of them than any cache holds. */
const GEMV_BYTES = 96 * 2 ** 20;
/** Those of prefill are used for many tokens at a time. */
const GEMM_BYTES = 8 * 2 ** 20;
const GEMM_TOKENS = 128;

/** What is timed, and the results that its times give. */
interface KernelCell {
  readonly ids: readonly string[];
  readonly job: KernelJob;
  results(times: KernelTimes): BenchResult[];
}

function layerShape(preset: PresetName): LayerShape {
  const { dModel, nHeads, nKvHeads, headDim = dModel / nHeads, dFfn } = PRESETS[preset];
  return { dModel, nHeads, nKvHeads, headDim, dFfn };
}

const gigaPerSecond = (amount: number, { seconds }: KernelTimes) => seconds.map((s) => amount / s / 1e9);

function matmulCell(
  typeName: "Q4_0" | "Q8_0" | "Q4_K",
  preset: PresetName,
  nTokens: number,
  build: Build,
): KernelCell {
  const kernel = nTokens === 1 ? "gemv" : "gemm";
  // The small model is the usual one; others are named at the end.
  const suffix = preset === "smollm2-135m" ? "" : `/${preset}`;
  const idOf = (what: string) => `kernel/${what}/${typeName.toLowerCase()}/1t/${build}${suffix}`;
  const type = tensorType(typeName);
  const weightsPerByte = type.blockElements / type.blockBytes;
  const peak = LIMITS[build].int8;
  const limit = kernel === "gemm" ? peak : Math.min(peak, LIMITS.stream * weightsPerByte);
  const ids = kernel === "gemm" ? [idOf("gemm")] : [idOf("gemv"), idOf("gemv-read")];
  return {
    ids,
    job: {
      ...{ kind: "matmul", wasm: BUILDS[build], type: typeName, shape: layerShape(preset), nTokens },
      minBytes: kernel === "gemm" ? GEMM_BYTES : GEMV_BYTES,
    },
    results: (times) => [
      limitResult(ids[0]!, "GMAC/s", gigaPerSecond(times.macs, times), limit),
      ...ids.slice(1).map((id) => limitResult(id, "GB/s", gigaPerSecond(times.bytes, times), LIMITS.stream)),
    ],
  };
}

function attentionCell(phase: "decode" | "prefill", format: "f32" | "f16", build: Build): KernelCell {
  const idOf = (what: string) => `kernel/${what}/2048/${format}/1t/${build}`;
  const ids =
    phase === "decode" ? [idOf("attention-decode"), idOf("attention-read")] : [idOf("attention-prefill")];
  const nQueries = phase === "decode" ? 1 : 512;
  const nLayers = phase === "decode" ? PRESETS["smollm2-135m"].nLayers : 2;
  return {
    ids,
    job: {
      ...{ kind: "attention", wasm: BUILDS[build], shape: layerShape("smollm2-135m"), format },
      ...{ nLayers, context: 2048, nQueries },
    },
    results: (times) => [
      limitResult(ids[0]!, "GMAC/s", gigaPerSecond(times.macs, times), LIMITS[build].f32),
      ...ids.slice(1).map((id) => limitResult(id, "GB/s", gigaPerSecond(times.bytes, times), LIMITS.stream)),
    ],
  };
}

function tokenizerCell(vocabulary: string): KernelCell {
  const id = `kernel/tokenizer/${vocabulary}/1t/plain`;
  return {
    ids: [id],
    job: {
      ...{ kind: "tokenizer", wasm: BUILDS.plain },
      vocabulary: `/shared/data/tokenizers/ggml-vocab-${vocabulary}.gguf`,
      text: "/shared/data/text/pride-and-prejudice.txt",
    },
    results: (times) => [
      limitResult(
        id,
        "MB/s",
        times.seconds.map((s) => times.bytes / s / 1e6),
        TOKENIZER_TARGET,
      ),
    ],
  };
}

const hasShared = fs.existsSync(path.resolve(ROOT, "../shared/data/tokenizers"));

const BUILD_NAMES = Object.keys(BUILDS) as Build[];
const CELLS: readonly KernelCell[] = [
  ...(["Q4_0", "Q8_0", "Q4_K"] as const).flatMap((type) =>
    [1, GEMM_TOKENS].flatMap((nTokens) =>
      (["smollm2-135m", "llama3.2-1b"] as const)
        // Blocks of 256 do not fit rows of 576.
        .filter((preset) => type !== "Q4_K" || preset !== "smollm2-135m")
        .flatMap((preset) => BUILD_NAMES.map((build) => matmulCell(type, preset, nTokens, build))),
    ),
  ),
  ...(["decode", "prefill"] as const).flatMap((phase) =>
    (["f32", "f16"] as const).flatMap((format) =>
      BUILD_NAMES.map((build) => attentionCell(phase, format, build)),
    ),
  ),
  ...(hasShared ? ["llama-bpe", "gpt-2", "llama-spm"].map(tokenizerCell) : []),
];

const ABOUT = `One thread, in a worker of the same Chromium. *gemv* and *gemm* are all matrix products of a decoder layer for 1 and ${GEMM_TOKENS} tokens, quantization
of the activations included, on matrices of smollm2-135m or, where the id ends so, of llama3.2-1b (rows of 576 are no multiple of q4_K's 256); gemv streams more weights
than caches hold. *gemv-read* and *attention-read* are the same runs as bytes read. *attention* is the last token (decode) or the last 512 (prefill) of 2048, with the heads of smollm2-135m;
a multiply-add is one of q·k or p·v. *tokenizer* encodes a novel. The limits are those of one Zen 4 core: int8 dot products 87 GMAC/s (plain SIMD 43), f32 multiply-adds 27 (24), memory 27 GB/s
(which bounds gemv at 27 GB/s divided by the bytes per weight); for the tokenizer it is the design's target.`;

export const kernels: Section = {
  title: "Kernels beside the limits",
  about: ABOUT,
  baseline: "limit",
  owns: (id) => id.startsWith("kernel/"),
  ids: CELLS.flatMap(({ ids }) => ids),
  leftOut: [
    { what: "`kernel/…/q4_k` on smollm2-135m", reason: "its rows of 576 are no multiple of q4_K's 256" },
    ...(hasShared
      ? []
      : [
          {
            what: "`kernel/tokenizer`",
            reason: "the vocabularies and texts of ../shared/data are not there",
          },
        ]),
  ],
  needsPeer: false,
  async *run(context, wanted) {
    const browser = await context.browser();
    for (const { ids, job, results } of CELLS) {
      if (!ids.some((id) => wanted.has(id))) continue;
      const times = await browser.runKernel({ job, rounds: context.repeat ?? ROUNDS });
      for (const result of results(times)) {
        context.log(`    ${result.id}: ${result.value.toFixed(1)} ${result.unit}`);
        yield result;
      }
    }
  },
};
