/** Special tokens: cutting text at them, BOS and EOS, and what ends generation. */

import assert from "node:assert/strict";
import { before, test } from "node:test";
import type { WasmModule } from "../../src/backend/wasm/module.ts";
import { type EncodeOptions, Tokenizer } from "../../src/tokenizer/tokenizer.ts";
import type { Vocabulary } from "../../src/tokenizer/vocabulary.ts";
import {
  BYTE_TOKENS,
  byteLevelVocabulary,
  CONTROL,
  NORMAL,
  randomInts,
  sentencePieceVocabulary,
  type Token,
  tokenizerWasm,
  UNKNOWN,
  USER_DEFINED,
} from "../fixtures/tokenizer-vocabulary.ts";
import { type SpecialToken, splitAtSpecial } from "../reference/special-tokens.ts";

let wasm: WasmModule;
before(async () => {
  wasm = await tokenizerWasm();
});

function withTokenizer<T>(vocabulary: Vocabulary, use: (tokenizer: Tokenizer) => T): T {
  const tokenizer = Tokenizer.create(wasm, vocabulary);
  try {
    return use(tokenizer);
  } finally {
    tokenizer.dispose();
  }
}

function spellings(vocabulary: Vocabulary, text: string, options?: EncodeOptions): string[] {
  return withTokenizer(vocabulary, (t) => Array.from(t.encode(text, options), (id) => t.tokenText(id)));
}

const PARSE = { parseSpecial: true };

/** Byte-level with single bytes and these special tokens. */
function bytesAnd(...special: Token[]): Vocabulary {
  return byteLevelVocabulary("gpt-2", [], special);
}

test("control tokens are read only with parseSpecial, user-defined ones always", () => {
  const vocabulary = bytesAnd(
    ["<c>", 0, CONTROL],
    ["<u>", 0, USER_DEFINED],
    ["<?>", 0, UNKNOWN],
    ["<n>", 0, NORMAL],
  );
  assert.deepEqual(spellings(vocabulary, "<c>"), ["<", "c", ">"]);
  assert.deepEqual(spellings(vocabulary, "<c>", PARSE), ["<c>"]);
  assert.deepEqual(spellings(vocabulary, "<?>"), ["<", "?", ">"]);
  assert.deepEqual(spellings(vocabulary, "<?>", PARSE), ["<?>"]);
  assert.deepEqual(spellings(vocabulary, "a<u>b"), ["a", "<u>", "b"]);
  assert.deepEqual(spellings(vocabulary, "<n>", PARSE), ["<", "n", ">"]);
});

const rows: { reason: string; special: string[]; text: string; expected: string[] }[] = [
  { reason: "side by side", special: ["<a>"], text: "<a><a>x<a>", expected: ["<a>", "<a>", "x", "<a>"] },
  {
    reason: "the longest of those that start together",
    special: ["<a", "<a>"],
    text: "<a>",
    expected: ["<a>"],
  },
  {
    reason: "a longer one wins though it starts later",
    special: ["xy", "yzz"],
    text: "xyzz",
    expected: ["x", "yzz"],
  },
  { reason: "leftmost of the same", special: ["aa"], text: "aaa", expected: ["aa", "a"] },
  { reason: "one byte", special: ["#"], text: "a#b#", expected: ["a", "#", "b", "#"] },
  { reason: "cut off at the end", special: ["<a>", "#!"], text: "#<a", expected: ["#", "<", "a"] },
  { reason: "outside ASCII", special: ["<｜e｜>"], text: "x<｜e｜>", expected: ["x", "<｜e｜>"] },
  {
    reason: "within what a longer one left over",
    special: ["abc", "bc", "c"],
    text: "abcbcc",
    expected: ["abc", "bc", "c"],
  },
];
for (const row of rows)
  test(`special tokens: ${row.reason}`, () => {
    const vocabulary = bytesAnd(...row.special.map((text): Token => [text, 0, CONTROL]));
    assert.deepEqual(spellings(vocabulary, row.text, PARSE), row.expected);
    const pieces = splitAtSpecial(
      row.text,
      row.special.map((text) => ({ text })),
    );
    const expected = pieces.flatMap((piece) => (typeof piece === "string" ? [...piece] : [piece.text]));
    assert.deepEqual(expected, row.expected, "the naive method");
  });

