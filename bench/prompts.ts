/**
 * Prompts that every engine sees as the same token ids, given as ids or as text.
 *
 * They consist of short words with a space before them, each of which is one token of the generated vocabulary and
 * is encoded as itself: tools/gguf/vocabulary.mjs joins a space, a syllable, and perhaps a consonant, in that order.
 */

import { makeVocabulary, PRESETS, type PresetName } from "../tools/gguf/model.mjs";

export interface BenchPrompt {
  readonly ids: readonly number[];
  readonly text: string;
}

/** How byte-level BPE writes a space, then a syllable and perhaps a consonant. */
const WORD = /^\u0120[bcdfghjklmnpqrstvwxyz][aeiou][bcdfghjklmnpqrstvwxyz]?$/;

interface Word {
  readonly id: number;
  readonly text: string;
}

function findWords(preset: PresetName): Word[] {
  const { tokenizer, vocabSize } = PRESETS[preset];
  const entry = makeVocabulary(tokenizer, vocabSize).metadata.find(
    ([key]) => key === "tokenizer.ggml.tokens",
  );
  return [...(entry![2] as string[]).entries()]
    .filter(([, token]) => WORD.test(token))
    .map(([id, token]) => ({ id, text: ` ${token.slice(1)}` }));
}

/** Makes prompts for one model: any length; those of different seeds differ from the first token on. */
export function promptMaker(preset: PresetName): (nTokens: number, seed: number) => BenchPrompt {
  const words = findWords(preset);
  return (nTokens, seed) => {
    const chosen = Array.from({ length: nTokens }, (_, i) => words[(i * 7919 + seed * 101) % words.length]!);
    return { ids: chosen.map(({ id }) => id), text: chosen.map(({ text }) => text).join("") };
  };
}
