/** Odd and hostile input: ill-formed text, very long text, damaged vocabularies; and memory. */

import assert from "node:assert/strict";
import { before, test } from "node:test";
import type { WasmModule } from "../../src/backend/wasm/module.ts";
import { InlayError } from "../../src/errors.ts";
import { Tokenizer } from "../../src/tokenizer/tokenizer.ts";
import type { Vocabulary } from "../../src/tokenizer/vocabulary.ts";
import {
  BYTE_TOKENS,
  byteLevelVocabulary,
  CONTROL,
  randomInts,
  sentencePieceVocabulary,
  type Token,
  tokenizerWasm,
  USER_DEFINED,
} from "../fixtures/tokenizer-vocabulary.ts";

let wasm: WasmModule;
before(async () => {
  wasm = await tokenizerWasm();
});

const SPACES: Token[] = [1, 2, 4, 8].map((n) => ["▁".repeat(n), n]);
const sentencePiece = sentencePieceVocabulary(
  [
    ...BYTE_TOKENS,
    ...SPACES,
    ["a"],
    ["aa", 2],
    ["aaaa", 1],
    ["th", 3],
    ["the", 4],
    ["▁the", 5],
    ["<c>", 0, CONTROL],
  ],
  { addSpacePrefix: false },
);
const byteLevel = (pre: string): Vocabulary =>
  byteLevelVocabulary(
    pre,
    [
      ["a", "a"],
      ["aa", "aa"],
      [" ", " "],
      ["  ", "  "],
      ["t", "h"],
      ["th", "e"],
      [" ", "the"],
      ["\xf0", "\x9f"],
      ["\xf0\x9f", "\x99"],
    ],
    [["<c>", 0, CONTROL]],
  );

function withTokenizer(vocabulary: Vocabulary, use: (tokenizer: Tokenizer) => void): void {
  const tokenizer = Tokenizer.create(wasm, vocabulary);
  try {
    use(tokenizer);
  } finally {
    tokenizer.dispose();
  }
}

test("the empty string has no tokens", () => {
  for (const vocabulary of [sentencePiece, byteLevel("gpt-2")])
    withTokenizer(vocabulary, (t) => {
      assert.deepEqual([...t.encode("")], []);
      assert.deepEqual([...t.encodeBytes(new Uint8Array())], []);
      assert.equal(t.decode([]), "");
    });
});

test("lone surrogates count as U+FFFD", () => {
  for (const vocabulary of [sentencePiece, byteLevel("llama-bpe")])
    withTokenizer(vocabulary, (t) => {
      for (const text of ["\ud800", "a\udc00b", "\ud83d", "\ud83d\ud83d\ude00"])
        assert.equal(t.decode(t.encode(text)), new TextDecoder().decode(new TextEncoder().encode(text)));
    });
});

test("ill-formed UTF-8 is read as TextDecoder reads it", () => {
  const random = randomInts(29);
  const bytes = [
    0x61, 0x20, 0x80, 0xbf, 0xc0, 0xc2, 0xdf, 0xe0, 0xa0, 0x9f, 0xed, 0xef, 0xf0, 0x90, 0x8f, 0xf4, 0xf5,
    0xff,
  ];
  for (const vocabulary of [sentencePiece, byteLevel("qwen2")])
    withTokenizer(vocabulary, (t) => {
      for (let i = 0; i < 2000; i++) {
        const text = Uint8Array.from({ length: random(16) }, () => bytes[random(bytes.length)]!);
        const decoded = new TextDecoder("utf-8", { ignoreBOM: true }).decode(text);
        assert.deepEqual([...t.encodeBytes(text)], [...t.encode(decoded)], text.join(" "));
      }
    });
});

const MILLION = 1_000_000;
// A quadratic method would take hours on these; the limit is only there to notice.
const longTexts = { timeout: 60_000 };

test("a million times the same letter", longTexts, () => {
  for (const vocabulary of [sentencePiece, byteLevel("gpt-2"), byteLevel("default")])
    withTokenizer(vocabulary, (t) => {
      const ids = t.encode("a".repeat(MILLION));
      assert.equal(ids.length, MILLION / 4);
      assert.ok(ids.every((id) => id === ids[0]));
    });
});

test("a million spaces", longTexts, () => {
  for (const pre of ["gpt-2", "llama-bpe", "default"])
    withTokenizer(byteLevel(pre), (t) => {
      assert.equal(t.encode(" ".repeat(MILLION)).length, MILLION / 4);
      // All but the last space are merged on their own: 249999 fours, a two and a one; then that space and the x.
      assert.equal(t.encode(`${" ".repeat(MILLION)}x`).length, MILLION / 4 - 1 + 2 + 2);
    });
  withTokenizer(sentencePiece, (t) => assert.equal(t.encode(" ".repeat(MILLION)).length, MILLION / 8));
});

