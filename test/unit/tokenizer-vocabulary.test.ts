/** Reading a vocabulary: one sound file, then files with exactly one thing wrong. */

import assert from "node:assert/strict";
import { before, test } from "node:test";
import type { WasmModule } from "../../src/backend/wasm/module.ts";
import { type ErrorCode, InlayError } from "../../src/errors.ts";
import { Tokenizer } from "../../src/tokenizer/tokenizer.ts";
import { type Vocabulary, vocabularyFromMetadata } from "../../src/tokenizer/vocabulary.ts";
import { byteLevelVocabulary, stringArray, tokenizerWasm } from "../fixtures/tokenizer-vocabulary.ts";

let wasm: WasmModule;
before(async () => {
  wasm = await tokenizerWasm();
});

const K = "tokenizer.ggml.";

const SENTENCE_PIECE: Record<string, unknown> = {
  [`${K}model`]: "llama",
  [`${K}tokens`]: stringArray(["<unk>", "<s>", "</s>", "a", "▁a"]),
  [`${K}scores`]: Float32Array.of(0, 0, 0, -1, -2),
  [`${K}token_type`]: Int32Array.of(2, 3, 3, 1, 1),
  [`${K}bos_token_id`]: 1,
  [`${K}eos_token_id`]: 2,
  "general.name": "test",
};

const BYTE_LEVEL: Record<string, unknown> = {
  [`${K}model`]: "gpt2",
  [`${K}pre`]: "gpt-2",
  [`${K}tokens`]: stringArray(["a", "b", "ab"]),
  [`${K}merges`]: stringArray(["a b"]),
};

function read(metadata: Record<string, unknown>): Vocabulary {
  return vocabularyFromMetadata(new Map(Object.entries(metadata)));
}

function load(metadata: Record<string, unknown>): void {
  Tokenizer.create(wasm, read(metadata)).dispose();
}

test("sound files", () => {
  const vocabulary = read(SENTENCE_PIECE);
  assert.equal(vocabulary.model, "llama");
  assert.equal(vocabulary.tokens.count, 5);
  assert.equal(vocabulary.scores?.[4], -2);
  assert.deepEqual([vocabulary.bosId, vocabulary.eosId, vocabulary.unkId], [1, 2, undefined]);
  assert.equal(vocabulary.stripAfterSpecial, false);
  assert.equal(read(BYTE_LEVEL).pre, "gpt-2");
  load(SENTENCE_PIECE);
  load(BYTE_LEVEL);
});

const tolerated: { reason: string; base: Record<string, unknown>; change: Record<string, unknown> }[] = [
  { reason: "no pre-tokenizer", base: BYTE_LEVEL, change: { [`${K}pre`]: undefined } },
  {
    reason: "no scores and types",
    base: SENTENCE_PIECE,
    change: { [`${K}scores`]: undefined, [`${K}token_type`]: undefined },
  },
  { reason: "whole scores", base: SENTENCE_PIECE, change: { [`${K}scores`]: Int32Array.of(0, 0, 0, 1, 2) } },
  { reason: "an id that says none", base: SENTENCE_PIECE, change: { [`${K}unknown_token_id`]: 0xffffffff } },
  { reason: "a 64-bit id", base: SENTENCE_PIECE, change: { [`${K}eos_token_id`]: 2n } },
  {
    reason: "equal tokens",
    base: SENTENCE_PIECE,
    change: { [`${K}tokens`]: stringArray(["<unk>", "<s>", "</s>", "a", "a"]) },
  },
  {
    reason: "empty tokens",
    base: SENTENCE_PIECE,
    change: { [`${K}tokens`]: stringArray(["", "", "", "a", ""]) },
  },
  {
    reason: "tokens that are not UTF-8",
    base: SENTENCE_PIECE,
    change: { [`${K}tokens`]: stringArray(["<unk>", "<s>", "</s>", "a", Uint8Array.of(0xff, 0xe2, 0x96)]) },
  },
  {
    reason: "unknown token types",
    base: SENTENCE_PIECE,
    change: { [`${K}token_type`]: Int32Array.of(-1, 99, 0, 1, 1) },
  },
  { reason: "no merges at all", base: BYTE_LEVEL, change: { [`${K}merges`]: stringArray([]) } },
];
for (const { reason, base, change } of tolerated)
  test(`accepted: ${reason}`, () => {
    const tokenizer = Tokenizer.create(wasm, read({ ...base, ...change }));
    assert.ok(tokenizer.encode("a").length > 0);
    tokenizer.dispose();
  });

