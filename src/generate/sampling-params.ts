/** What a caller may choose about sampling. Defaults and bounds: src/options.ts. */

/** Complete sampling settings: plain data that crosses the worker boundary. */
export interface SamplingParams {
  /** 0 = always the most likely token; otherwise logits are divided by it. 0 <= temperature <= 2. */
  readonly temperature: number;
  /** Only the `topK` most likely tokens are candidates; 0 = no limit. */
  readonly topK: number;
  /** Only the smallest set of most likely tokens with this much probability together; 1 = no limit, 0 = one token. */
  readonly topP: number;
  /** Only tokens at least this probable relative to the most likely one; 0 = no limit. */
  readonly minP: number;
  /** Logits of recently used tokens are divided (if positive) or multiplied (if negative) by it; 1 = off. */
  readonly repetitionPenalty: number;
  /** Subtracted from a token's logit once per earlier use in this answer; 0 = off. */
  readonly frequencyPenalty: number;
  /** Subtracted from a token's logit if this answer used it before; 0 = off. */
  readonly presencePenalty: number;
  /** How many of the last tokens, prompt included, count as recent for `repetitionPenalty`; 0 = none, -1 = all. */
  readonly repeatLastN: number;
  /** Added to the logits of single tokens; token id → bias. */
  readonly logitBias: ReadonlyMap<number, number>;
  /** Same seed, same tokens; undefined = a random one, which is reported. */
  readonly seed: number | undefined;
}
