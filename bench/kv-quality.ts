/**
 * What quantized KV caches cost: perplexity and KL divergence beside an f32 cache, and bytes per token.
 *
 * Small trained models read real text and what they wrote themselves token by token, as in decoding, so that every key
 * and value that left the window is read quantized. Counted are the positions that have such keys before them.
 */

import fs from "node:fs";
import { PageConverter } from "../src/backend/wasm/page-converter.ts";
import { Checkpoint } from "../src/engine/yielding.ts";
import { openModelFile } from "../src/gguf/model-file.ts";
import { openSources } from "../src/gguf/source.ts";
import type { CacheFormat } from "../src/kv/page.ts";
import { type QuantizedFormat, SINK_PAGES, settledPages, wholePageBytes } from "../src/kv/quantize.ts";
import { forward } from "../src/model/forward.ts";
import { Tokenizer } from "../src/tokenizer/tokenizer.ts";
import { vocabularyFromMetadata } from "../src/tokenizer/vocabulary.ts";
import { uniform } from "../test/fixtures/random.ts";
import { sharedPath } from "../test/fixtures/shared.ts";
import { densePlan, openTransformer } from "../test/fixtures/transformer.ts";
import { instantiate } from "../test/fixtures/wasm.ts";
import { klDivergence, logSoftmax } from "./distributions.ts";
import { codeBeforeRope } from "./keys-before-rope.ts";
import type { BenchResult } from "./report.ts";
import type { Section } from "./section.ts";

export const MODELS = ["stories260K", "tinystories-656k"] as const;
/** Keys coded before RoPE instead of after it. */
const BEFORE_ROPE = "q2-before-rope";
type Coding = QuantizedFormat | typeof BEFORE_ROPE;

export const FORMATS: readonly QuantizedFormat[] = ["q8", "q4", "q2"];

/** Tokens of a passage: the models' context. */
const LENGTH = 512;

/** Most that perplexity may rise by (algorithms.md G). */
const PERPLEXITY_GOAL: Readonly<Record<QuantizedFormat, number>> = { q8: 0.1, q4: 0.1, q2: 0.3 };

/** Compared with an f32 cache over the same passages. */
export interface KvQuality {
  readonly perplexity: number;
  readonly perplexityF32: number;
  /** Mean of KL(f32 || quantized) over positions, nats. */
  readonly kl: number;
  /** The largest of one position. */
  readonly klMax: number;
  /** Share of positions whose most likely token is the same. */
  readonly sameTop: number;
}

export type ModelName = (typeof MODELS)[number];

/** The F32 file of a model; undefined without the shared data. */
export function modelBytes(name: ModelName): Uint8Array<ArrayBuffer> | undefined {
  const file = sharedPath("data", "models", name, `${name}-f32.gguf`);
  return file === undefined ? undefined : new Uint8Array(fs.readFileSync(file));
}

/** Passages of `LENGTH` tokens: `nEach` of a novel, and as many that the model writes after a novel's words. */
export async function passages(bytes: Uint8Array<ArrayBuffer>, nEach: number): Promise<Uint32Array[]> {
  const novel = fs.readFileSync(sharedPath("data", "text", "alice.txt")!, "utf8");
  const file = await openModelFile(openSources(bytes));
  const vocabulary = vocabularyFromMetadata({ get: (key) => file.metadata.get(key)?.value });
  const tokenizer = Tokenizer.create(await instantiate("simd"), vocabulary);
  const result: Uint32Array[] = [];
  for (let i = 0; i < nEach; i++) {
    const from = 20_000 * (i + 1);
    const text = novel.slice(from, from + 8 * LENGTH);
    const ids = tokenizer.encode(text, { addSpecial: true }).slice(0, LENGTH);
    result.push(ids, await written(bytes, ids.slice(0, 4), uniform(i)));
  }
  tokenizer.dispose();
  await file.close();
  return result;
}

