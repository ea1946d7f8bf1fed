import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { InlayError } from "../../src/errors.ts";
import { type LoadOptions, resolveContextLength, resolveLoadOptions } from "../../src/options.ts";

const DEFAULTS = {
  contextLength: "auto",
  device: "auto",
  attention: { prefill: "auto", decode: "auto", budget: 0.25, headBudgets: null, boundaries: null },
  kvCache: { format: "auto" },
  threads: "auto",
  assets: { wasm: null, worker: null },
  signal: null,
  prefillChunk: 512,
  chatTemplate: null,
};

function resolve(options?: LoadOptions) {
  const { onProgress, ...rest } = resolveLoadOptions(options);
  assert.equal(typeof onProgress, "function");
  return rest;
}

describe("defaults", () => {
  test("no options", () => assert.deepEqual(resolve(), DEFAULTS));
  test("empty options", () => assert.deepEqual(resolve({}), DEFAULTS));
  test("undefined everywhere", () =>
    assert.deepEqual(
      resolve({
        contextLength: undefined,
        device: undefined,
        attention: { prefill: undefined, decode: undefined, budget: undefined },
        kvCache: { format: undefined },
        threads: undefined,
        assets: { wasm: undefined, worker: undefined },
        onProgress: undefined,
        signal: undefined,
        prefillChunk: undefined,
        chatTemplate: undefined,
      }),
      DEFAULTS,
    ));
  test("one section given leaves the others", () =>
    assert.deepEqual(resolve({ attention: { budget: 1 } }), {
      ...DEFAULTS,
      attention: { prefill: "auto", decode: "auto", budget: 1, headBudgets: null, boundaries: null },
    }));
});

test("every device has quantized caches", () => {
  for (const device of ["auto", "wasm", "hybrid", "webgpu"] as const)
    for (const format of ["q8", "q4", "q2"] as const)
      assert.equal(resolveLoadOptions({ device, kvCache: { format } }).kvCache.format, format);
});

test("everything given", () => {
  const { signal } = new AbortController();
  const seen: number[] = [];
  const resolved = resolveLoadOptions({
    contextLength: 16384,
    device: "hybrid",
    attention: { prefill: "window", decode: "dhsa", budget: 0.5, headBudgets: [[1, 0.5]] },
    kvCache: { format: "f16" },
    threads: 4,
    assets: { wasm: new URL("https://example.com/inlay.wasm"), worker: "./engine-worker.js" },
    onProgress: ({ progress }) => seen.push(progress),
    signal,
    prefillChunk: 256,
    chatTemplate: "{{ messages }}",
  });
  resolved.onProgress({ phase: "weights", loaded: 1, total: 2, progress: 0.5 });
  assert.deepEqual(seen, [0.5]);
  assert.equal(resolved.signal, signal);
  assert.deepEqual(resolved.assets, { wasm: "https://example.com/inlay.wasm", worker: "./engine-worker.js" });
  assert.equal(resolved.contextLength, 16384);
  assert.equal(resolved.threads, 4);
});

