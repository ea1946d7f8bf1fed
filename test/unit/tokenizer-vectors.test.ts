/**
 * Ids that llama.cpp gives for real vocabularies: its published rows, long real text, rendered chats, prompts of the
 * small models, and rows of our own (test/fixtures/tokenizer-llama-cpp.json). The vocabularies are shared data.
 */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { before, test } from "node:test";
import type { WasmModule } from "../../src/backend/wasm/module.ts";
import { Tokenizer } from "../../src/tokenizer/tokenizer.ts";
import { type Vocabulary, vocabularyFromMetadata } from "../../src/tokenizer/vocabulary.ts";
import { sharedPath } from "../fixtures/shared.ts";
import { ggufMetadata } from "../fixtures/tokenizer-gguf.ts";
import rules from "../fixtures/tokenizer-llama-cpp.json" with { type: "json" };
import { tokenizerWasm } from "../fixtures/tokenizer-vocabulary.ts";

const skip = sharedPath("data", "tokenizers") === undefined && "no shared data here";

let wasm: WasmModule;
before(async () => {
  wasm = await tokenizerWasm();
});

function sharedFile(...parts: string[]): string {
  const path = sharedPath("data", ...parts);
  assert.ok(path, `${parts.join("/")} is missing from the shared data`);
  return path;
}

async function vocabularyOf(...file: string[]): Promise<Vocabulary> {
  return vocabularyFromMetadata(ggufMetadata(await readFile(sharedFile(...file))));
}

async function withTokenizer(
  vocabulary: Vocabulary,
  use: (tokenizer: Tokenizer) => void | Promise<void>,
): Promise<void> {
  const tokenizer = Tokenizer.create(wasm, vocabulary);
  try {
    await use(tokenizer);
  } finally {
    tokenizer.dispose();
  }
}

const PUBLISHED = ["llama-bpe", "qwen2", "gpt-2", "llama-spm", "phi-3"];

for (const name of PUBLISHED)
  test(`${name}: the published rows`, { skip }, async () => {
    const file = `ggml-vocab-${name}.gguf`;
    const inputs = await readFile(sharedFile("tokenizers", `${file}.inp`), "utf8");
    const outputs = await readFile(sharedFile("tokenizers", `${file}.out`), "utf8");
    const texts = inputs.split("\n__ggml_vocab_test__\n").slice(0, 47);
    const expected = outputs.split("\n").slice(0, 47);
    assert.deepEqual([texts.length, expected.length], [47, 47]);
    await withTokenizer(await vocabularyOf("tokenizers", file), (tokenizer) => {
      for (const [i, text] of texts.entries()) {
        const ids = tokenizer.encode(text);
        assert.equal(ids.join(" "), expected[i]!.trim(), JSON.stringify(text));
        assert.equal(tokenizer.decode(ids), text);
      }
    });
  });

for (const set of rules.sets) {
  const how = `${set.pre ? `${set.pre} rules on ` : ""}${set.vocabulary}${set.parseSpecial ? ", special tokens read" : ""}`;
  test(`llama.cpp's ids: ${how}`, { skip }, async () => {
    const vocabulary = await vocabularyOf("tokenizers", `ggml-vocab-${set.vocabulary}.gguf`);
    await withTokenizer({ ...vocabulary, pre: set.pre ?? vocabulary.pre }, (tokenizer) => {
      for (const [text, ids] of set.rows as [string, string][])
        assert.equal(
          tokenizer.encode(text, { parseSpecial: set.parseSpecial }).join(" "),
          ids,
          JSON.stringify(text),
        );
    });
  });
}

interface LongText {
  count: number;
  sha256OfLittleEndianU32: string;
  first32: number[];
  last8: number[];
}

/** A text by the name that long-text-vectors.json gives it: a shared file, the start of one, or itself. */
async function textNamed(name: string): Promise<string> {
  if (name.startsWith("literal: ")) return name.slice("literal: ".length);
  const [, file, end] = /^(\S+) \((?:whole file|bytes 0\.\.(\d+))\)$/.exec(name)!;
  const text = await readFile(sharedFile(...file!.split("/")), "latin1");
  return end ? text.slice(0, Number(end)) : text;
}

test("long real text and rendered chats", { skip }, async (t) => {
  const vectors = JSON.parse(await readFile(sharedFile("tokenizers", "long-text-vectors.json"), "utf8"));
  for (const [name, { texts, chat }] of Object.entries<{
    texts: Record<string, LongText>;
    chat?: Record<string, { text: string; ids: number[] }>;
  }>(vectors.vocabularies)) {
    await t.test(name, async () => {
      await withTokenizer(await vocabularyOf("tokenizers", `ggml-vocab-${name}.gguf`), async (tokenizer) => {
        for (const [textName, expected] of Object.entries(texts)) {
          const text = await textNamed(textName);
          const ids = tokenizer.encode(text);
          assert.deepEqual([...ids.subarray(0, 32)], expected.first32, textName);
          assert.deepEqual([...ids.subarray(-8)], expected.last8, textName);
          assert.equal(ids.length, expected.count, textName);
          const sha256 = createHash("sha256").update(new Uint8Array(ids.buffer)).digest("hex");
          assert.equal(sha256, expected.sha256OfLittleEndianU32, textName);
          assert.equal(tokenizer.decode(ids), text);
        }
        for (const [chatName, { text, ids }] of Object.entries(chat ?? {}))
          assert.deepEqual([...tokenizer.encode(text, { parseSpecial: true })], ids, chatName);
      });
    });
  }
});

for (const model of ["stories260K", "tinystories-656k"])
  test(`${model}: prompts`, { skip }, async () => {
    const expected = JSON.parse(await readFile(sharedFile("models", model, "expected-greedy.json"), "utf8"));
    for (const [file, prompts] of Object.entries<{ prompt: string; promptTokens: number[] }[]>(
      expected.variants,
    ))
      await withTokenizer(await vocabularyOf("models", model, file), (tokenizer) => {
        for (const { prompt, promptTokens } of prompts) {
          assert.deepEqual([...tokenizer.encode(prompt, { addSpecial: true })], promptTokens, prompt);
          assert.equal(tokenizer.decode(promptTokens), prompt);
        }
      });
  });

test("tinystories-656k: characters outside its alphabet are unknown tokens", { skip }, async () => {
  const vocabulary = await vocabularyOf("models", "tinystories-656k", "tinystories-656k-f32.gguf");
  await withTokenizer(vocabulary, (tokenizer) => {
    const ids = tokenizer.encode("a{}界b");
    assert.equal(ids.filter((id) => id === tokenizer.unkId).length, 1);
    assert.equal(tokenizer.decode(ids, { special: true }), "a<unk>b");
    assert.equal(tokenizer.decode(ids), "ab");
  });
});

const endings: Record<string, number[]> = {
  "llama-bpe": [128001, 128009],
  qwen2: [128247, 151643, 151645],
  "gpt-2": [50256],
  "llama-spm": [2],
  "phi-3": [2, 32000, 32007],
};
for (const [name, expected] of Object.entries(endings))
  test(`${name}: what ends generation`, { skip }, async () => {
    await withTokenizer(await vocabularyOf("tokenizers", `ggml-vocab-${name}.gguf`), (tokenizer) => {
      assert.deepEqual(tokenizer.endOfGenerationIds, expected);
    });
  });
