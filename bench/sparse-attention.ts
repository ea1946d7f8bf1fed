/** Sparse prefill beside our own dense flash kernel: attention of one layer over a whole prompt. */

import { type AttentionBench, attentionResult, benchAttention } from "./attention.ts";
import type { Section } from "./section.ts";

/** Prompt lengths in tokens. */
const LENGTHS = {
  wasm: [2048, 4096, 8192, 16384, 32768],
  webgpu: [1024, 2048, 8192, 16384, 32768],
} as const;

/** A software adapter takes half a minute for one dense call here: the prompt's middle one stands for all, once. */
const LONG_ON_WEBGPU = 8192;

const idOf = (device: "wasm" | "webgpu", length: number) => `dhsa-prefill/${length / 1024}k/${device}`;

export const sparseAttention: Section = {
  title: "Sparse prefill",
  about:
    "`dhsa` at a budget of 25 % of the keys, selection included, beside our own dense flash kernel: milliseconds for the " +
    "attention of a whole prompt in one layer of smollm2-135m (9 heads on 3 of 64). In Node, one thread of the relaxed " +
    "build; WebGPU is SwiftShader with f16 pages. From 8K on, calls spread over the prompt are timed and scaled up; on " +
    "WebGPU the one in the middle, once.",
  baseline: "dense",
  owns: (id) => id.startsWith("dhsa-prefill/"),
  ids: Object.entries(LENGTHS).flatMap(([device, lengths]) =>
    lengths.map((length) => idOf(device as "wasm" | "webgpu", length)),
  ),
  leftOut: [{ what: "sparse prefill on a GPU that is not software", reason: "this machine has none" }],
  needsPeer: false,
  async *run({ repeat, log }, wanted) {
    for (const device of ["wasm", "webgpu"] as const) {
      for (const length of LENGTHS[device]) {
        const id = idOf(device, length);
        if (!wanted.has(id)) continue;
        const isSlow = device === "webgpu" && length >= LONG_ON_WEBGPU;
        const bench: AttentionBench = {
          ...{ policy: "dhsa", budget: 0.25, device, build: "relaxed" },
          format: device === "wasm" ? "f32" : "f16",
          rounds: repeat ?? (isSlow ? 1 : 3),
          maxCalls: isSlow ? 1 : undefined,
        };
        for await (const times of benchAttention(bench, [length])) {
          log(`${id}: ${(100 * times.keysRead).toFixed(1)} % of the keys read`);
          yield attentionResult(bench, times);
        }
      }
    }
  },
};
