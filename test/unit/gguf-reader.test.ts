import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { ByteReader } from "../../src/gguf/byte-reader.ts";
import { bytesSource, streamSource } from "../../src/gguf/local-sources.ts";
import { type GgufHeader, readHeader } from "../../src/gguf/reader.ts";
import { TENSOR_TYPES } from "../../src/gguf/tensor-types.ts";
import { type KeyValue, type ModelSpec, PRESETS, QUANTIZERS, writeHeader } from "../../tools/gguf/model.mjs";
import { FILE_TYPES, tinyGguf } from "../fixtures/make-tiny-gguf.ts";
import { sharedPath } from "../fixtures/shared.ts";
import { parseGguf } from "../reference/gguf-file.ts";

const headerOf = (bytes: Uint8Array) => readHeader(new ByteReader(bytesSource(bytes, "test.gguf")));

/** A file that arrives in pieces of `chunkBytes` and does not tell its size. */
function streamed(bytes: Uint8Array, chunkBytes: number): ByteReader {
  let at = 0;
  const stream = new ReadableStream<Uint8Array>({
    pull(controller) {
      if (at >= bytes.byteLength) controller.close();
      else controller.enqueue(bytes.slice(at, at + chunkBytes));
      at += chunkBytes;
    },
  });
  return new ByteReader(streamSource(stream));
}

/** The header in a form that deepEqual can compare. */
function plain(header: GgufHeader) {
  const metadata = [...header.metadata.keys()].map((key) => {
    const value = header.metadata.get(key)!;
    return [key, value.type === "array" && value.elements === "string" ? [...value.value] : value];
  });
  return { ...header, metadata };
}

test("a tiny model: the header says what the generator wrote and what the reference reads", async () => {
  const bytes = tinyGguf("tiny-qwen2", { type: "Q8_0" });
  const header = await headerOf(bytes);
  const reference = parseGguf(bytes);
  assert.equal(header.version, 3);
  assert.equal(header.alignment, 32);
  assert.equal(header.metadata.string("general.architecture"), "qwen2");
  assert.equal(header.metadata.uint("qwen2.block_count"), 2);
  assert.deepEqual([...header.metadata.keys()], [...reference.metadata.keys()]);
  assert.deepEqual(
    [...header.metadata.strings("tokenizer.ggml.tokens")],
    reference.metadata.get("tokenizer.ggml.tokens"),
  );
  assert.equal(header.tensors.length, reference.tensors.size);
  for (const tensor of header.tensors) {
    const expected = reference.tensors.get(tensor.name)!;
    assert.deepEqual(tensor.dims, expected.dims);
    assert.equal(tensor.type.id, expected.typeId);
    assert.equal(tensor.offset, expected.bytes.byteOffset - bytes.byteOffset);
    assert.equal(
      tensor.cols * tensor.rows,
      expected.dims.reduce((a, b) => a * b),
    );
  }
});

/** K types need rows of 256. */
const SMALL_K: ModelSpec = { ...PRESETS["tiny-llama-k"], nLayers: 1, dFfn: 256, nHeads: 2, vocabSize: 260 };

for (const type of FILE_TYPES) {
  test(`${type}: tensors lie behind each other and end with the file`, async () => {
    const bytes = tinyGguf(SMALL_K, { type });
    const { tensors, dataOffset } = await headerOf(bytes);
    let end = dataOffset;
    for (const tensor of tensors) {
      assert.equal(tensor.offset, end);
      end = Math.ceil((tensor.offset + tensor.byteLength) / 32) * 32;
    }
    assert.equal(end, bytes.byteLength);
  });
}

for (const chunkBytes of [1, 7, 8, 24, 4096, 1 << 20]) {
  test(`chunks of ${chunkBytes} bytes give the same header`, async () => {
    const bytes = tinyGguf("tiny-llama-spm", { type: "Q4_0" });
    const reader = streamed(bytes, chunkBytes);
    assert.deepEqual(plain(await readHeader(reader)), {
      ...plain(await headerOf(bytes)),
    });
    assert.equal(reader.position, (await headerOf(bytes)).headerBytes.byteLength);
  });
}

test("a Node Buffer as chunk: arrays do not alias the file", async () => {
  const bytes = Buffer.from(tinyGguf("tiny-llama-spm"));
  const { metadata } = await headerOf(bytes);
  bytes.fill(0);
  assert.equal(metadata.strings("tokenizer.ggml.tokens").at(1), "<s>");
  assert.equal(metadata.numbers("tokenizer.ggml.token_type")[1], 3);
});

test("version 2 and other alignments", async () => {
  assert.equal((await headerOf(tinyGguf("tiny-llama", { version: 2 }))).version, 2);
  for (const alignment of [8, 64, 4096]) {
    const header = await headerOf(tinyGguf("tiny-llama", { alignment }));
    assert.equal(header.alignment, alignment);
    assert.ok(header.tensors.every((t) => t.offset % alignment === 0));
  }
});

