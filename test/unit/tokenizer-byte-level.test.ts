/** Byte-level BPE with small vocabularies. */

import assert from "node:assert/strict";
import { before, test } from "node:test";
import type { WasmModule } from "../../src/backend/wasm/module.ts";
import { Tokenizer } from "../../src/tokenizer/tokenizer.ts";
import type { Vocabulary } from "../../src/tokenizer/vocabulary.ts";
import {
  byteLevelVocabulary,
  byteString,
  randomInts,
  spell,
  stringArray,
  tokenizerWasm,
} from "../fixtures/tokenizer-vocabulary.ts";
import { bytePairMerge } from "../reference/bpe.ts";
import { preTokenize } from "../reference/pre-tokenize.ts";

let wasm: WasmModule;
before(async () => {
  wasm = await tokenizerWasm();
});

function spellings(vocabulary: Vocabulary, text: string): string[] {
  const tokenizer = Tokenizer.create(wasm, vocabulary);
  try {
    return Array.from(tokenizer.encode(text), (id) => tokenizer.tokenText(id));
  } finally {
    tokenizer.dispose();
  }
}

test("every byte has its token", () => {
  const tokenizer = Tokenizer.create(wasm, byteLevelVocabulary("gpt-2", []));
  const text = "\u0000\n aé界🙂\u007f\u00ad\u00ff";
  assert.deepEqual([...tokenizer.encode(text)], [...new TextEncoder().encode(text)]);
  assert.equal(tokenizer.tokenText(0x20), "Ġ");
  assert.equal(tokenizer.tokenText(0xad), "Ń");
  tokenizer.dispose();
});

test("the first merge of the list goes first, the leftmost of equal ones", () => {
  const merges = [
    ["b", "c"],
    ["a", "b"],
    ["a", "a"],
  ] as const;
  assert.deepEqual(spellings(byteLevelVocabulary("gpt-2", merges), "abc"), ["a", "bc"]);
  assert.deepEqual(spellings(byteLevelVocabulary("gpt-2", merges), "aaab"), ["aa", "ab"]);
  assert.deepEqual(spellings(byteLevelVocabulary("gpt-2", merges), "aaa"), ["aa", "a"]);
});

test("words are merged on their own", () => {
  const merges = [
    ["a", " "],
    [" ", "a"],
  ] as const;
  assert.deepEqual(spellings(byteLevelVocabulary("gpt-2", merges), "a a"), ["a", "Ġa"]);
});

test("a word that is a token is not merged where the pre-tokenizer says so", () => {
  // "abc" is made by a merge, but the merge that goes first leaves "a" alone.
  const merges = [
    ["b", "c"],
    ["a", "b"],
    ["ab", "c"],
  ] as const;
  assert.deepEqual(spellings(byteLevelVocabulary("dbrx", merges), "abc abc"), ["a", "bc", "Ġ", "a", "bc"]);
  assert.deepEqual(spellings(byteLevelVocabulary("llama-bpe", merges), "abc abc"), ["abc", "Ġ", "a", "bc"]);
});

test("of equal merges the first counts", () => {
  const merges = [
    ["a", "b"],
    ["b", "c"],
    ["a", "b"],
  ] as const;
  assert.deepEqual(spellings(byteLevelVocabulary("gpt-2", merges), "abc"), ["ab", "c"]);
});

test("merging through a string that is no token", () => {
  const vocabulary = byteLevelVocabulary("gpt-2", []);
  const tokens = [...Array.from({ length: 256 }, (_, b) => spell(String.fromCharCode(b))), "abc"];
  const through = {
    ...vocabulary,
    types: undefined,
    tokens: stringArray(tokens),
    merges: stringArray(["a b", "ab c"]),
  };
  assert.deepEqual(spellings(through, "abc"), ["abc"]);
  assert.deepEqual(spellings(through, "abx"), ["a", "b", "x"], "what remains of it is printed as bytes");
});

test("a byte without a token is left out", () => {
  const vocabulary = byteLevelVocabulary("gpt-2", []);
  const tokens = { ...vocabulary, types: undefined, tokens: stringArray(["a", "b"]) };
  assert.deepEqual(spellings(tokens, "axb"), ["a", "b"]);
});

test("two tokens with one spelling: the first counts, also as the result of a merge", () => {
  const vocabulary = byteLevelVocabulary("gpt-2", []);
  const tokens = stringArray(["a", "b", "c", "ab", "ab", "abc"]);
  const merges = stringArray(["a b", "ab c"]);
  const tokenizer = Tokenizer.create(wasm, { ...vocabulary, types: undefined, tokens, merges });
  assert.deepEqual([...tokenizer.encode("ab abc")], [3, 5]);
  tokenizer.dispose();
});

test("merges outside the byte alphabet match nothing", () => {
  const vocabulary = {
    ...byteLevelVocabulary("gpt-2", []),
    merges: stringArray(["▁ a", "a ▁", "a b c", "x y"]),
  };
  assert.deepEqual(spellings(vocabulary, "a▁ xy").length, 7);
});

/** Merges learned from text without regard to words, so that a wrongly cut word shows. */
function learnMerges(text: string, nMerges: number): [string, string][] {
  let symbols = [...byteString(text)];
  const merges: [string, string][] = [];
  while (merges.length < nMerges) {
    const counts = new Map<string, { pair: [string, string]; count: number }>();
    for (let i = 0; i + 1 < symbols.length; i++) {
      const pair: [string, string] = [symbols[i]!, symbols[i + 1]!];
      const entry = counts.get(pair.join("\u0100")) ?? { pair, count: 0 };
      entry.count++;
      counts.set(pair.join("\u0100"), entry);
    }
    const best = [...counts.values()].reduce((a, b) => (b.count > a.count ? b : a));
    const [left, right] = best.pair;
    merges.push(best.pair);
    const merged: string[] = [];
    for (let i = 0; i < symbols.length; i++) {
      const isPair = symbols[i] === left && symbols[i + 1] === right;
      merged.push(isPair ? left + right : symbols[i]!);
      if (isPair) i++;
    }
    symbols = merged;
  }
  return merges;
}

const ALPHABETS = {
  "letters and spaces": [..."abc  \n"],
  "long words of two letters": [..."ab"],
  everything: [..."aB'sé界🙂1234  \n.!?"],
};
for (const [name, alphabet] of Object.entries(ALPHABETS))
  for (const pre of ["gpt-2", "dbrx", "smollm", "default"])
    test(`${pre}, random text merges as by the naive method: ${name}`, () => {
      const random = randomInts(9);
      const randomText = (n: number): string =>
        Array.from({ length: n }, () => alphabet[random(alphabet.length)]).join("");
      const merges = learnMerges(randomText(1500), 120);
      const tokenizer = Tokenizer.create(wasm, byteLevelVocabulary(pre, merges));
      for (let i = 0; i < 60; i++) {
        const text = randomText(1 + random(i % 6 === 0 ? 150 : 20));
        const actual = Array.from(tokenizer.encode(text), (id) => tokenizer.tokenText(id));
        const words = preTokenize(pre, text).map(byteString);
        const expected = words.flatMap((word) => bytePairMerge(word, merges)).map(spell);
        assert.deepEqual(actual, expected, JSON.stringify(text));
      }
      tokenizer.dispose();
    });