/** What the model writes after `start`, at temperature 1. */
async function written(
  bytes: Uint8Array<ArrayBuffer>,
  start: Uint32Array,
  random: () => number,
): Promise<Uint32Array> {
  const model = await openTransformer(bytes, await instantiate("simd"));
  const ids = Array.from(start);
  const cache = model.attention.createCache();
  for (let at = 0; ids.length < LENGTH; at++) {
    const next = Uint32Array.of(ids[at]!);
    const logits = await forward(model, cache, next, densePlan(model), "last", new Checkpoint(undefined));
    if (at + 1 < ids.length) continue;
    ids.push(draw(logSoftmax(logits!), random()));
  }
  return Uint32Array.from(ids);
}

/** The token at `u`, 0 <= u < 1, of the cumulative distribution. */
function draw(logprobs: Float64Array, u: number): number {
  let rest = u;
  for (const [id, logprob] of logprobs.entries()) {
    rest -= Math.exp(logprob);
    if (rest < 0) return id;
  }
  return logprobs.length - 1;
}

/** Log-probabilities at every position of `ids`, decoded token by token: (ids.length, vocabSize). */
export async function decodedLogprobs(
  bytes: Uint8Array<ArrayBuffer>,
  ids: Uint32Array,
  coding: CacheFormat | Coding,
): Promise<Float64Array[]> {
  const wasm = await instantiate("simd");
  const model = await openTransformer(bytes, wasm, coding === BEFORE_ROPE ? "f32" : coding);
  const converter = new PageConverter(wasm, model.config.headDim);
  const plan = densePlan(model);
  const cache = model.attention.createCache();
  const rows: Float64Array[] = [];
  let nCoded = SINK_PAGES;
  for (let i = 0; i < ids.length; i++) {
    const call = forward(model, cache, ids.subarray(i, i + 1), plan, "last", new Checkpoint(undefined));
    rows.push(logSoftmax((await call)!));
    for (; coding === BEFORE_ROPE && nCoded < settledPages(i + 1); nCoded++)
      await codeBeforeRope(model, cache, nCoded, "q2", converter);
  }
  return rows;
}

/** Compares formats over the passages. */
export async function measureKvQuality(
  bytes: Uint8Array<ArrayBuffer>,
  texts: readonly Uint32Array[],
  formats: readonly Coding[],
): Promise<Map<Coding, KvQuality>> {
  const sums = new Map(
    formats.map((format) => [format, { nll: 0, nllF32: 0, kl: 0, klMax: 0, sameTop: 0, n: 0 }]),
  );
  for (const ids of texts) {
    const exact = await decodedLogprobs(bytes, ids, "f32");
    for (const [format, sum] of sums) {
      const rows = await decodedLogprobs(bytes, ids, format);
      for (let t = 0; t + 1 < ids.length; t++) {
        if (settledPages(t) < 2) continue;
        const [p, q] = [exact[t]!, rows[t]!];
        const kl = klDivergence(p, q);
        sum.n++;
        sum.kl += kl;
        sum.klMax = Math.max(sum.klMax, kl);
        sum.nll -= q[ids[t + 1]!]!;
        sum.nllF32 -= p[ids[t + 1]!]!;
        if (p.indexOf(Math.max(...p)) === q.indexOf(Math.max(...q))) sum.sameTop++;
      }
    }
  }
  return new Map(
    Array.from(sums, ([format, { nll, nllF32, kl, klMax, sameTop, n }]) => [
      format,
      {
        perplexity: Math.exp(nll / n),
        perplexityF32: Math.exp(nllF32 / n),
        kl: kl / n,
        klMax,
        sameTop: sameTop / n,
      },
    ]),
  );
}

/** SmolLM2-135M's heads: 30 layers, 3 KV heads of 64. */
const BYTES_SHAPE = { nLayers: 30, nKvHeads: 3, headDim: 64 };