describe("refused values", () => {
  const signal = { aborted: false };
  const cases: { name: string; options: unknown; message: string | RegExp }[] = [
    { name: "options of another type", options: 5, message: "options is 5; it must be an object" },
    { name: "null options", options: null, message: "options is null; it must be an object" },
    {
      name: "a fractional context",
      options: { contextLength: 1.5 },
      message: "contextLength is 1.5; it must be an integer with 1 <= contextLength <= 16777216",
    },
    { name: "no context", options: { contextLength: 0 }, message: /contextLength is 0;/ },
    { name: "NaN", options: { contextLength: Number.NaN }, message: /contextLength is NaN;/ },
    { name: "a number as text", options: { contextLength: "4096" }, message: /contextLength is "4096";/ },
    {
      name: "an unknown device",
      options: { device: "cpu" },
      message: 'device is "cpu"; it must be "auto", "wasm", "hybrid" or "webgpu"',
    },
    {
      name: "a method of a later version",
      options: { attention: { prefill: "squeezed" } },
      message:
        'attention.prefill "squeezed" is not supported in this version; it has "auto", "dense", "window", "dhsa", "vertical-slash" or "sample"',
    },
    {
      name: "an unknown method",
      options: { attention: { prefill: "linear" } },
      message:
        'attention.prefill is "linear"; it must be "auto", "dense", "window", "dhsa", "vertical-slash" or "sample"',
    },
    {
      name: "a prompt's method for decoding",
      options: { attention: { decode: "sample" } },
      message: 'attention.decode is "sample"; it must be "auto", "dense", "window" or "dhsa"',
    },
    {
      name: "an unknown format",
      options: { kvCache: { format: "bf16" } },
      message: /kvCache\.format is "bf16";/,
    },
    {
      name: "a budget of 0",
      options: { attention: { budget: 0 } },
      message: "attention.budget is 0; it must be a number with 0 < attention.budget <= 1",
    },
    {
      name: "a head's budget of nothing",
      options: {
        attention: {
          headBudgets: [
            [1, 1],
            [1, 0],
          ],
        },
      },
      message: /attention\.headBudgets\[1\]\[1\] is 0; it must be a number with 0 </,
    },
    { name: "a budget above 1", options: { attention: { budget: 1.01 } }, message: /budget is 1\.01/ },
    {
      name: "a section of another type",
      options: { attention: "dense" },
      message: /attention is "dense"; .*object/,
    },
    { name: "no threads", options: { threads: 0 }, message: /threads is 0; .* 1 <= threads <= 64/ },
    { name: "too many threads", options: { threads: 65 }, message: /threads is 65/ },
    { name: "an empty asset URL", options: { assets: { wasm: "" } }, message: /assets\.wasm is ""/ },
    { name: "an asset that is no URL", options: { assets: { worker: 7 } }, message: /assets\.worker is 7/ },
    {
      name: "a callback that is none",
      options: { onProgress: true },
      message: /onProgress is true; .*function/,
    },
    {
      name: "a signal that is none",
      options: { signal },
      message: "signal is an object; it must be an AbortSignal",
    },
    { name: "an empty chunk", options: { prefillChunk: 0 }, message: /prefillChunk is 0/ },
    {
      name: "a template name we do not have",
      options: { chatTemplate: "llama3" },
      message: 'chatTemplate is "llama3"; it must be "chatml" or Jinja source, which contains "{{" or "{%"',
    },
    {
      name: "a misspelt option",
      options: { contextLenght: 1 },
      message: "unknown option contextLenght; did you mean contextLength?",
    },
    {
      name: "snake case",
      options: { kv_cache: {} },
      message: "unknown option kv_cache; did you mean kvCache?",
    },
    {
      name: "an unknown option",
      options: { gpuLayers: 3 },
      message: /^unknown option gpuLayers; known are contextLength, device, attention, /,
    },
    {
      name: "a misspelt option of a section",
      options: { attention: { bugdet: 0.5 } },
      message: "unknown option attention.bugdet; did you mean attention.budget?",
    },
  ];
  for (const { name, options, message } of cases)
    test(name, () =>
      assert.throws(
        () => resolveLoadOptions(options as LoadOptions),
        (error: unknown) => {
          assert.ok(error instanceof InlayError);
          assert.equal(error.code, "invalid-option");
          if (typeof message === "string") assert.equal(error.message, message);
          else assert.match(error.message, message);
          assert.equal(typeof error.details.option, "string");
          structuredClone(error.details);
          return true;
        },
      ),
    );
});

describe("context length", () => {
  test("the default is the model's own, up to 8192", () => {
    assert.equal(resolveContextLength("auto", 512), 512);
    assert.equal(resolveContextLength("auto", 131072), 8192);
  });
  test("what was asked for, up to the model's own", () => {
    assert.equal(resolveContextLength(131072, 131072), 131072);
    assert.equal(resolveContextLength(1, 512), 1);
  });
  test("more than the model has is refused with both numbers", () =>
    assert.throws(() => resolveContextLength(1024, 512), {
      code: "invalid-option",
      message: "contextLength is 1024, but the model was trained for 512 tokens; ask for at most 512",
    }));
});
