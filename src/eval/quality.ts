/**
 * What sparse attention and quantized caches cost a model: perplexity, divergence from dense attention over f16 pages,
 * and the share of its attention that the selections kept, per policy, budget and KV format.
 *
 * A text is read in calls of `chunk` tokens, as prompts are, with the engine's own plans. Only the later part of it
 * counts, where selections choose and pages have left the window.
 */

import type { BoundaryScore } from "../attention/boundaries.ts";
import type { PolicyName } from "../attention/names.ts";
import { AttentionTally } from "../attention/tally.ts";
import { attentionPlans } from "../engine/attention-plans.ts";
import { Checkpoint } from "../engine/yielding.ts";
import { InlayError } from "../errors.ts";
import { type CacheFormat, PAGE_TOKENS } from "../kv/page.ts";
import { wholePageBytes } from "../kv/quantize.ts";
import { type AttentionPlan, forward } from "../model/forward.ts";
import { AttentionRecall } from "./attention-recall.ts";
import type { EvalModel } from "./eval-model.ts";

/** What is compared with dense attention over f16 pages. */
export interface QualityCase {
  readonly policy: PolicyName;
  /** Share of the keys; 1 for "dense". */
  readonly budget: number;
  readonly kv: CacheFormat;
}

export interface QualityOptions {
  readonly cases: readonly QualityCase[];
  /** Tokens of a forward call. Smaller calls read more of what they need from quantized pages. @default 128 */
  readonly chunk?: number | undefined;
  /** The first position that counts. @default half of the text */
  readonly from?: number | undefined;
  /** As `attention.headBudgets`, for every sparse case. @default null */
  readonly headBudgets?: readonly (readonly number[])[] | null | undefined;
  /** Says where chunks end, for policies that have some. @default training-free */
  readonly boundaryScore?: BoundaryScore | undefined;
  /** Of the counted queries, every how manieth has its attention measured. @default 7 */
  readonly recallStride?: number | undefined;
  readonly signal?: AbortSignal | undefined;
  /** Cases done, and the tokens of the present one. The reference is case 0. */
  readonly onProgress?: ((done: number, total: number) => void) | undefined;
}

/** Kept attention probability, 0 to 1. */
export interface Recall {
  readonly mean: number;
  /** The value that 5 % of the queries are below. */
  readonly p5: number;
  /** The least of one query. */
  readonly min: number;
  /** The mean if each layer's blocks had read the best pages for their queries, as many as they did read. */
  readonly attainable: number;
  /** [layer][head]. */
  readonly meanByHead: readonly (readonly number[])[];
  /** [layer][head]: the least of one query. */
  readonly minByHead: readonly (readonly number[])[];
}

export interface QualityResult extends QualityCase {
  readonly perplexity: number;
  /** Mean of KL(dense f16 || this), nats. */
  readonly kl: number;
  /** The largest of one position. */
  readonly klMax: number;
  /** Share of positions whose most likely token is the same. */
  readonly sameTop: number;
  /** Share of the pages before the queries that were read. */
  readonly pagesRead: number;
  /** Undefined for dense attention, which keeps everything. */
  readonly recall: Recall | undefined;
  /** Keys and values of a token that has left the window, all layers. */
  readonly kvBytesPerToken: number;
}

export interface QualityReport {
  readonly tokens: number;
  readonly chunk: number;
  /** Positions that were compared. */
  readonly positions: number;
  /** Dense attention over f16 pages. */
  readonly reference: { readonly perplexity: number };
  readonly results: readonly QualityResult[];
}

const REFERENCE: QualityCase = { policy: "dense", budget: 1, kv: "f16" };
const DEFAULT_CHUNK = 128;
const DEFAULT_RECALL_STRIDE = 7;
/** The reference's log-probabilities are kept; of large vocabularies, those of fewer positions. */
const MAX_REFERENCE_BYTES = 512 << 20;