test("random text is cut as by the naive method", () => {
  const random = randomInts(3);
  const alphabet = [..."abc <>é\n"];
  const randomText = (n: number): string =>
    Array.from({ length: n }, () => alphabet[random(alphabet.length)]).join("");
  for (let round = 0; round < 60; round++) {
    const texts = new Set(Array.from({ length: 1 + random(8) }, () => randomText(1 + random(4))));
    const stripRight = round % 2 === 1;
    const special = [...texts].map((text): SpecialToken => ({ text, stripRight }));
    // Tokens of one length that overlap may go in any order: leave such vocabularies out.
    const lengths = special.map(({ text }) => new TextEncoder().encode(text).length);
    if (new Set(lengths).size < lengths.length) continue;
    const vocabulary: Vocabulary = {
      ...bytesAnd(...special.map(({ text }): Token => [text, 0, CONTROL])),
      stripAfterSpecial: stripRight,
    };
    withTokenizer(vocabulary, (tokenizer) => {
      for (let i = 0; i < 30; i++) {
        const text = randomText(random(60));
        const expected = splitAtSpecial(text, special).flatMap((piece) =>
          typeof piece === "string" ? [...tokenizer.encode(piece)] : [256 + special.indexOf(piece)],
        );
        assert.deepEqual([...tokenizer.encode(text, PARSE)], expected, JSON.stringify({ text, special }));
      }
    });
  }
});

test("white space after a special token is dropped where the vocabulary says so, but for some tokens", () => {
  const tokens: Token[] = [
    ["<e>", 0, CONTROL],
    ["<u>", 0, USER_DEFINED],
    ["<|endoftext|>", 0, CONTROL],
  ];
  const vocabulary: Vocabulary = { ...bytesAnd(...tokens), stripAfterSpecial: true };
  assert.deepEqual(spellings(vocabulary, "<e> \n\t\v\f\ra b", PARSE), ["<e>", "a", "Ġ", "b"]);
  assert.deepEqual(spellings(vocabulary, "<u>  a"), ["<u>", "a"]);
  assert.deepEqual(spellings(vocabulary, "<e>  "), ["<", "e", ">", "Ġ", "Ġ"]);
  assert.deepEqual(spellings(vocabulary, "<e>  ", PARSE), ["<e>"]);
  assert.deepEqual(spellings(vocabulary, "<e> <e>", PARSE), ["<e>", "<e>"]);
  assert.deepEqual(spellings(vocabulary, "<e>\u00a0", PARSE), ["<e>", "Â", "ł"]);
  assert.deepEqual(spellings(vocabulary, "<|endoftext|> a", PARSE), ["<|endoftext|>", "Ġ", "a"]);
});

test("SentencePiece text gets its space at the start and after each special token", () => {
  const tokens: Token[] = [...BYTE_TOKENS, ["▁"], ["a"], ["▁a"], ["<u>", 0, USER_DEFINED]];
  const vocabulary = sentencePieceVocabulary(tokens);
  assert.deepEqual(spellings(vocabulary, "a<s>a a</s>", PARSE), ["▁a", "<s>", "▁a", "▁a", "</s>"]);
  assert.deepEqual(spellings(vocabulary, "<u>a"), ["<u>", "▁a"]);
  const none = { ...vocabulary, addSpacePrefix: false };
  assert.deepEqual(spellings(none, "a<s>a", PARSE), ["a", "<s>", "a"]);
});

test("BOS and EOS: by the file, else by the kind of vocabulary", () => {
  const sentencePiece = sentencePieceVocabulary(BYTE_TOKENS, { addSpacePrefix: false });
  const llama3 = byteLevelVocabulary("llama-bpe", [], [["<b>"], ["<e>"]], {
    addBos: undefined,
    bosId: 256,
    eosId: 257,
  });
  const qwen2: Vocabulary = { ...llama3, pre: "qwen2" };
  const encode = (vocabulary: Vocabulary, text: string): number[] =>
    withTokenizer(vocabulary, (t) => [...t.encode(text, { addSpecial: true })]);
  const a = BYTE_TOKENS.findIndex(([text]) => text === "<0x61>");
  assert.deepEqual(encode(sentencePiece, "a"), [1, a]);
  assert.deepEqual(encode(sentencePiece, ""), [1]);
  assert.deepEqual(encode({ ...sentencePiece, addBos: false }, "a"), [a]);
  assert.deepEqual(encode({ ...sentencePiece, addEos: true }, "a"), [1, a, 2]);
  assert.deepEqual(encode({ ...sentencePiece, bosId: 2 }, "a"), [2, a]);
  assert.deepEqual(encode(llama3, "a"), [256, 97]);
  assert.deepEqual(encode({ ...llama3, bosId: undefined }, "a"), [97], "no BOS to add");
  assert.deepEqual(encode(qwen2, "a"), [97]);
  assert.deepEqual(encode({ ...qwen2, addBos: true, addEos: true }, "a"), [256, 97, 257]);
  assert.deepEqual(
    withTokenizer(llama3, (t) => [...t.encode("a")]),
    [97],
    "not unless asked for",
  );
});

