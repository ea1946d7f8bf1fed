import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { makeVocabulary, planGguf, type TokenizerKind } from "../../tools/gguf/model.mjs";
import { FILE_TYPES, tinyGguf } from "../fixtures/make-tiny-gguf.ts";
import { dequantize, tensorByteLength } from "../reference/dequantize.ts";
import { parseGguf } from "../reference/gguf-file.ts";

const TOOLS = fileURLToPath(new URL("../../tools/", import.meta.url));

function valuesOf(file: Uint8Array, name: string): Float64Array {
  const tensor = parseGguf(file).tensors.get(name)!;
  return dequantize(tensor.typeId, tensor.bytes.subarray(0, tensorByteLength(tensor.typeId, tensor.dims)));
}

test("the same seed gives the same bytes, another seed does not", () => {
  assert.deepEqual(tinyGguf("tiny-llama"), tinyGguf("tiny-llama"));
  assert.notDeepEqual(
    valuesOf(tinyGguf(), "token_embd.weight"),
    valuesOf(tinyGguf("tiny-llama", { seed: 2 }), "token_embd.weight"),
  );
});

test("a quantized model has the weights of the f32 model of the same seed", () => {
  const exact = valuesOf(tinyGguf("tiny-llama-k"), "blk.1.ffn_gate.weight");
  for (const type of ["Q8_0", "Q6_K", "Q4_K_M"] as const) {
    const rounded = valuesOf(tinyGguf("tiny-llama-k", { type }), "blk.1.ffn_gate.weight");
    const error = exact.reduce((sum, v, i) => sum + (v - rounded[i]!) ** 2, 0);
    const size = exact.reduce((sum, v) => sum + v ** 2, 0);
    assert.ok(Math.sqrt(error / size) < 0.15, `${type}: ${Math.sqrt(error / size)}`);
  }
});

test("every file type is used for the matrices it names; rows that do not fit get smaller blocks", () => {
  const typesOf = (...arguments_: Parameters<typeof planGguf>) =>
    [...new Set(planGguf(...arguments_).tensors.map((t) => t.type))].sort();
  for (const type of FILE_TYPES) {
    if (!type.endsWith("_M"))
      assert.deepEqual(
        typesOf("tiny-llama-k", { type }),
        ["F32", type].filter((t, i) => i === 0 || t !== "F32").sort(),
      );
  }
  assert.deepEqual(typesOf("tiny-llama-k", { type: "Q4_K_M" }), ["F32", "Q4_K", "Q6_K"]);
  assert.deepEqual(typesOf("tiny-llama", { type: "Q4_K_M" }), ["F32", "Q5_0", "Q8_0"]);
  assert.deepEqual(typesOf("tiny-llama-spm", { type: "Q8_0" }), ["F16", "F32", "Q8_0"]);
});

for (const [preset, nParameters] of [
  ["smollm2-135m", 134_515_008],
  ["qwen2.5-0.5b", 494_032_768],
  ["qwen3-0.6b", 596_049_920],
  // 1,235,814,400 and the 32 RoPE factors.
  ["llama3.2-1b", 1_235_814_432],
] as const) {
  test(`${preset} has as many parameters as the real model`, () => {
    const { tensors } = planGguf(preset, { type: "Q4_0" });
    assert.equal(
      tensors.reduce((sum, t) => sum + t.dims.reduce((a, b) => a * b), 0),
      nParameters,
    );
  });
}

for (const [kind, size] of [
  ["smollm", 259],
  ["smollm", 49_152],
  ["qwen2", 151_936],
  ["llama-bpe", 128_256],
  ["spm", 512],
  ["spm", 32_000],
] as [TokenizerKind, number][]) {
  test(`vocabulary ${kind} of ${size}: unique tokens, merges of earlier tokens`, () => {
    const metadata = new Map(makeVocabulary(kind, size).metadata.map(([key, , value]) => [key, value]));
    const tokens = metadata.get("tokenizer.ggml.tokens") as string[];
    assert.equal(tokens.length, size);
    const inVocabulary = new Set(tokens);
    assert.equal(inVocabulary.size, size);
    const known = new Set(tokens.filter((t) => [...t].length === 1));
    for (const merge of (metadata.get("tokenizer.ggml.merges") ?? []) as string[]) {
      const [left, right] = merge.split(" ");
      assert.ok(known.has(left!) && known.has(right!), merge);
      known.add(left! + right!);
      assert.ok(inVocabulary.has(left! + right!), merge);
    }
    for (const id of ["bos", "eos"])
      assert.ok((metadata.get(`tokenizer.ggml.${id}_token_id`) as number) < size);
  });
}

test("a vocabulary that is too small for the bytes is refused", () => {
  assert.throws(() => makeVocabulary("qwen2", 200), {
    name: "RangeError",
    message: /needs 259 tokens, not 200/,
  });
  assert.throws(() => makeVocabulary("spm", 300), { name: "RangeError", message: /not 300/ });
});

test("the in-memory part needs no Node", () => {
  for (const file of readdirSync(join(TOOLS, "gguf"))) {
    assert.doesNotMatch(
      readFileSync(join(TOOLS, "gguf", file), "utf8"),
      /from "node:|\bBuffer\b|\bprocess\./,
      file,
    );
  }
});

test("the command writes what the function makes, and explains itself otherwise", () => {
  const run = (...args: string[]) =>
    spawnSync(process.execPath, [join(TOOLS, "make-gguf.mjs"), ...args], { encoding: "utf8" });
  const folder = mkdtempSync(join(tmpdir(), "inlay-"));
  try {
    const out = join(folder, "m.gguf");
    const made = run("tiny-qwen3", "q4_k_m", out, "--seed", "9", "--ctx", "2048");
    assert.equal(made.status, 0, made.stderr);
    assert.match(made.stdout, /m\.gguf: \d+ bytes, \d+ tensors, \d+ parameters/);
    const bytes = readFileSync(out);
    assert.equal(parseGguf(bytes).metadata.get("qwen3.context_length"), 2048);
    const expected = valuesOf(tinyGguf("tiny-qwen3", { type: "Q4_K_M", seed: 9 }), "blk.1.ffn_down.weight");
    assert.deepEqual(valuesOf(bytes, "blk.1.ffn_down.weight"), expected);
    for (const args of [
      [],
      ["--nothing"],
      ["nothing", "q4_0", out],
      ["tiny-llama", "q9", out],
      ["tiny-llama", "q4_0", out, "--ctx", "0"],
    ]) {
      const failed = run(...args);
      assert.equal(failed.status, 2);
      assert.match(failed.stderr, /usage: node tools\/make-gguf\.mjs PRESET TYPE OUT/);
    }
  } finally {
    rmSync(folder, { recursive: true });
  }
});
