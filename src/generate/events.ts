/** What the engine tells while it generates: plain data that crosses the worker boundary. */

/** Why an answer ended: an end token or stop string, or `maxTokens` or the context's end. An abort is no end: it rejects. */
export type FinishReason = "stop" | "length";

/** A token with its log-probability and its UTF-8 bytes, which may be part of a character. */
export interface DescribedToken {
  readonly id: number;
  readonly logprob: number;
  readonly bytes: Uint8Array;
}

/** A generated token and the most likely tokens at its position, most likely first. */
export interface TokenLogprobs extends DescribedToken {
  readonly top: readonly DescribedToken[];
}

/** What one phase of an answer read of the cache. */
export interface AttentionUsage {
  /** The policy that chose; "dense" if it read everything. */
  readonly policy: string;
  /** Share of the keys at or before the queries that were read, 0 to 1; undefined: there was nothing to read. */
  readonly keysRead: number | undefined;
  /** Estimated attention probability of the keys that were not, 0 to 1; undefined where the policy does not estimate it. */
  readonly missingMass: number | undefined;
}

/** Counts and times of one answer. */
export interface GenerateUsage {
  /** All tokens of the prompt, cached ones included. */
  readonly promptTokens: number;
  /** Those of them whose keys and values were already there. */
  readonly cachedTokens: number;
  /** Sampled tokens, the end token included. */
  readonly completionTokens: number;
  /** Time spent on the prompt's uncached tokens. */
  readonly prefillSeconds: number;
  /** Time from the first generated token to the last. */
  readonly decodeSeconds: number;
  /** From the call to the first generated token; undefined if there was none. */
  readonly timeToFirstTokenSeconds: number | undefined;
  /** The seed that repeats this answer. */
  readonly seed: number;
  readonly device: "wasm" | "hybrid" | "webgpu";
  readonly attention: { readonly prefill: AttentionUsage; readonly decode: AttentionUsage };
}

/** The events of one answer: the prompt's progress, any number of texts, then one end. */
export type GenerateEvent =
  | {
      readonly kind: "prefill";
      /** Prompt tokens done, cached ones included. */
      readonly loaded: number;
      /** Prompt tokens in all. */
      readonly total: number;
    }
  | {
      readonly kind: "text";
      /** May be empty when only tokens without text remain. */
      readonly text: string;
      /** The tokens that begin in this text. */
      readonly tokenIds: readonly number[];
      /** One entry per token, if asked for. */
      readonly logprobs?: readonly TokenLogprobs[] | undefined;
    }
  | {
      readonly kind: "end";
      readonly finishReason: FinishReason;
      /** The token that ended the answer, if the model ended it; it has no text and no text event. */
      readonly endTokenId?: number | undefined;
      /** The stop string that ended the answer, if one did. */
      readonly stop?: string | undefined;
      readonly usage: GenerateUsage;
    };
