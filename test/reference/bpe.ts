/**
 * Merging symbols as SentencePiece and byte-level BPE do, written for reading: look at every pair, merge the best,
 * start again. O(n²) or worse; shares nothing with wasm/tokenizer/.
 */

/** Merges until `rank` allows no pair; the pair with the smallest rank goes first, the leftmost of equal ones. */
function mergeBest(
  start: readonly string[],
  rank: (left: string, right: string) => number | undefined,
): string[] {
  const symbols = [...start];
  for (;;) {
    let best: { at: number; rank: number } | undefined;
    for (let at = 0; at + 1 < symbols.length; at++) {
      const r = rank(symbols[at]!, symbols[at + 1]!);
      if (r !== undefined && (!best || r < best.rank)) best = { at, rank: r };
    }
    if (!best) return symbols;
    symbols.splice(best.at, 2, symbols[best.at]! + symbols[best.at + 1]!);
  }
}

/** The symbols that the characters of `text` merge into. A pair merges when together it has a score; the highest first. */
export function sentencePieceMerge(text: string, scores: ReadonlyMap<string, number>): string[] {
  return mergeBest([...text], (left, right) => {
    const score = scores.get(left + right);
    return score === undefined ? undefined : -score;
  });
}

/** The symbols that a word, a string of bytes, merges into, by the order of `merges`. */
export function bytePairMerge(word: string, merges: readonly (readonly [string, string])[]): string[] {
  const rank = (left: string, right: string): number | undefined => {
    const at = merges.findIndex(([l, r]) => l === left && r === right);
    return at < 0 ? undefined : at;
  };
  return mergeBest([...word], rank);
}
