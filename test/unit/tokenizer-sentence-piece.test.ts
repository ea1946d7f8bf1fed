/** SentencePiece-style tokenization with small vocabularies. */

import assert from "node:assert/strict";
import { before, test } from "node:test";
import type { WasmModule } from "../../src/backend/wasm/module.ts";
import { Tokenizer } from "../../src/tokenizer/tokenizer.ts";
import type { Vocabulary } from "../../src/tokenizer/vocabulary.ts";
import {
  BYTE_TOKENS,
  CONTROL,
  randomInts,
  sentencePieceVocabulary,
  type Token,
  tokenizerWasm,
  UNKNOWN,
} from "../fixtures/tokenizer-vocabulary.ts";
import { sentencePieceMerge } from "../reference/bpe.ts";

let wasm: WasmModule;
before(async () => {
  wasm = await tokenizerWasm();
});

/** The spellings of the tokens of `text`. */
function spellings(vocabulary: Vocabulary, text: string): string[] {
  const tokenizer = Tokenizer.create(wasm, vocabulary);
  try {
    return Array.from(tokenizer.encode(text), (id) => tokenizer.tokenText(id));
  } finally {
    tokenizer.dispose();
  }
}

const letters: Token[] = [..."abcdé▁"].map((c) => [c, -100]);
const NO_PREFIX = { addSpacePrefix: false };

test("the pair with the highest score is merged first", () => {
  const tokens: Token[] = [...BYTE_TOKENS, ...letters, ["ab", -2], ["bc", -1], ["abc", -3]];
  assert.deepEqual(spellings(sentencePieceVocabulary(tokens, NO_PREFIX), "abc"), ["abc"]);
  assert.deepEqual(spellings(sentencePieceVocabulary(tokens.slice(0, -1), NO_PREFIX), "abc"), ["a", "bc"]);
});

test("of equal scores the leftmost is merged first", () => {
  const tokens: Token[] = [...BYTE_TOKENS, ...letters, ["aa", -1]];
  assert.deepEqual(spellings(sentencePieceVocabulary(tokens, NO_PREFIX), "aaa"), ["aa", "a"]);
});

test("scores sort as numbers, negative zero included", () => {
  const tokens: Token[] = [...BYTE_TOKENS, ...letters, ["ab", -0.5], ["bc", 2], ["cd", -0], ["da", 0]];
  assert.deepEqual(spellings(sentencePieceVocabulary(tokens, NO_PREFIX), "abcdab"), ["a", "bc", "da", "b"]);
  assert.deepEqual(spellings(sentencePieceVocabulary(tokens, NO_PREFIX), "cda"), ["cd", "a"]);
});

test("without scores all are equal", () => {
  const vocabulary = sentencePieceVocabulary([...BYTE_TOKENS, ...letters, ["ab"], ["bc"]], NO_PREFIX);
  assert.deepEqual(spellings({ ...vocabulary, scores: undefined }, "abcbc"), ["ab", "c", "bc"]);
});

test("text gets a space before it, unless the vocabulary says no", () => {
  const tokens: Token[] = [...BYTE_TOKENS, ...letters, ["▁a", -1]];
  assert.deepEqual(spellings(sentencePieceVocabulary(tokens), "a"), ["▁a"]);
  assert.deepEqual(spellings(sentencePieceVocabulary(tokens), " a"), ["▁", "▁a"]);
  assert.deepEqual(spellings(sentencePieceVocabulary(tokens, NO_PREFIX), "a"), ["a"]);
  assert.deepEqual(spellings(sentencePieceVocabulary(tokens), ""), []);
});

test("U+2581 in the text counts as a space", () => {
  assert.deepEqual(
    spellings(sentencePieceVocabulary([...BYTE_TOKENS, ...letters, ["▁a"]], NO_PREFIX), "b▁a a"),
    ["b", "▁a", "▁a"],
  );
});