test("ids that the file does not give", () => {
  withTokenizer(sentencePieceVocabulary(BYTE_TOKENS), (t) =>
    assert.deepEqual([t.unkId, t.bosId, t.eosId], [0, 1, 2]),
  );
  withTokenizer(bytesAnd(), (t) =>
    assert.deepEqual([t.unkId, t.bosId, t.eosId], [undefined, undefined, undefined]),
  );
});

const endings: { reason: string; vocabulary: Vocabulary; expected: string[] }[] = [
  {
    reason: "EOS of the file",
    vocabulary: { ...bytesAnd(["<x>", 0, CONTROL]), eosId: 256 },
    expected: ["<x>"],
  },
  {
    reason: "end of turn and of message of the file",
    vocabulary: { ...bytesAnd(["<x>"], ["<y>"], ["<z>"]), eotId: 256, eomId: 258 },
    expected: ["<x>", "<z>"],
  },
  {
    reason: "Llama 3",
    vocabulary: {
      ...bytesAnd(
        ["<|end_of_text|>", 0, CONTROL],
        ["<|eot_id|>", 0, CONTROL],
        ["<|eom_id|>", 0, CONTROL],
        ["<|x|>", 0, CONTROL],
      ),
      eosId: 257,
    },
    expected: ["<|end_of_text|>", "<|eot_id|>", "<|eom_id|>"],
  },
  {
    reason: "ChatML, fill-in-the-middle",
    vocabulary: bytesAnd(
      ["<|endoftext|>", 0, CONTROL],
      ["<|im_start|>", 0, CONTROL],
      ["<|im_end|>", 0, CONTROL],
      ["<|fim_prefix|>", 0, USER_DEFINED],
      ["<|fim_pad|>", 0, USER_DEFINED],
      ["<|repo_name|>", 0, USER_DEFINED],
      ["<|file_sep|>", 0, USER_DEFINED],
    ),
    expected: ["<|endoftext|>", "<|im_end|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"],
  },
  {
    reason: "Gemma, Phi, DeepSeek",
    vocabulary: bytesAnd(["<end_of_turn>"], ["<|end|>"], ["<｜end▁of▁sentence｜>"], ["<start_of_turn>"]),
    expected: ["<end_of_turn>", "<|end|>", "<｜end▁of▁sentence｜>"],
  },
  { reason: "none", vocabulary: bytesAnd(["<x>", 0, CONTROL]), expected: [] },
];
for (const { reason, vocabulary, expected } of endings)
  test(`what ends generation: ${reason}`, () => {
    withTokenizer(vocabulary, (t) => {
      const ends = Array.from({ length: t.nTokens }, (_, id) => id).filter((id) => t.isEndOfGeneration(id));
      assert.deepEqual(
        ends.map((id) => t.tokenText(id)),
        expected,
      );
      assert.deepEqual(t.endOfGenerationIds, ends);
    });
  });

test("tokens known by name are control tokens, whatever the file says", () => {
  const vocabulary = bytesAnd(
    ["<|im_end|>", 0, NORMAL],
    ["<|fim_middle|>", 0, USER_DEFINED],
    ["<fim_middle>", 0, USER_DEFINED],
  );
  withTokenizer(vocabulary, (t) => {
    assert.deepEqual(
      [256, 257, 258, 65].map((id) => t.isControl(id)),
      [true, true, false, false],
    );
    assert.equal(t.decode([256, 65]), "A");
    assert.equal(t.eotId, 256);
    assert.deepEqual([...t.encode("<|im_end|>", PARSE)], [256]);
    assert.equal(t.encode("<|im_end|>").length, 10);
    assert.equal(t.tokenId("<|im_end|>"), 256);
    assert.equal(t.tokenId("<|im_start|>"), undefined);
  });
});