interface Fault {
  reason: string;
  base: Record<string, unknown>;
  change: Record<string, unknown>;
  code: ErrorCode;
  says: RegExp;
}

const faults: Fault[] = [
  {
    reason: "no tokenizer",
    base: SENTENCE_PIECE,
    change: { [`${K}model`]: undefined },
    code: "invalid-model",
    says: /tokenizer\.ggml\.model/,
  },
  {
    reason: "another kind of tokenizer",
    base: SENTENCE_PIECE,
    change: { [`${K}model`]: "bert" },
    code: "unsupported-model",
    says: /"bert".*"llama".*"gpt2"/,
  },
  {
    reason: "another pre-tokenizer",
    base: BYTE_LEVEL,
    change: { [`${K}pre`]: "tekken" },
    code: "unsupported-model",
    says: /"tekken".*llama-bpe.*qwen2/,
  },
  {
    reason: "a pre-tokenizer with a name from Object",
    base: BYTE_LEVEL,
    change: { [`${K}pre`]: "constructor" },
    code: "unsupported-model",
    says: /"constructor"/,
  },
  {
    reason: "no tokens",
    base: SENTENCE_PIECE,
    change: { [`${K}tokens`]: undefined },
    code: "invalid-model",
    says: /tokenizer\.ggml\.tokens is missing/,
  },
  {
    reason: "zero tokens",
    base: SENTENCE_PIECE,
    change: { [`${K}tokens`]: stringArray([]) },
    code: "invalid-model",
    says: /no tokens/,
  },
  {
    reason: "tokens of a wrong type",
    base: SENTENCE_PIECE,
    change: { [`${K}tokens`]: 7 },
    code: "invalid-model",
    says: /tokens should be an array of strings/,
  },
  {
    reason: "no merges",
    base: BYTE_LEVEL,
    change: { [`${K}merges`]: undefined },
    code: "invalid-model",
    says: /merges is missing/,
  },
  {
    reason: "too few scores",
    base: SENTENCE_PIECE,
    change: { [`${K}scores`]: Float32Array.of(1, 2) },
    code: "invalid-model",
    says: /5 tokens but 2 scores/,
  },
  {
    reason: "too many types",
    base: SENTENCE_PIECE,
    change: { [`${K}token_type`]: new Int32Array(6) },
    code: "invalid-model",
    says: /5 tokens but 6 token types/,
  },
  {
    reason: "a score that is not a number",
    base: SENTENCE_PIECE,
    change: { [`${K}scores`]: Float32Array.of(0, 0, 0, Number.NaN, 0) },
    code: "invalid-model",
    says: /token 3 of 5.*not a number/,
  },
  {
    reason: "scores of a wrong type",
    base: SENTENCE_PIECE,
    change: { [`${K}scores`]: "x" },
    code: "invalid-model",
    says: /scores should be/,
  },
  {
    reason: "64-bit types",
    base: SENTENCE_PIECE,
    change: { [`${K}token_type`]: new BigInt64Array(5) },
    code: "invalid-model",
    says: /BigInt64Array/,
  },
  {
    reason: "an id out of range",
    base: SENTENCE_PIECE,
    change: { [`${K}eos_token_id`]: 5 },
    code: "invalid-model",
    says: /eos_token_id is 5.*5 tokens/,
  },
  {
    reason: "an id that is no number",
    base: SENTENCE_PIECE,
    change: { [`${K}bos_token_id`]: "1" },
    code: "invalid-model",
    says: /bos_token_id should be a number/,
  },
  {
    reason: "a flag that is no boolean",
    base: SENTENCE_PIECE,
    change: { [`${K}add_bos_token`]: 1 },
    code: "invalid-model",
    says: /add_bos_token should be a boolean/,
  },
  {
    reason: "BOS wanted but not given",
    base: BYTE_LEVEL,
    change: { [`${K}add_bos_token`]: true },
    code: "invalid-model",
    says: /no tokenizer\.ggml\.bos_token_id/,
  },
  {
    reason: "EOS wanted but not given",
    base: BYTE_LEVEL,
    change: { [`${K}add_eos_token`]: true },
    code: "invalid-model",
    says: /no tokenizer\.ggml\.eos_token_id/,
  },
  {
    reason: "tokens cut off",
    base: BYTE_LEVEL,
    change: { [`${K}tokens`]: cutOff(stringArray(["a", "b", "ab"]), 1) },
    code: "invalid-model",
    says: /token 2 of 3.*27 bytes/,
  },
  {
    reason: "more tokens than bytes",
    base: BYTE_LEVEL,
    change: { [`${K}tokens`]: { ...stringArray(["a"]), count: 4_000_000_000 } },
    code: "invalid-model",
    says: /token 1 of 4000000000/,
  },
  {
    reason: "bytes after the tokens",
    base: BYTE_LEVEL,
    change: { [`${K}tokens`]: { ...stringArray(["a", "b", "ab"]), count: 2 } },
    code: "invalid-model",
    says: /left over after 2/,
  },
  {
    reason: "a token's length past the end",
    base: BYTE_LEVEL,
    change: { [`${K}tokens`]: withLength(stringArray(["a", "b"]), 9, 2n ** 63n) },
    code: "invalid-model",
    says: /token 1 of 2/,
  },
  {
    reason: "a merge without a space",
    base: BYTE_LEVEL,
    change: { [`${K}merges`]: stringArray(["a b", "ab"]) },
    code: "invalid-model",
    says: /merge 1 of 2/,
  },
  {
    reason: "a merge without a right side",
    base: BYTE_LEVEL,
    change: { [`${K}merges`]: stringArray(["a "]) },
    code: "invalid-model",
    says: /merge 0 of 1/,
  },
  {
    reason: "an empty merge",
    base: BYTE_LEVEL,
    change: { [`${K}merges`]: stringArray([""]) },
    code: "invalid-model",
    says: /merge 0 of 1/,
  },
  {
    reason: "merges cut off",
    base: BYTE_LEVEL,
    change: { [`${K}merges`]: cutOff(stringArray(["a b"]), 1) },
    code: "invalid-model",
    says: /merge 0 of 1/,
  },
];
for (const { reason, base, change, code, says } of faults)
  test(`refused: ${reason}`, () => {
    assert.throws(
      () => load({ ...base, ...change }),
      (error: unknown) => {
        assert.ok(error instanceof InlayError, String(error));
        assert.equal(error.code, code);
        assert.match(error.message, says);
        return true;
      },
    );
  });

