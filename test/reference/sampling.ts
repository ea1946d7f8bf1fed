/**
 * The sampler's specification, written for reading: every step over the whole vocabulary, in doubles, with sorting.
 * Shares no code with src/generate. The draw walks the surviving tokens in the order of their ids.
 */

import type { SamplingParams } from "../../src/generate/sampling-params.ts";

export interface ReferenceInput {
  readonly logits: Float32Array;
  readonly params: SamplingParams;
  readonly promptIds: readonly number[];
  readonly answerIds: readonly number[];
  /** Token ids that may come next; undefined = all. */
  readonly allowed?: ReadonlySet<number> | undefined;
  /** The random number of this draw, in [0, 1). */
  readonly u: number;
}

/** Logits after mask, bias and penalties, rounded to f32 after each step as the sampler stores them. */
export function referenceAdjust(input: ReferenceInput): number[] {
  const { params } = input;
  const seen = [...input.promptIds, ...input.answerIds];
  const recent =
    params.repeatLastN < 0 ? seen : params.repeatLastN === 0 ? [] : seen.slice(-params.repeatLastN);
  return Array.from(input.logits, (logit, id) => {
    if (input.allowed && !input.allowed.has(id)) return -Infinity;
    let adjusted = Math.fround(logit + (params.logitBias.get(id) ?? 0));
    const r = params.repetitionPenalty;
    if (recent.includes(id)) adjusted = Math.fround(adjusted > 0 ? adjusted / r : adjusted * r);
    const uses = input.answerIds.filter((other) => other === id).length;
    if (uses > 0) adjusted = Math.fround(adjusted - uses * params.frequencyPenalty - params.presencePenalty);
    return adjusted;
  });
}

/** What every token weighs in the draw: its probability under the sampler's settings, times a constant. */
function referenceWeights(input: ReferenceInput): number[] {
  const { params } = input;
  const logits = referenceAdjust(input);
  const ranked = logits.map((logit, id) => ({ id, logit })).sort((a, b) => b.logit - a.logit || a.id - b.id);
  const best = ranked[0]!;
  if (params.temperature === 0) return logits.map((_, id) => (id === best.id ? 1 : 0));

  let kept = params.topK > 0 ? ranked.slice(0, params.topK) : ranked;
  if (params.topP < 1) {
    const probabilities = softmax(kept.map((token) => token.logit));
    let sum = 0;
    let n = 0;
    do sum += probabilities[n++]!;
    while (n < kept.length && sum < params.topP);
    kept = kept.slice(0, n);
  }
  if (params.minP > 0) kept = kept.filter((token) => Math.exp(token.logit - best.logit) >= params.minP);

  const weights = logits.map(() => 0);
  for (const token of kept) weights[token.id] = Math.exp((token.logit - best.logit) / params.temperature);
  return weights;
}

/** Probability of every token under the sampler's settings. */
export function referenceProbabilities(input: ReferenceInput): number[] {
  const weights = referenceWeights(input);
  const total = weights.reduce((a, b) => a + b);
  return weights.map((weight) => weight / total);
}

/** The token that the draw `u` gives. */
export function referenceSample(input: ReferenceInput): number {
  const weights = referenceWeights(input);
  const total = weights.reduce((a, b) => a + b);
  let sum = 0;
  for (let id = 0; id < weights.length; id++) {
    sum += weights[id]!;
    if (input.u * total < sum) return id;
  }
  return weights.findLastIndex((weight) => weight > 0);
}

export function softmax(logits: readonly number[]): number[] {
  const max = logits.reduce((a, b) => Math.max(a, b));
  const weights = logits.map((logit) => Math.exp(logit - max));
  const total = weights.reduce((a, b) => a + b);
  return weights.map((weight) => weight / total);
}
