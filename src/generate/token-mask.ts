/** Which tokens may come next: the seam between the sampler and a grammar. */

/**
 * A set of token ids as a bit set: token `id` may come next when bit `id % 32` of word `id >> 5` is 1.
 * At least ceil(vocabSize / 32) words; bits past the vocabulary are ignored. Signed or unsigned makes no difference.
 */
export type TokenBits = Int32Array | Uint32Array;

/** Restricts an answer token by token, as a grammar does. One instance belongs to one answer. */
export interface TokenMask {
  /** The tokens that may come next, or undefined when all may. Valid until the next call of either method. */
  next(): Promise<TokenBits | undefined> | TokenBits | undefined;
  /** Tells which token came. */
  accept(tokenId: number): void;
}

/** Sets the logits of all tokens that `allowed` leaves out to -Infinity, in place. logits: (vocabSize). */
export function applyTokenBits(logits: Float32Array, allowed: TokenBits): void {
  for (let word = 0, first = 0; first < logits.length; word++, first += 32) {
    const bits = allowed[word]!;
    if (bits === -1 || bits === 0xffffffff) continue;
    const end = Math.min(first + 32, logits.length);
    for (let id = first; id < end; id++) if (((bits >>> (id - first)) & 1) === 0) logits[id] = -Infinity;
  }
}