test("a million emoji, newlines, digits", longTexts, () => {
  for (const pre of ["gpt-2", "llama-bpe", "smollm", "default"])
    withTokenizer(byteLevel(pre), (t) => {
      assert.equal(t.encode("🙂".repeat(MILLION)).length, 2 * MILLION);
      assert.equal(t.encode("\n".repeat(MILLION)).length, MILLION);
      assert.equal(t.encode("1".repeat(MILLION)).length, MILLION);
    });
  withTokenizer(sentencePiece, (t) => assert.equal(t.encode("🙂".repeat(MILLION)).length, 4 * MILLION));
});

test("a megabyte of base64", longTexts, () => {
  const random = randomInts(31);
  const bytes = Uint8Array.from({ length: 750_000 }, () => random(256));
  const text = Buffer.from(bytes).toString("base64");
  for (const vocabulary of [sentencePiece, byteLevel("gpt-2"), byteLevel("llama-bpe")])
    withTokenizer(vocabulary, (t) => assert.equal(t.decode(t.encode(text)), text));
});

test("a million special tokens", longTexts, () => {
  const newlines: Token[] = [1, 2, 3, 4, 5, 6, 7, 8].map((n) => ["\n".repeat(n), 0, USER_DEFINED]);
  withTokenizer(byteLevelVocabulary("gpt-2", [], [["<c>", 0, CONTROL], ...newlines]), (t) => {
    assert.equal(t.encode("<c>".repeat(MILLION), { parseSpecial: true }).length, MILLION);
    assert.equal(t.encode("<c>".repeat(MILLION)).length, 3 * MILLION);
    assert.equal(t.encode("\n".repeat(MILLION)).length, MILLION / 8);
  });
});

test("ten megabytes of text", longTexts, () => {
  const text = "the cat sat on the mat, and then 12 others.\n".repeat(240_000);
  for (const vocabulary of [sentencePiece, byteLevel("llama-bpe")])
    withTokenizer(vocabulary, (t) => assert.equal(t.decode(t.encode(text)), text));
});

test("memory is given back: loading, long texts, and failed loads leave the heap as it was", async () => {
  const fresh = await tokenizerWasm();
  const bad: Vocabulary = { ...byteLevel("gpt-2"), merges: { count: 1, bytes: new Uint8Array(9) } };
  const once = (): void => {
    for (const vocabulary of [sentencePiece, byteLevel("gpt-2")]) {
      const tokenizer = Tokenizer.create(fresh, vocabulary);
      tokenizer.decode(tokenizer.encode("a".repeat(50_000)));
      tokenizer.encodeBytes(new Uint8Array(50_000).fill(0xff));
      tokenizer.dispose();
    }
    assert.throws(() => Tokenizer.create(fresh, bad), InlayError);
  };
  for (let i = 0; i < 3; i++) once();
  const settled = fresh.memory.buffer.byteLength;
  for (let i = 0; i < 20; i++) once();
  assert.equal(fresh.memory.buffer.byteLength, settled);
});

test("a heap that is too small is refused, and the tokenizer stays usable", longTexts, async () => {
  // 20 MiB: enough for three million letters, not for merging them.
  const memory = new WebAssembly.Memory({ initial: 256, maximum: 320 });
  const small = await tokenizerWasm(memory);
  const isOutOfMemory = (error: unknown): boolean =>
    error instanceof InlayError && error.code === "out-of-memory";
  for (const vocabulary of [sentencePiece, byteLevel("gpt-2")]) {
    const tokenizer = Tokenizer.create(small, vocabulary);
    const ids = tokenizer.encode("the aaaa");
    for (const nMillions of [1, 3, 30])
      assert.throws(() => tokenizer.encode("a".repeat(nMillions * MILLION)), isOutOfMemory, `${nMillions}`);
    assert.throws(() => tokenizer.encodeBytes(new Uint8Array(5 * MILLION).fill(0xff)), isOutOfMemory);
    assert.throws(() => tokenizer.encode("<c>".repeat(MILLION), { parseSpecial: true }), isOutOfMemory);
    assert.throws(() => tokenizer.decode(new Uint32Array(4 * MILLION).fill(ids[0]!)), isOutOfMemory);
    assert.deepEqual(tokenizer.encode("the aaaa"), ids);
    const count = 2 * MILLION;
    const tokens = { count, bytes: new Uint8Array(8 * count) };
    assert.throws(
      () => Tokenizer.create(small, { ...vocabulary, tokens, types: undefined, scores: undefined }),
      isOutOfMemory,
    );
    tokenizer.dispose();
  }
});

