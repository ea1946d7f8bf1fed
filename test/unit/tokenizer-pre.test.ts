/**
 * Pre-tokenizers: hand-made rows, and random text against the regular expressions. The words are made visible by a
 * vocabulary in which every part of the text is a token, so that each word ends up as one token.
 */

import assert from "node:assert/strict";
import { before, test } from "node:test";
import type { WasmModule } from "../../src/backend/wasm/module.ts";
import { Tokenizer } from "../../src/tokenizer/tokenizer.ts";
import {
  byteLevelVocabulary,
  byteString,
  randomInts,
  tokenizerWasm,
} from "../fixtures/tokenizer-vocabulary.ts";
import { preTokenize } from "../reference/pre-tokenize.ts";

let wasm: WasmModule;
before(async () => {
  wasm = await tokenizerWasm();
});

const UTF8 = new TextDecoder("utf-8", { ignoreBOM: true });

/** The words into which `pre` cuts `text` (about 30 bytes at most). */
function words(pre: string, text: string): string[] {
  const bytes = byteString(text);
  const merges: [string, string][] = [];
  for (let length = 2; length <= bytes.length; length++) {
    const parts = new Set<string>();
    for (let at = 0; at + length <= bytes.length; at++) parts.add(bytes.slice(at, at + length));
    for (const part of parts) for (let k = 1; k < length; k++) merges.push([part.slice(0, k), part.slice(k)]);
  }
  const tokenizer = Tokenizer.create(wasm, byteLevelVocabulary(pre, merges));
  try {
    return Array.from(tokenizer.encode(text), (id) => UTF8.decode(tokenizer.tokenBytes(id)));
  } finally {
    tokenizer.dispose();
  }
}

const rows: { pre: string; reason: string; text: string; words: string[] }[] = [
  { pre: "gpt-2", reason: "a space goes with the word", text: "a bc  d", words: ["a", " bc", " ", " d"] },
  {
    pre: "gpt-2",
    reason: "contractions in small letters",
    text: "we'll I'LL",
    words: ["we", "'ll", " I", "'", "LL"],
  },
  { pre: "gpt-2", reason: "numbers of any length", text: "x 12345y", words: ["x", " 12345", "y"] },
  { pre: "gpt-2", reason: "space at the end stays whole", text: "a   ", words: ["a", "   "] },
  { pre: "gpt-2", reason: "newlines are space", text: "a\n\n b", words: ["a", "\n\n", " b"] },
  { pre: "gpt-2", reason: "symbols run together", text: "a?! ...b", words: ["a", "?!", " ...", "b"] },
  { pre: "gpt-2", reason: "an apostrophe among symbols is one", text: "'''s", words: ["'''", "s"] },
  {
    pre: "gpt-2",
    reason: "no-break space is space, not a prefix",
    text: "a\u00a0b",
    words: ["a", "\u00a0", "b"],
  },
  {
    pre: "llama-bpe",
    reason: "contractions ignore case",
    text: "we'Ll I'M",
    words: ["we", "'Ll", " I", "'M"],
  },
  { pre: "llama-bpe", reason: "long s is no s", text: "a'ſ", words: ["a", "'ſ"] },
  {
    pre: "llama-bpe",
    reason: "numbers in threes",
    text: "1234567 89",
    words: ["123", "456", "7", " ", "89"],
  },
  {
    pre: "llama-bpe",
    reason: "any one character before letters",
    text: "(ab)\tcd",
    words: ["(ab", ")", "\tcd"],
  },
  { pre: "llama-bpe", reason: "newlines go with symbols", text: "a;\n\nb", words: ["a", ";\n\n", "b"] },
  {
    pre: "llama-bpe",
    reason: "space up to the last newline",
    text: "a \n \n  b",
    words: ["a", " \n \n", " ", " b"],
  },
  { pre: "llama-bpe", reason: "a newline is no prefix", text: "\nab", words: ["\n", "ab"] },
  { pre: "llama-bpe", reason: "a space before a number stands alone", text: "  1", words: [" ", " ", "1"] },
  { pre: "llama-bpe", reason: "marks are no letters", text: "e\u0301a", words: ["e", "\u0301a"] },
  { pre: "qwen2", reason: "every number alone", text: "a 12²", words: ["a", " ", "1", "2", "²"] },
  { pre: "qwen2", reason: "Chinese is letters", text: "你好，世界", words: ["你好", "，世界"] },
  {
    pre: "smollm",
    reason: "every number alone, its space too",
    text: "a 12 b",
    words: ["a", " ", "1", "2", " b"],
  },
  { pre: "smollm", reason: "spaces before a number stay whole", text: "a   1", words: ["a", "   ", "1"] },
  {
    pre: "smollm",
    reason: "contractions end at numbers",
    text: "'1s it's",
    words: ["'", "1", "s", " it", "'s"],
  },
  { pre: "smollm", reason: "newlines", text: "a\n\nb\n 1", words: ["a", "\n", "\n", "b", "\n ", "1"] },
  {
    pre: "smollm",
    reason: "symbols keep their space",
    text: "a (b) --c",
    words: ["a", " (", "b", ")", " --", "c"],
  },
  { pre: "smollm", reason: "fractions are numbers", text: "4 ½", words: ["4", " ", "½"] },
  {
    pre: "default",
    reason: "punctuation first, space apart",
    text: "a (b) c",
    words: ["a", " ", "(", "b", ")", " c"],
  },
  { pre: "default", reason: "so no contractions", text: "it's", words: ["it", "'", "s"] },
  {
    pre: "default",
    reason: "numbers in threes, space apart",
    text: "a 12345",
    words: ["a", " ", "123", "45"],
  },
  { pre: "default", reason: "threes of ASCII digits only", text: "12²3456", words: ["12²", "345", "6"] },
  {
    pre: "default",
    reason: "some symbols are punctuation",
    text: "a<=b^c",
    words: ["a", "<=", "b", "^", "c"],
  },
  { pre: "default", reason: "others keep their space", text: "a `b ©", words: ["a", " `", "b", " ©"] },
  { pre: "default", reason: "newlines", text: "a\n\n b", words: ["a", "\n\n", " b"] },
  {
    pre: "default",
    reason: "Chinese punctuation",
    text: "你好，世 界。",
    words: ["你好", "，", "世", " 界", "。"],
  },
];
for (const row of rows)
  test(`${row.pre}: ${row.reason}`, () => {
    assert.deepEqual(preTokenize(row.pre, row.text), row.words, "the regular expressions");
    assert.deepEqual(words(row.pre, row.text), row.words);
  });

const ALPHABET = [
  ..."aZsStTrReEvVmMlLdD'''",
  ...["'s", "'LL", "'re", "ab"],
  ..."    \t\n\n\r\r\u000b\u0085\u00a0\u2003\u3000",
  ..."0123456789²½٣Ⅷ",
  ..."?!.,-()|$+=^~`<>",
  ..."é你好ー한ทिا\u0301©™\u200d\ufeff\u0000🙂𝐀𝟘",
];

for (const pre of ["gpt-2", "llama-bpe", "dbrx", "qwen2", "smollm", "default"])
  test(`${pre}: random text is cut as by the regular expressions`, () => {
    const random = randomInts(11);
    for (let i = 0; i < 150; i++) {
      const text = Array.from({ length: 1 + random(12) }, () => ALPHABET[random(ALPHABET.length)]).join("");
      assert.deepEqual(words(pre, text), preTokenize(pre, text), JSON.stringify(text));
    }
  });