/** Reads `ids` once for the reference and once for each case. Throws `invalid-option` for a text that is too short. */
export async function evaluateQuality(
  model: EvalModel,
  ids: Uint32Array,
  options: QualityOptions,
): Promise<QualityReport> {
  const { cases, chunk = DEFAULT_CHUNK, from = ids.length >> 1, signal, onProgress = () => {} } = options;
  const { vocabSize } = model.config;
  const least = 4 * PAGE_TOKENS;
  if (ids.length < least || from >= ids.length - 1)
    throw new InlayError(
      "invalid-option",
      `the text has ${ids.length} tokens, counted from position ${from}; at least ${least} are needed, and one after that position`,
      { tokens: ids.length, from },
    );
  const room = Math.max(1, Math.floor(MAX_REFERENCE_BYTES / (4 * vocabSize)));
  const positionStride = Math.ceil((ids.length - 1 - from) / room);
  const isCounted = (t: number) => t >= from && t + 1 < ids.length && (t - from) % positionStride === 0;
  const total = cases.length + 1;
  const { headBudgets = null, boundaryScore } = options;
  const text = { ids, chunk, headBudgets, boundaryScore, isCounted, signal };

  const reference = new Map<number, Float32Array>();
  let nll = 0;
  await readText(
    model,
    REFERENCE,
    {},
    {
      ...text,
      onLogits: (t, logits) => {
        const logprobs = logSoftmax(logits);
        reference.set(t, logprobs);
        nll -= logprobs[ids[t + 1]!]!;
      },
      onRead: (done) => onProgress(done / ids.length, total),
    },
  );
  const results: QualityResult[] = [];
  for (const wanted of cases) {
    const stride = options.recallStride ?? DEFAULT_RECALL_STRIDE;
    const recall = wanted.policy === "dense" ? undefined : new RecallTable(model, from, stride);
    const tally = new AttentionTally();
    const sum = { nll: 0, kl: 0, klMax: 0, same: 0 };
    await readText(
      model,
      wanted,
      { tally, observer: recall?.observe },
      {
        ...text,
        onLogits: (t, logits) => {
          const p = reference.get(t)!;
          const q = logSoftmax(logits);
          let kl = 0;
          for (let i = 0; i < p.length; i++) kl += Math.exp(p[i]!) * (p[i]! - q[i]!);
          sum.nll -= q[ids[t + 1]!]!;
          sum.kl += kl;
          sum.klMax = Math.max(sum.klMax, kl);
          if (argmax(p) === argmax(q)) sum.same++;
        },
        onRead: (done) => onProgress(results.length + 1 + done / ids.length, total),
      },
    );
    const n = reference.size;
    results.push({
      ...wanted,
      perplexity: Math.exp(sum.nll / n),
      kl: sum.kl / n,
      klMax: sum.klMax,
      sameTop: sum.same / n,
      pagesRead: tally.fraction ?? 1,
      recall: recall?.result(),
      kvBytesPerToken: kvBytesPerToken(model, wanted.kv),
    });
  }
  const perplexity = Math.exp(nll / reference.size);
  return { tokens: ids.length, chunk, positions: reference.size, reference: { perplexity }, results };
}

/** Every policy at every budget and format; dense, which has no budget, once per format. */
export function qualityCases(
  policies: readonly PolicyName[],
  budgets: readonly number[],
  formats: readonly CacheFormat[],
): QualityCase[] {
  return formats.flatMap((kv) =>
    policies.flatMap((policy): QualityCase[] =>
      policy === "dense" ? [{ policy, budget: 1, kv }] : budgets.map((budget) => ({ policy, budget, kv })),
    ),
  );
}

/** Keys and values of one token in all layers, in pages that have left the window. */
export function kvBytesPerToken({ config }: Pick<EvalModel, "config">, format: CacheFormat): number {
  const { nLayers, nKvHeads, headDim } = config;
  return (nLayers * nKvHeads * wholePageBytes(format, headDim)) / PAGE_TOKENS;
}