/** Bytes per token of pages that have left the window. */
function bytesPerToken(format: QuantizedFormat): number {
  const { nLayers, nKvHeads, headDim } = BYTES_SHAPE;
  return (nLayers * nKvHeads * wholePageBytes(format, headDim)) / 32;
}

const F16_BYTES_PER_TOKEN = BYTES_SHAPE.nLayers * BYTES_SHAPE.nKvHeads * 2 * BYTES_SHAPE.headDim * 2;

/** A deterministic comparison: one round. */
function once(id: string, unit: string, value: number, baseline: number): BenchResult {
  const ratio = baseline / value;
  return { id, value, unit, baseline, ratio, n: 1, min: ratio, max: ratio };
}

const NAMES = ["perplexity", "kl"] as const;

const beforeRopeId = (model: ModelName) => `kv-quality/${model}/${BEFORE_ROPE}/kl`;

export const kvQuality: Section = {
  title: "Quantized KV caches",
  about:
    "`perplexity` beside that of an f32 cache; `kl` is the mean of KL(f32 || quantized) in thousandths of a nat beside the divergence that would raise " +
    "the perplexity by our goal (0.1 for q8 and q4, 0.3 for q2); `q2-before-rope` has keys coded before they are rotated, beside q2 as it is, after; `bytes` of keys and values per token that left the window, for " +
    "SmolLM2-135M's heads (30 layers, 3 KV heads of 64), beside f16. The models are small (heads of 8 and 16 channels, where a range is " +
    "shared by few channels), trained, and read Alice in Wonderland and what they wrote themselves, token by token, 512 tokens each; " +
    "sinks (32 tokens) and window (128) are f32, as always.",
  baseline: "other",
  owns: (id) => id.startsWith("kv-quality/"),
  ids: [
    ...MODELS.flatMap((model) => [
      ...FORMATS.flatMap((format) => NAMES.map((name) => `kv-quality/${model}/${format}/${name}`)),
      beforeRopeId(model),
    ]),
    ...FORMATS.map((format) => `kv-quality/${format}/bytes`),
  ],
  leftOut: [],
  needsPeer: false,
  async *run({ log }, wanted) {
    for (const name of MODELS) {
      const isBeforeRope = wanted.has(beforeRopeId(name));
      const formats: Coding[] = FORMATS.filter(
        (format) =>
          NAMES.some((what) => wanted.has(`kv-quality/${name}/${format}/${what}`)) ||
          (isBeforeRope && format === "q2"),
      );
      if (isBeforeRope) formats.push(BEFORE_ROPE);
      if (formats.length === 0) continue;
      const bytes = modelBytes(name);
      if (!bytes) {
        log(`  no shared data here: ${name} is not measured`);
        continue;
      }
      const measured = await measureKvQuality(bytes, await passages(bytes, 6), formats);
      for (const [format, { perplexity, perplexityF32, kl, klMax, sameTop }] of measured) {
        if (format === BEFORE_ROPE) {
          yield once(beforeRopeId(name), "mnats", 1000 * kl, 1000 * measured.get("q2")!.kl);
          continue;
        }
        const share = (100 * sameTop).toFixed(1);
        log(`  ${name} ${format}: largest KL ${klMax.toPrecision(3)}, the same first choice in ${share} %`);
        const results = {
          perplexity: once(`kv-quality/${name}/${format}/perplexity`, "ppl", perplexity, perplexityF32),
          kl: once(
            `kv-quality/${name}/${format}/kl`,
            "mnats",
            1000 * kl,
            1000 * Math.log(1 + PERPLEXITY_GOAL[format] / perplexityF32),
          ),
        };
        for (const what of NAMES) if (wanted.has(results[what].id)) yield results[what];
      }
    }
    for (const format of FORMATS) {
      const id = `kv-quality/${format}/bytes`;
      if (wanted.has(id)) yield once(id, "bytes", bytesPerToken(format), F16_BYTES_PER_TOKEN);
    }
  },
};
