/**
 * Logits → the next token.
 *
 * Order of operations, fixed:
 *
 *     mask ▸ logit_bias ▸ repetition, frequency, presence penalties
 *          ▸ temperature 0: the largest logit, lowest id on ties
 *          ▸ top_k ▸ top_p ▸ min_p ▸ temperature ▸ one draw
 *
 * This is llama.cpp's default chain, because the settings that people copy for a GGUF model were found with it:
 * truncation looks at the model's own distribution, and temperature then only redistributes probability among the
 * tokens that remained, so a high temperature does not let the tail back in. (Hugging Face and vLLM divide by the
 * temperature before truncating; with temperature 1 there is no difference.) The mask comes first, so that what
 * a grammar forbids never takes a place among the candidates. As in llama.cpp, top_p's probabilities are those of
 * the tokens that top_k left.
 *
 * A draw uses one random number u: of the candidates in the order of their ids, the first whose cumulative
 * probability exceeds u. A given seed therefore gives the same tokens in every engine and on every device whose
 * logits are the same.
 */

import { InlayError, internalError } from "../errors.ts";
import { expNonPositive } from "./exp.ts";
import { type SampledLogprobs, sumOfWeights, tokenLogprobs } from "./logprobs.ts";
import { Penalties } from "./penalties.ts";
import { Random, randomSeed } from "./random.ts";
import { idOfRank, largestRanks, MAX_VOCAB, nextAtLeast, ranksFrom, shortestBeginning } from "./ranks.ts";
import type { SamplingParams } from "./sampling-params.ts";
import { applyTokenBits, type TokenBits } from "./token-mask.ts";

/** One sampled token. */
export interface SampledToken {
  readonly id: number;
  /** Present when asked for. */
  readonly logprobs?: SampledLogprobs | undefined;
}

/** What a sampler needs to know besides the parameters. */
export interface SamplerOptions {
  readonly vocabSize: number;
  readonly params: SamplingParams;
  /** The prompt's tokens, for `repetitionPenalty`. */
  readonly promptIds: ArrayLike<number>;
  /** How many alternatives to report with each token, 0..20; undefined = no log-probabilities. */
  readonly topLogprobs?: number | undefined;
  /** Uniform numbers in [0, 1). @default the generator of `params.seed` */
  readonly random?: (() => number) | undefined;
}

/** Samples the tokens of one answer. Holds its scratch memory (about 20 bytes per vocabulary entry). */
export class Sampler {
  /** The seed in use: the caller's, or the random one. */
  readonly seed: number;
  readonly #params: SamplingParams;
  readonly #topLogprobs: number | undefined;
  readonly #random: () => number;
  readonly #penalties: Penalties;
  /** Lowest logit that min_p keeps, relative to the largest: ln(minP). */
  readonly #minLogit: number;
  /** Logits after mask, bias and penalties, (vocabSize). */
  readonly #adjusted: Float32Array;
  /** Ids of the candidates of one draw, ascending, (vocabSize). */
  readonly #candidates: Uint32Array;
  /** Ranks while candidates are chosen, then their weights, (vocabSize). */
  readonly #scratch: Float64Array;

  /** Throws `invalid-option` for a biased token that is not in the vocabulary. */
  constructor(options: SamplerOptions) {
    const { vocabSize, params } = options;
    if (vocabSize < 1 || vocabSize > MAX_VOCAB)
      throw new InlayError(
        "unsupported-model",
        `vocabulary of ${vocabSize} tokens; 1 to ${MAX_VOCAB} are supported`,
        {
          vocabSize,
        },
      );
    for (const id of params.logitBias.keys())
      if (id >= vocabSize)
        throw new InlayError(
          "invalid-option",
          `logit_bias names token ${id}, but the vocabulary has the ids 0 to ${vocabSize - 1}`,
          { option: "logit_bias", id, vocabSize },
        );
    this.seed = params.seed ?? randomSeed();
    const generator = new Random(this.seed);
    this.#params = params;
    this.#topLogprobs = options.topLogprobs;
    this.#random = options.random ?? (() => generator.next());
    this.#penalties = new Penalties(params, options.promptIds);
    this.#minLogit = params.minP > 0 ? Math.log(params.minP) : -Infinity;
    this.#adjusted = new Float32Array(vocabSize);
    this.#candidates = new Uint32Array(vocabSize);
    this.#scratch = new Float64Array(vocabSize);
  }