/** As a request would be read, without the dense end of a prompt. */
function planOf(
  { config, device: kind }: EvalModel,
  nTokens: number,
  { policy, budget }: QualityCase,
  { headBudgets, boundaryScore }: Pick<Reading, "headBudgets" | "boundaryScore">,
): AttentionPlan {
  const options = { attention: { prefill: policy, decode: "dense", budget, headBudgets } } as const;
  return attentionPlans(config, nTokens, options, { kind }, boundaryScore).prefill;
}

interface Reading {
  readonly ids: Uint32Array;
  readonly chunk: number;
  readonly headBudgets: readonly (readonly number[])[] | null;
  readonly boundaryScore: BoundaryScore | undefined;
  isCounted(position: number): boolean;
  onLogits(position: number, logits: Float32Array): void;
  onRead(nTokens: number): void;
  readonly signal: AbortSignal | undefined;
}

/** Reads a text with an empty cache. */
async function readText(
  model: EvalModel,
  wanted: QualityCase,
  watch: Pick<AttentionPlan, "tally" | "observer">,
  reading: Reading,
): Promise<void> {
  const { ids, chunk, isCounted, onLogits, onRead, signal } = reading;
  const { vocabSize } = model.config;
  const attention = await model.openAttention(wanted.kv);
  const checkpoint = new Checkpoint(signal);
  const cache = attention.createCache();
  try {
    const plan = { ...planOf(model, ids.length, wanted, reading), ...watch };
    for (let at = 0; at < ids.length; at += chunk) {
      const part = ids.subarray(at, at + chunk);
      const logitsOf = part.some((_, i) => isCounted(at + i)) ? "all" : "none";
      const logits = await forward({ ...model, attention }, cache, part, plan, logitsOf, checkpoint);
      for (let i = 0; logits && i < part.length; i++)
        if (isCounted(at + i)) onLogits(at + i, logits.subarray(i * vocabSize, (i + 1) * vocabSize));
      onRead(at + part.length);
    }
  } finally {
    cache.dispose();
    attention.dispose();
  }
}

/** Kept attention by layer and head. */
class RecallTable {
  readonly observe: AttentionRecall["observe"];
  readonly #kept: number[][][];
  readonly #attainable: number[] = [];

  constructor({ config }: EvalModel, from: number, stride: number) {
    const { nLayers, nHeads } = config;
    this.#kept = Array.from({ length: nLayers }, () => Array.from({ length: nHeads }, () => []));
    const recall = new AttentionRecall(
      config,
      (t) => t >= from && (t - from) % stride === 0,
      ({ layer, head, kept }) => this.#kept[layer]![head]!.push(kept),
      { from, report: ({ kept }) => this.#attainable.push(kept) },
    );
    this.observe = recall.observe;
  }

  result(): Recall {
    const all = Float64Array.from(this.#kept.flat(2)).sort();
    const table = (f: (kept: readonly number[]) => number) =>
      this.#kept.map((heads) => heads.map((kept) => f(kept)));
    return {
      mean: mean(all),
      p5: all[Math.floor(all.length / 20)]!,
      min: all[0]!,
      attainable: mean(this.#attainable),
      meanByHead: table(mean),
      minByHead: table((kept) => kept.reduce((a, b) => Math.min(a, b), 1)),
    };
  }
}

function mean(values: Iterable<number>): number {
  let sum = 0;
  let n = 0;
  for (const x of values) {
    sum += x;
    n++;
  }
  return sum / n;
}

function logSoftmax(logits: Float32Array): Float32Array {
  let max = -Infinity;
  for (const x of logits) if (x > max) max = x;
  let sum = 0;
  for (const x of logits) sum += Math.exp(x - max);
  const shift = max + Math.log(sum);
  return logits.map((x) => x - shift);
}

function argmax(values: Float32Array): number {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i]! > values[best]!) best = i;
  return best;
}