function cutOff({ count, bytes }: ReturnType<typeof stringArray>, n: number): unknown {
  return { count, bytes: bytes.subarray(0, -n) };
}

function withLength({ count, bytes }: ReturnType<typeof stringArray>, at: number, length: bigint): unknown {
  const copy = bytes.slice();
  new DataView(copy.buffer).setBigUint64(at, length, true);
  return { count, bytes: copy };
}

test("white space after special tokens is dropped for Phi-3, known by its name", () => {
  for (const [name, expected] of [
    ["Phi-3-mini", true],
    ["phi3", true],
    ["Phi-2", false],
    [undefined, false],
  ] as const)
    assert.equal(read({ ...SENTENCE_PIECE, "general.name": name }).stripAfterSpecial, expected, name);
});

test("every name of a pre-tokenizer loads", () => {
  const names = new Set<string>();
  try {
    load({ ...BYTE_LEVEL, [`${K}pre`]: "?" });
  } catch (error) {
    for (const name of (error as InlayError).details.supported as string[]) names.add(name);
  }
  assert.ok(names.size > 30);
  for (const pre of names) {
    const tokenizer = Tokenizer.create(wasm, byteLevelVocabulary(pre, [["a", "b"]]));
    assert.deepEqual(tokenizer.decode(tokenizer.encode("abc 12")), "abc 12");
    tokenizer.dispose();
  }
});