  /**
   * Chooses the next token and counts it for the penalties. `logits` is not changed.
   * Throws `internal` if a logit is NaN or +Infinity, or if nothing may come next.
   */
  sample(logits: Float32Array, allowed?: TokenBits): SampledToken {
    if (logits.length !== this.#adjusted.length)
      throw internalError(`${logits.length} logits for a vocabulary of ${this.#adjusted.length}`);
    const modelBest = argmax(logits);
    const adjusted = this.#adjust(logits, allowed);
    const best = adjusted === logits ? modelBest : argmax(adjusted);
    const id = this.#params.temperature === 0 ? best : this.#draw(adjusted, adjusted[best]!);
    this.#penalties.accept(id);
    if (this.#topLogprobs === undefined) return { id };
    const max = logits[modelBest]!;
    return { id, logprobs: tokenLogprobs(logits, max, id, this.#topLogprobs, this.#scratch) };
  }

  /** The logits after mask, bias and penalties: a copy in scratch memory, or `logits` itself if none applies. */
  #adjust(logits: Float32Array, allowed: TokenBits | undefined): Float32Array {
    const { logitBias } = this.#params;
    if (!allowed && logitBias.size === 0 && !this.#penalties.isActive) return logits;
    const adjusted = this.#adjusted;
    adjusted.set(logits);
    if (allowed) applyTokenBits(adjusted, allowed);
    for (const [id, bias] of logitBias) adjusted[id]! += bias;
    this.#penalties.apply(adjusted);
    return adjusted;
  }

  #draw(logits: Float32Array, max: number): number {
    const { topK, topP } = this.#params;
    let ranks: Float64Array | undefined;
    if (topK > 0 && topK < logits.length) ranks = largestRanks(logits, topK, this.#scratch);
    if (topP < 1) ranks = this.#nucleus(logits, max, ranks);
    const nCandidates = this.#gather(logits, max, ranks);
    return this.#drawCandidate(logits, max, nCandidates);
  }

  /**
   * The nucleus (Holtzman et al. 2020, arXiv:1904.09751): the fewest tokens that hold topP of the probability of
   * `ranks`, or of the whole vocabulary. There, tokens below (1 - topP) / vocabSize hold less than 1 - topP
   * together, so the nucleus is complete without them, and only the others are looked at.
   */
  #nucleus(logits: Float32Array, max: number, ranks: Float64Array | undefined): Float64Array {
    const { topP } = this.#params;
    const weightOf = (rank: number) => expNonPositive(logits[idOfRank(rank)]! - max);
    let total = 0;
    if (ranks) for (let i = 0; i < ranks.length; i++) total += weightOf(ranks[i]!);
    else total = sumOfWeights(logits, max);
    const among =
      ranks ?? ranksFrom(logits, max + Math.log(((1 - topP) * total) / logits.length), this.#scratch);
    return among.subarray(0, shortestBeginning(among, weightOf, topP * total));
  }

  /** Fills `#candidates` with the ids of `ranks` (of all tokens, if undefined) that min_p keeps; returns their number. */
  #gather(logits: Float32Array, max: number, ranks: Float64Array | undefined): number {
    const candidates = this.#candidates;
    let n = 0;
    if (!ranks) {
      const least = max + this.#minLogit;
      for (let id = 0; id < logits.length; id++) if (logits[id]! >= least) candidates[n++] = id;
      return n;
    }
    // The worst rank says it all: a larger logit is in, an equal one up to its id.
    let worst = Infinity;
    for (let i = 0; i < ranks.length; i++) worst = Math.min(worst, ranks[i]!);
    const worstId = idOfRank(worst);
    const worstLogit = logits[worstId]!;
    const least = Math.max(worstLogit, max + this.#minLogit);
    for (let id = nextAtLeast(logits, least, 0); id < logits.length; id = nextAtLeast(logits, least, id + 1))
      if (id <= worstId || logits[id]! > worstLogit) candidates[n++] = id;
    return n;
  }

  /** One draw among the first `n` candidates, with temperature. */
  #drawCandidate(logits: Float32Array, max: number, n: number): number {
    const { temperature } = this.#params;
    const candidates = this.#candidates;
    const weights = this.#scratch;
    let total = 0;
    for (let i = 0; i < n; i++) {
      const weight = expNonPositive((logits[candidates[i]!]! - max) / temperature);
      weights[i] = weight;
      total += weight;
    }
    const target = this.#random() * total;
    let sum = 0;
    let last = 0;
    for (let i = 0; i < n; i++) {
      if (weights[i] === 0) continue;
      sum += weights[i]!;
      last = i;
      if (target < sum) break;
    }
    return candidates[last]!;
  }
}

/** Id of the largest logit, the lowest on ties. Throws if a logit is NaN or +Infinity, or if all are -Infinity. */
function argmax(logits: Float32Array): number {
  let best = -Infinity;
  let at = -1;
  let id = 0;
  // Four at a time: almost always none is better. NaN fails the comparison and is met below.
  for (const end = logits.length - 3; id < end; id += 4) {
    if (logits[id]! <= best && logits[id + 1]! <= best && logits[id + 2]! <= best && logits[id + 3]! <= best)
      continue;
    for (let i = id; i < id + 4; i++) take(i);
  }
  for (; id < logits.length; id++) take(id);
  if (best === Infinity || at < 0) throw unusableLogits(logits);
  return at;

  function take(i: number): void {
    const logit = logits[i]!;
    if (logit > best) {
      best = logit;
      at = i;
    } else if (!(logit <= best)) throw unusableLogits(logits);
  }
}

function unusableLogits(logits: Float32Array): InlayError {
  const nNaN = logits.reduce((n, logit) => n + Number(Number.isNaN(logit)), 0);
  const nInfinite = logits.reduce((n, logit) => n + Number(logit === Infinity), 0);
  const found =
    nNaN + nInfinite > 0
      ? `${nNaN} NaN and ${nInfinite} +Infinity among ${logits.length} logits; no token can be chosen from them`
      : `all ${logits.length} logits are -Infinity: no token may come next`;
  return internalError(found, { nNaN, nInfinite, vocabSize: logits.length });
}