test("a token spelled with a space matches nothing", () => {
  const tokens: Token[] = [...BYTE_TOKENS, ...letters, ["b a", 5], ["b ", 5]];
  assert.deepEqual(spellings(sentencePieceVocabulary(tokens, NO_PREFIX), "b a"), ["b", "▁", "a"]);
});

test("a character without a token becomes its bytes", () => {
  const vocabulary = sentencePieceVocabulary([...BYTE_TOKENS, ["a"]], NO_PREFIX);
  assert.deepEqual(spellings(vocabulary, "aé "), ["a", "<0xC3>", "<0xA9>", "<0xE2>", "<0x96>", "<0x81>"]);
});

test("a byte without a token of its kind is the token of that character", () => {
  const tokens: Token[] = [["<unk>", 0, UNKNOWN], ["é"], ["<0xC3>"], ["z"]];
  assert.deepEqual(spellings(sentencePieceVocabulary(tokens, NO_PREFIX), "zé"), ["z", "é"]);
});

test("without byte tokens a run of unknown characters is one unknown token", () => {
  const tokens: Token[] = [
    ["<unk>", 0, UNKNOWN],
    ["<s>", 0, CONTROL],
    ["</s>", 0, CONTROL],
    ...letters,
    ["ab"],
  ];
  const vocabulary = sentencePieceVocabulary(tokens, NO_PREFIX);
  assert.deepEqual(spellings(vocabulary, "ab{}ab界ab"), ["ab", "<unk>", "ab", "<unk>", "ab"]);
  assert.deepEqual(spellings(vocabulary, "x".repeat(1000)), ["<unk>"]);
});

test("an unknown character may still be part of a token", () => {
  const tokens: Token[] = [["<unk>", 0, UNKNOWN], ["a"], ["xy"], ["axy", 1]];
  assert.deepEqual(spellings(sentencePieceVocabulary(tokens, NO_PREFIX), "xyaxyx"), ["xy", "axy", "<unk>"]);
});

test("of two tokens with one spelling the first counts", () => {
  const vocabulary = sentencePieceVocabulary([...BYTE_TOKENS, ["ab"], ["a"], ["b"], ["ab"]], NO_PREFIX);
  const tokenizer = Tokenizer.create(wasm, vocabulary);
  assert.deepEqual([...tokenizer.encode("ab")], [BYTE_TOKENS.length]);
  tokenizer.dispose();
});

/** Random tokens over a small alphabet, with single characters so that everything has a token. */
function randomVocabulary(random: (n: number) => number, alphabet: readonly string[]): Map<string, number> {
  const scores = new Map(alphabet.map((c) => [c, -50]));
  for (let i = 0; i < 150; i++) {
    const length = 2 + random(i % 5 === 0 ? 12 : 3);
    const text = Array.from({ length }, () => alphabet[random(alphabet.length)]).join("");
    // Few different scores, so that there are ties.
    if (!scores.has(text)) scores.set(text, -random(12));
  }
  return scores;
}

for (const [name, alphabet] of [
  ["two letters", [..."ab"]],
  ["letters and spaces", [..."abc▁▁"]],
  ["characters of every length", [..."aé▁界🙂ñ"]],
] as const)
  test(`random text merges as by the naive method: ${name}`, () => {
    const random = randomInts(5);
    for (let round = 0; round < 20; round++) {
      const scores = randomVocabulary(random, alphabet);
      const tokens: Token[] = [...BYTE_TOKENS, ...scores];
      const tokenizer = Tokenizer.create(wasm, sentencePieceVocabulary(tokens, NO_PREFIX));
      for (let i = 0; i < 60; i++) {
        const length = 1 + random(i % 10 === 0 ? 120 : 20);
        const text = Array.from({ length }, () => alphabet[random(alphabet.length)]).join("");
        const actual = Array.from(tokenizer.encode(text.replaceAll("▁", " ")), (id) =>
          tokenizer.tokenText(id),
        );
        assert.deepEqual(actual, sentencePieceMerge(text, scores), JSON.stringify(text));
      }
      tokenizer.dispose();
    }
  });
