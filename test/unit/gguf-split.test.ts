import assert from "node:assert/strict";
import { test } from "node:test";
import { openModelFile } from "../../src/gguf/model-file.ts";
import { openSources } from "../../src/gguf/source.ts";
import { makeGgufShards } from "../../tools/gguf/model.mjs";
import { tinyGguf } from "../fixtures/make-tiny-gguf.ts";

const whole = tinyGguf("tiny-llama", { type: "Q4_0" });
const shards = makeGgufShards("tiny-llama", 3, { type: "Q4_0" });
const files = (...indices: number[]) => indices.map((i) => new File([shards[i]!], `m-${i + 1}.gguf`));

async function tensorsOf(input: Parameters<typeof openSources>[0]) {
  const file = await openModelFile(openSources(input));
  const tensors = new Map<string, string>();
  for await (const { tensor, chunks } of file.readTensors()) {
    const parts: Uint8Array[] = [];
    for await (const chunk of chunks) parts.push(chunk);
    tensors.set(tensor.name, Buffer.concat(parts).toString("base64"));
  }
  await file.close();
  return { file, tensors };
}

test("a split model in any order equals the whole", async () => {
  const expected = await tensorsOf(whole);
  for (const order of [
    [0, 1, 2],
    [2, 0, 1],
  ]) {
    const { file, tensors } = await tensorsOf(files(...order));
    assert.deepEqual(tensors, expected.tensors);
    assert.equal(file.metadata.string("general.architecture"), "llama");
    assert.equal(
      file.byteLength,
      shards.reduce((sum, s) => sum + s.byteLength, 0),
    );
    assert.deepEqual([...new Set(file.tensors.map((t) => t.shard))], [0, 1, 2]);
  }
});

const WRONG: { name: string; input: Blob[]; message: RegExp }[] = [
  {
    name: "one missing",
    input: files(0, 2),
    message: /m-1\.gguf is file 1 of a model split into 3, but 2 were given/,
  },
  {
    name: "one alone",
    input: files(1),
    message: /m-2\.gguf is file 2 of a model split into 3, but 1 were given/,
  },
  { name: "one twice", input: files(0, 1, 1), message: /m-2\.gguf and m-2\.gguf are both file 2 of 3/ },
  {
    name: "a stranger",
    input: [...files(0, 1), new File([whole], "w.gguf")],
    message: /w\.gguf is file 1 of a model split into 1, but 3/,
  },
  {
    name: "a file of another model",
    input: [...files(0, 1), new File([makeGgufShards("tiny-qwen2", 3)[2]!], "q.gguf")],
    message: /the tensor \S+ is in m-\d\.gguf and in q\.gguf|the model has \d+ tensors, its 3 files hold \d+/,
  },
];

for (const { name, input, message } of WRONG) {
  test(`split: ${name}`, async () => {
    await assert.rejects(openModelFile(openSources(input)), { code: "invalid-model", message });
  });
}

test("only wanted tensors are read; a second pass works where the source can be read again", async () => {
  const file = await openModelFile(openSources(new Blob([whole])));
  for (let pass = 0; pass < 2; pass++) {
    const names: string[] = [];
    for await (const { tensor } of file.readTensors((t) => t.name.includes("attn_k")))
      names.push(tensor.name);
    assert.deepEqual(names, ["blk.0.attn_k.weight", "blk.1.attn_k.weight"]);
  }
  await file.close();
});

test("a stream is read in one pass, and a second pass says why it cannot be", async () => {
  const file = await openModelFile(openSources(new Blob([whole]).stream() as ReadableStream<Uint8Array>));
  let nTensors = 0;
  for await (const _ of file.readTensors()) nTensors++;
  assert.equal(nTensors, file.tensors.length);
  await assert.rejects(
    async () => {
      for await (const _ of file.readTensors());
    },
    { code: "source-failed", message: /can be read once/ },
  );
  await file.close();
});

test("close cancels a stream whose tensors were never read; so does a bad header", async () => {
  for (const bytes of [whole, new Uint8Array(100)]) {
    let isCancelled = false;
    const stream = new ReadableStream<Uint8Array>({
      pull: (controller) => controller.enqueue(bytes),
      cancel: () => {
        isCancelled = true;
      },
    });
    const opening = openModelFile(openSources(stream));
    if (bytes === whole) await (await opening).close();
    else await assert.rejects(opening, { code: "invalid-model" });
    assert.ok(isCancelled);
  }
});
