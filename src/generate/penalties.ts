/**
 * Penalties on tokens that were used before.
 *
 *     repetition   l > 0 ? l / r : l * r              tokens among the last `repeatLastN` of prompt and answer
 *     frequency    l - frequency * uses               tokens of this answer
 *     presence     l - presence  (if uses > 0)        tokens of this answer
 *
 * Repetition is Keskar et al. 2019 (CTRL, arXiv:1909.05858, section 4.1) with the sign rule that Hugging Face and
 * llama.cpp use, over llama.cpp's window. Frequency and presence are OpenAI's definition, which counts sampled
 * tokens only: a word of the user's question is not punished. (llama.cpp counts all three over one window.)
 */

import type { SamplingParams } from "./sampling-params.ts";

type PenaltyParams = Pick<
  SamplingParams,
  "repetitionPenalty" | "frequencyPenalty" | "presencePenalty" | "repeatLastN"
>;

/** Counts the tokens of one answer and lowers the logits of those used before. */
export class Penalties {
  readonly #params: PenaltyParams;
  readonly #countsRecent: boolean;
  readonly #countsAnswer: boolean;
  /** Uses of each token in the window. */
  readonly #recent = new Map<number, number>();
  /** The window itself, a ring of `repeatLastN` token ids; empty when the window is everything. */
  readonly #ring: Uint32Array;
  #nSeen = 0;
  /** Uses of each token in this answer. */
  readonly #answer = new Map<number, number>();

  /** `promptIds` fills the window. */
  constructor(params: PenaltyParams, promptIds: ArrayLike<number>) {
    this.#params = params;
    this.#countsRecent = params.repetitionPenalty !== 1 && params.repeatLastN !== 0;
    this.#countsAnswer = params.frequencyPenalty !== 0 || params.presencePenalty !== 0;
    this.#ring = new Uint32Array(this.#countsRecent ? Math.max(0, params.repeatLastN) : 0);
    if (!this.#countsRecent) return;
    const from = params.repeatLastN < 0 ? 0 : Math.max(0, promptIds.length - params.repeatLastN);
    for (let i = from; i < promptIds.length; i++) this.#remember(promptIds[i]!);
  }

  /** true when `apply` may change anything. */
  get isActive(): boolean {
    return this.#countsRecent || this.#countsAnswer;
  }

  /** Counts a token of the answer. */
  accept(id: number): void {
    if (this.#countsRecent) this.#remember(id);
    if (this.#countsAnswer) this.#answer.set(id, (this.#answer.get(id) ?? 0) + 1);
  }

  /** Lowers the logits of used tokens in place. logits: (vocabSize). Ids past its end are passed over. */
  apply(logits: Float32Array): void {
    const { repetitionPenalty, frequencyPenalty, presencePenalty } = this.#params;
    for (const id of this.#recent.keys()) {
      const logit = logits[id];
      if (logit !== undefined) logits[id] = logit > 0 ? logit / repetitionPenalty : logit * repetitionPenalty;
    }
    for (const [id, uses] of this.#answer) {
      const logit = logits[id];
      if (logit !== undefined) logits[id] = logit - uses * frequencyPenalty - presencePenalty;
    }
  }

  /** Adds a token to the window; the oldest leaves a full one. */
  #remember(id: number): void {
    this.#recent.set(id, (this.#recent.get(id) ?? 0) + 1);
    if (this.#ring.length === 0) return;
    const slot = this.#nSeen % this.#ring.length;
    if (this.#nSeen >= this.#ring.length) this.#forget(this.#ring[slot]!);
    this.#ring[slot] = id;
    this.#nSeen++;
  }

  #forget(id: number): void {
    const uses = this.#recent.get(id)! - 1;
    if (uses === 0) this.#recent.delete(id);
    else this.#recent.set(id, uses);
  }
}