test("tokenizers share a module without disturbing each other", () => {
  withTokenizer(sentencePiece, (a) =>
    withTokenizer(byteLevel("gpt-2"), (b) => {
      const before = [...a.encode("the a aa")];
      b.encode("the a aa");
      assert.deepEqual([...a.encode("the a aa")], before);
    }),
  );
});

test("dispose can be repeated; use after it is refused", () => {
  const tokenizer = Tokenizer.create(wasm, sentencePiece);
  const detokenizer = tokenizer.detokenizer();
  tokenizer.dispose();
  tokenizer.dispose();
  tokenizer[Symbol.dispose]();
  const uses = [
    () => tokenizer.encode("a"),
    () => tokenizer.decode([1]),
    () => tokenizer.tokenBytes(1),
    () => tokenizer.tokenText(1),
    () => tokenizer.tokenId("a"),
    () => tokenizer.isControl(1),
    () => tokenizer.detokenizer(),
    () => detokenizer.push(1),
  ];
  for (const use of uses)
    assert.throws(use, (error: unknown) => error instanceof InlayError && error.code === "disposed");
});

/** A copy of `vocabulary` with a few random changes, and a name for them. */
function damage(vocabulary: Vocabulary, random: (n: number) => number): Vocabulary {
  const scramble = (bytes: Uint8Array): Uint8Array => {
    const copy = bytes.slice(0, random(4) === 0 ? random(bytes.length + 1) : bytes.length);
    for (let n = 1 + random(4); n > 0 && copy.length > 0; n--) {
      const at = random(copy.length);
      copy[at] = [0, 0xff, 0x80, 0x20, copy[at]! ^ (1 << random(8)), random(256)][random(6)]!;
    }
    return copy;
  };
  const scrambled = <T extends Int32Array | Float32Array>(array: T): T => {
    const copy = array.slice() as T;
    scramble(new Uint8Array(copy.buffer)).forEach((b, i) => {
      new Uint8Array(copy.buffer)[i] = b;
    });
    return copy;
  };
  const { tokens, merges, types, scores } = vocabulary;
  const count = (n: number): number => (random(3) === 0 ? n + random(5) - 2 : n);
  switch (random(5)) {
    case 0:
      return { ...vocabulary, tokens: { count: tokens.count, bytes: scramble(tokens.bytes) } };
    case 1:
      if (!merges) return { ...vocabulary, scores: scores && scrambled(scores) };
      return { ...vocabulary, merges: { count: count(merges.count), bytes: scramble(merges.bytes) } };
    case 2:
      return { ...vocabulary, types: types && scrambled(types) };
    case 3:
      return {
        ...vocabulary,
        tokens: { ...tokens, count: count(tokens.count) },
        types: undefined,
        scores: undefined,
      };
    default:
      return {
        ...vocabulary,
        stripAfterSpecial: true,
        unkId: random(tokens.count),
        eosId: random(tokens.count),
      };
  }
}

test("damaged vocabularies give an error of ours or a tokenizer that works", async () => {
  const module = await tokenizerWasm();
  const random = randomInts(37);
  const control = Tokenizer.create(module, byteLevel("gpt-2"));
  const controlIds = control.encode("the aaaaa 🙂");
  const seeds = [sentencePiece, byteLevel("gpt-2"), byteLevel("llama-bpe"), byteLevel("default")];
  const texts = [
    "the <c> aaaaaa   the 12345\n\n🙂🙂 '",
    "a".repeat(70),
    "\u0000é界\ufffd",
    "  <c>  <unk></s>",
  ];
  let nSound = 0;
  for (let round = 0; round < 1500; round++) {
    let vocabulary = seeds[round % seeds.length]!;
    for (let n = 1 + random(2); n > 0; n--) vocabulary = damage(vocabulary, random);
    let tokenizer: Tokenizer;
    try {
      tokenizer = Tokenizer.create(module, vocabulary);
    } catch (error) {
      assert.ok(error instanceof InlayError, `round ${round}: ${error}`);
      assert.ok(["invalid-model", "unsupported-model"].includes(error.code), error.message);
      continue;
    }
    nSound++;
    for (const text of texts)
      for (const parseSpecial of [false, true]) {
        const ids = tokenizer.encode(text, { parseSpecial });
        assert.ok(
          ids.every((id) => id < tokenizer.nTokens),
          `round ${round}`,
        );
        tokenizer.decode(ids, { special: parseSpecial });
      }
    for (let id = 0; id < tokenizer.nTokens; id++) tokenizer.tokenText(id);
    tokenizer.dispose();
  }
  assert.ok(nSound > 300 && nSound < 1400, `${nSound} of the damaged vocabularies were usable`);
  assert.deepEqual(control.encode("the aaaaa 🙂"), controlIds);
});