test("all value types", async () => {
  const metadata: KeyValue[] = [
    ["u8", "u8", 255],
    ["i8", "i8", -128],
    ["u16", "u16", 65535],
    ["i16", "i16", -32768],
    ["u32", "u32", 2 ** 32 - 1],
    ["i32", "i32", -(2 ** 31)],
    ["f32", "f32", 0.1],
    ["f64", "f64", 0.1],
    ["yes", "bool", true],
    ["no", "bool", false],
    ["text", "string", "héllo \u{1F600}\ufeff"],
    ["empty", "string", ""],
    ["u64", "u64", 2 ** 53 - 1],
    ["u64 max", "u64", 2n ** 64n - 1n],
    ["i64", "i64", -(2n ** 63n)],
    ["u8[]", "u8[]", [1, 2, 3]],
    ["i16[]", "i16[]", [-1, 2]],
    ["f32[]", "f32[]", [0.5, -2]],
    ["f64[]", "f64[]", []],
    ["bool[]", "bool[]", [true, false]],
    ["i64[]", "i64[]", [-5n]],
    ["string[]", "string[]", ["", "a", "\ufeffb", "日本"]],
  ];
  const { metadata: read } = await headerOf(writeHeader(metadata, []).bytes);
  assert.equal(read.uint("u8"), 255);
  assert.equal(read.number("i8"), -128);
  assert.equal(read.uint("u16"), 65535);
  assert.equal(read.number("i16"), -32768);
  assert.equal(read.uint("u32"), 2 ** 32 - 1);
  assert.equal(read.number("i32"), -(2 ** 31));
  assert.equal(read.number("f32"), Math.fround(0.1));
  assert.equal(read.number("f64"), 0.1);
  assert.equal(read.bool("yes"), true);
  assert.equal(read.bool("no"), false);
  assert.equal(read.string("text"), "héllo \u{1F600}\ufeff");
  assert.equal(read.string("empty"), "");
  assert.equal(read.uint("u64"), 2 ** 53 - 1);
  assert.equal(read.get("u64 max")?.value, 2n ** 64n - 1n);
  assert.equal(read.get("i64")?.value, -(2n ** 63n));
  assert.deepEqual(read.numbers("u8[]"), Uint8Array.of(1, 2, 3));
  assert.deepEqual(read.numbers("i16[]"), Int16Array.of(-1, 2));
  assert.deepEqual(read.numbers("f32[]"), Float32Array.of(0.5, -2));
  assert.deepEqual(read.numbers("f64[]"), new Float64Array(0));
  assert.deepEqual(read.numbers("bool[]"), Uint8Array.of(1, 0));
  assert.deepEqual(read.numbers("i64[]"), BigInt64Array.of(-5n));
  const strings = read.strings("string[]");
  assert.deepEqual([...strings], ["", "a", "\ufeffb", "日本"]);
  assert.equal(strings.at(2), "\ufeffb");
  assert.equal(strings.at(4), undefined);
  assert.equal(strings.bytes.byteLength, 4 * 8 + 0 + 1 + 4 + 6);
});

test("typed getters: absent keys and wrong types", async () => {
  const { metadata } = await headerOf(
    writeHeader(
      [
        ["n", "f32", 1.5],
        ["big", "u64", 2n ** 60n],
      ],
      [],
    ).bytes,
  );
  assert.equal(metadata.uint("absent", 7), 7);
  assert.equal(metadata.string("absent", undefined), undefined);
  const missing = {
    code: "invalid-model",
    message: /test\.gguf: the metadata key absent is missing; it must be a string/,
  };
  assert.throws(() => metadata.string("absent"), missing);
  assert.throws(() => metadata.uint("n"), {
    code: "invalid-model",
    message: /n is f32 1.5; it must be a whole number/,
  });
  assert.throws(() => metadata.uint("big"), { message: /big is u64 1152921504606846976/ });
  assert.throws(() => metadata.strings("n", undefined), { message: /it must be an array of strings/ });
});

test("a stream without a size: truncation is found where the bytes end", async () => {
  const bytes = tinyGguf().slice(0, 3000);
  await assert.rejects(readHeader(streamed(bytes, 512)), {
    code: "invalid-model",
    message: /the file has 3000 bytes, but .* reaches to byte \d+/,
  });
});

test("the type table agrees with the generator's", () => {
  const generator = Object.entries(QUANTIZERS).map(([name, { id, blockElements, blockBytes }]) => {
    return { name, id, blockElements, blockBytes };
  });
  const byId = (a: { id: number }, b: { id: number }) => a.id - b.id;
  assert.deepEqual([...TENSOR_TYPES].sort(byId), generator.sort(byId));
});

for (const file of ["ggml-vocab-qwen2.gguf", "ggml-vocab-llama-bpe.gguf", "ggml-vocab-llama-spm.gguf"]) {
  const path = sharedPath("data", "tokenizers", file);
  test(`real vocabulary ${file}`, { skip: path === undefined && "no shared data here" }, async () => {
    const bytes = readFileSync(path!);
    const { metadata } = await headerOf(bytes);
    const reference = parseGguf(bytes).metadata;
    const tokens = metadata.strings("tokenizer.ggml.tokens");
    assert.deepEqual([...tokens], reference.get("tokenizer.ggml.tokens"));
    assert.deepEqual(
      Array.from(metadata.numbers("tokenizer.ggml.token_type"), Number),
      reference.get("tokenizer.ggml.token_type"),
    );
  });
}
