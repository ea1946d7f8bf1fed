/**
 * Log-probabilities of tokens under the model itself: log-softmax of the raw logits, before mask, bias, penalties and
 * temperature. That is OpenAI's `logprobs`: what the model thinks, not what the sampler made of it, so the numbers
 * do not change with the sampling settings.
 */

import { expNonPositive } from "./exp.ts";
import { idOfRank, largestRanks } from "./ranks.ts";

/** A token and the natural logarithm of its probability; -Infinity if the model excludes it. */
export interface TokenLogprob {
  readonly id: number;
  readonly logprob: number;
}

/** The sampled token's log-probability and the most likely tokens at its position, most likely first. */
export interface SampledLogprobs extends TokenLogprob {
  readonly top: readonly TokenLogprob[];
}

/** `max` is the largest logit; `scratch` is for ranks, (vocabSize). logits: (vocabSize). */
export function tokenLogprobs(
  logits: Float32Array,
  max: number,
  id: number,
  nTop: number,
  scratch: Float64Array,
): SampledLogprobs {
  const logZ = max + Math.log(sumOfWeights(logits, max));
  const ranks = largestRanks(logits, nTop, scratch).sort().reverse();
  const top = Array.from(ranks, (rank) => {
    const topId = idOfRank(rank);
    return { id: topId, logprob: logits[topId]! - logZ };
  });
  return { id, logprob: logits[id]! - logZ, top };
}

/** Sum of exp(logit - max) over the vocabulary. */
export function sumOfWeights(logits: Float32Array, max: number): number {
  let sum = 0;
  for (let id = 0; id < logits.length; id++) sum += expNonPositive(logits[id]! - max);
  return sum;
}
