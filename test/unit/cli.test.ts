/** The `inlay` command: output, JSON, errors and exit statuses, as design section 5 promises. */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import { tinyGguf } from "../fixtures/make-tiny-gguf.ts";
import { nodeGpu } from "../fixtures/node-gpu.ts";
import { sharedPath } from "../fixtures/shared.ts";

const gpu = await nodeGpu();

const CLI = fileURLToPath(new URL("../../dist/cli.mjs", import.meta.url));
const folder = mkdtempSync(join(tmpdir(), "inlay-cli-"));
after(() => rmSync(folder, { recursive: true }));
const MODEL = join(folder, "tiny.gguf");
writeFileSync(MODEL, tinyGguf("tiny-llama", { type: "Q8_0", seed: 3 }));

function inlay(...args: string[]): { status: number | null; stdout: string; stderr: string } {
  return spawnSync(process.execPath, [CLI, ...args], { encoding: "utf8" });
}

/** The one JSON object on standard output. */
function json(...args: string[]) {
  const { status, stdout, stderr } = inlay(...args, "--json");
  assert.equal(stdout.trim().split("\n").length, 1, stdout + stderr);
  return { status, stderr, value: JSON.parse(stdout) };
}

const RUN = ["run", MODEL, "--device", "wasm", "--threads", "1", "--temperature", "0"];

describe("eval", () => {
  const text = join(folder, "text.txt");
  writeFileSync(text, "All human beings are born free and equal in dignity and rights. ".repeat(60));
  const EVAL = ["eval", MODEL, "--perplexity", text, "--tokens", "400", "--threads", "1"];

  test("--perplexity has a result for every policy, budget and format, and draws them", () => {
    const svg = join(folder, "quality.svg");
    const { status, value } = json(
      ...[...EVAL, "--attention", "dense,window", "--budget", "0.7,0.9", "--kv", "f16,q4", "--svg", svg],
    );
    assert.equal(status, 0);
    assert.deepEqual(
      value.results.map((r: Record<string, unknown>) => [r.policy, r.budget, r.kv]),
      ["f16", "q4"].flatMap((kv) => [
        ["dense", 1, kv],
        ["window", 0.7, kv],
        ["window", 0.9, kv],
      ]),
    );
    assert.equal(value.results[0].kl, 0);
    assert.ok(value.results[3].kl > 0);
    assert.match(readFileSync(svg, "utf8"), /^<svg /);
  });

  test("what is asked for wrongly is named", () => {
    for (const [wrong, says] of [
      [["--budget", "1.5"], /--budget is 1\.5; it must be a number with 0 < --budget <= 1/],
      [["--kv", "q3"], /--kv is "q3"; it must be/],
      [["--attention", "sparse"], /--attention is "sparse"; it must be/],
      [["--tokens", "20"], /the text has 20 tokens/],
    ] as const) {
      const { status, value } = json(...EVAL, ...wrong);
      assert.equal(status, 1);
      assert.match(value.error.message, says);
    }
    assert.equal(inlay("eval", MODEL).status, 2);
  });
});

describe("run", () => {
  test("--json has text, ids, finish reason, usage, timings and device", () => {
    const { status, value } = json(...RUN, "--prompt", "Hello", "--max-tokens", "7");
    assert.equal(status, 0);
    assert.deepEqual(Object.keys(value).sort(), [
      "device",
      "finishReason",
      "promptTokenIds",
      "text",
      "timings",
      "tokenIds",
      "usage",
    ]);
    assert.equal(value.tokenIds.length, value.usage.completion_tokens);
    assert.equal(value.promptTokenIds.length, value.usage.prompt_tokens);
    assert.equal(value.device.kind, "wasm");
  });

  test("--kv q4 quantizes the cache", () => {
    const { status, value } = json(...RUN, "--kv", "q4", "--prompt", "Hello", "--max-tokens", "4");
    assert.equal(status, 0);
    assert.equal(value.device.kvFormat, "q4");
  });

  test("--device webgpu runs everything on the GPU", { skip: gpu.skip }, () => {
    const { status, value } = json(
      "run",
      MODEL,
      "--device",
      "webgpu",
      "--prompt",
      "Hello",
      "--max-tokens",
      "3",
    );
    assert.equal(status, 0, JSON.stringify(value));
    const { kind, threads, gpu: name } = value.device;
    assert.deepEqual(
      { kind, threads, hasName: name.length > 0 },
      { kind: "webgpu", threads: 1, hasName: true },
    );
    assert.equal(value.usage.extra.device, "webgpu");
    assert.equal(value.tokenIds.length, value.usage.completion_tokens);
  });

  test("text goes to standard output, and is the text of the JSON", () => {
    const plain = inlay(...RUN, "--prompt", "Hello", "--max-tokens", "7");
    const { value } = json(...RUN, "--prompt", "Hello", "--max-tokens", "7");
    assert.equal(plain.stdout, `${value.text}\n`);
    assert.equal(plain.status, 0);
  });

  test("--raw leaves the template out, --chat and the default use it", () => {
    const ids = (...mode: string[]) =>
      json(...RUN, "--prompt", "Hello", "--max-tokens", "1", ...mode).value.promptTokenIds;
    const [raw, chat, neither] = [ids("--raw"), ids("--chat"), ids()];
    assert.ok(raw.length < chat.length);
    assert.deepEqual(neither, chat);
    const { value } = json("tokenize", MODEL, "--text", "Hello");
    assert.deepEqual(raw, value.ids);
  });

  test("--seed repeats a sampled answer", () => {
    const text = (seed: string) =>
      json(
        "run",
        MODEL,
        "--device",
        "wasm",
        "--threads",
        "1",
        "--prompt",
        "Hi",
        "--temperature",
        "2",
        "--top-k",
        "0",
        "--max-tokens",
        "12",
        "--seed",
        seed,
      ).value.text;
    assert.equal(text("5"), text("5"));
    assert.notEqual(text("5"), text("6"));
  });
});

describe("pin", () => {
  const doc = join(folder, "doc.txt");
  const out = join(folder, "doc.inlaykv");
  writeFileSync(doc, "The handbook says: be kind.\n");

  test("writes a file from which run goes on without prefilling it", () => {
    const pinned = json("pin", MODEL, "--file", doc, "--out", out, "--device", "wasm", "--threads", "1");
    assert.equal(pinned.status, 0, pinned.stderr);
    assert.deepEqual(Object.keys(pinned.value).sort(), [
      "attention",
      "bits",
      "bytes",
      "file",
      "id",
      "raw",
      "seconds",
      "sparsity",
      "tokens",
    ]);
    assert.equal(pinned.value.sparsity, 0, "too short to be clustered");
    assert.equal(pinned.value.id, "doc.txt");
    assert.equal(pinned.value.bytes, readFileSync(out).byteLength);
    const { status, value } = json(...RUN, "--pinned", out, "--prompt", "Hello", "--max-tokens", "7");
    assert.equal(status, 0);
    assert.equal(value.usage.prompt_tokens_details.cached_tokens, pinned.value.tokens);
    assert.ok(value.timings.restore_s > 0);
    const system = readFileSync(doc, "utf8");
    const whole = json(...RUN, "--system", system, "--prompt", "Hello", "--max-tokens", "7").value;
    assert.deepEqual(value.promptTokenIds, whole.promptTokenIds);
    assert.deepEqual(value.tokenIds, whole.tokenIds);
  });

  test("--raw pins the text as it is", () => {
    const { value } = json(
      "pin",
      MODEL,
      "--file",
      doc,
      "--out",
      out,
      "--raw",
      "--id",
      "x",
      "--device",
      "wasm",
    );
    assert.deepEqual({ id: value.id, raw: value.raw }, { id: "x", raw: true });
    const run = json(...RUN, "--pinned", out, "--prompt", "Hello", "--max-tokens", "3").value;
    assert.equal(run.usage.prompt_tokens_details.cached_tokens, value.tokens);
    const raw = json(
      ...RUN,
      "--raw",
      "--prompt",
      `${readFileSync(doc, "utf8")}Hello`,
      "--max-tokens",
      "3",
    ).value;
    assert.deepEqual(run.tokenIds, raw.tokenIds);
  });

  test("--on pins a document after another", () => {
    const both = join(folder, "both.inlaykv");
    const args = ["pin", MODEL, "--file", doc, "--raw", "--device", "wasm", "--bits", "16"];
    const first = json(...args, "--out", out).value;
    const { value, status, stderr } = json(...args, "--id", "both", "--on", out, "--out", both);
    assert.equal(status, 0, stderr);
    assert.deepEqual({ id: value.id, raw: value.raw }, { id: "both", raw: true });
    assert.ok(value.tokens > 1.8 * first.tokens);
    const run = json(...RUN, "--pinned", both, "--prompt", "Hello", "--max-tokens", "3").value;
    assert.equal(run.usage.prompt_tokens_details.cached_tokens, value.tokens);
  });
});

describe("errors", () => {
  const cases: [string, string[], number, RegExp][] = [
    ["no command", [], 2, /usage/],
    ["an unknown command", ["walk"], 2, /unknown command walk/],
    ["a missing model", ["run", "--prompt", "x"], 2, /expected MODEL/],
    ["a missing prompt", ["run", MODEL], 2, /--prompt is missing/],
    ["an unknown option", ["run", MODEL, "--promt", "x"], 2, /--promt/],
    [
      "a number that is none",
      ["run", MODEL, "--prompt", "x", "--max-tokens", "many"],
      2,
      /--max-tokens is "many"/,
    ],
    ["nothing to pin", ["pin", MODEL, "--out", "x"], 2, /--file is missing/],
    [
      "a document that is not there",
      ["pin", MODEL, "--file", join(folder, "no.txt"), "--out", "x"],
      1,
      /cannot read .*no\.txt/,
    ],
    [
      "a sparsity of 1",
      ["pin", MODEL, "--file", MODEL, "--out", "x", "--sparsity=1", "--device", "wasm"],
      1,
      /sparsity is 1; it must be a number with 0 <= sparsity < 1/,
    ],
    [
      "a sparsity of -0.1",
      ["pin", MODEL, "--file", MODEL, "--out", "x", "--sparsity=-0.1", "--device", "wasm"],
      1,
      /sparsity is -0\.1; it must be a number with 0 <= sparsity < 1/,
    ],
    [
      "a pinned prompt that is none",
      [...RUN, "--prompt", "x", "--pinned", MODEL],
      1,
      /not an \.inlaykv file/,
    ],
    ["contradicting modes", ["run", MODEL, "--prompt", "x", "--raw", "--chat"], 2, /exclude each other/],
    [
      "a file that is not there",
      ["run", join(folder, "no.gguf"), "--prompt", "x"],
      1,
      /no file .*no\.gguf.*source-failed/,
    ],
    [
      "a device that does not exist",
      ["run", MODEL, "--prompt", "x", "--device", "npu"],
      1,
      /"npu".*"hybrid"/,
    ],
    [
      "a policy of a later version",
      ["run", MODEL, "--prompt", "x", "--attention", "squeezed"],
      1,
      /squeezed.*not supported in this version/,
    ],
    [
      "a temperature out of range",
      ["run", MODEL, "--prompt", "x", "--temperature", "9"],
      1,
      /temperature is 9/,
    ],
    ["ids outside the vocabulary", ["detokenize", MODEL, "--ids", "1,9999"], 1, /9999/],
    ["ids that are none", ["detokenize", MODEL, "--ids", "1,x"], 2, /--ids/],
    [
      "text and file at once",
      ["tokenize", MODEL, "--text", "x", "--file", "y"],
      2,
      /either --text or --file/,
    ],
  ];
  for (const [name, args, status, message] of cases)
    test(name, () => {
      const result = inlay(...args);
      assert.equal(result.status, status, result.stderr);
      assert.match(result.stderr + (args.length === 0 ? result.stdout : ""), message);
    });

  test("--json prints { error: { code, message, details } }", () => {
    const { status, value } = json("run", join(folder, "no.gguf"), "--prompt", "x");
    assert.equal(status, 1);
    assert.equal(value.error.code, "source-failed");
    assert.match(value.error.message, /no\.gguf/);
    assert.equal(typeof value.error.details, "object");
  });
});

describe("tokenize and detokenize", () => {
  test("are each other's inverse", () => {
    const text = "The year 2026 — naïve?\n  yes";
    const { value } = json("tokenize", MODEL, "--text", text, "--no-special");
    assert.equal(json("detokenize", MODEL, "--ids", value.ids.join(",")).value.text, text);
  });

  for (const name of ["llama-bpe", "qwen2", "gpt-2", "llama-spm", "phi-3"])
    test(`${name}: every row of llama.cpp's vectors, in one file and one by one`, (t) => {
      const vocabulary = sharedPath("data/tokenizers", `ggml-vocab-${name}.gguf`);
      if (vocabulary === undefined) return t.skip("../shared is not on this machine");
      const inputs = readFileSync(`${vocabulary}.inp`, "utf8").split("\n__ggml_vocab_test__\n").slice(0, -1);
      const outputs = readFileSync(`${vocabulary}.out`, "utf8").replace(/\n$/, "").split("\n");
      assert.equal(inputs.length, outputs.length);
      // All rows go through the library in tokenizer-vectors.test.ts; here a few of them through the command.
      for (const i of [3, 17, 31, 40, inputs.length - 1]) {
        const file = join(folder, "input.txt");
        writeFileSync(file, inputs[i]!);
        const { value } = json("tokenize", vocabulary, "--file", file, "--no-special");
        const expected = outputs[i]!.trim() === "" ? [] : outputs[i]!.trim().split(" ").map(Number);
        assert.deepEqual(value.ids, expected, JSON.stringify(inputs[i]));
      }
    });
});

test("inspect tells metadata, tensors by type and the memory plan", () => {
  const { value } = json("inspect", MODEL);
  assert.equal(value.config.architecture, "llama");
  assert.equal(value.metadata["llama.block_count"], 2);
  assert.ok(value.tensors.byType.Q8_0.tensors > 10);
  const [plan] = value.memoryPlan;
  assert.equal(plan.contextLength, 512);
  assert.equal(plan.kvF32, 512 * 2 * 2 * 2 * 16 * 4);
  assert.equal(plan.kvF16 * 2, plan.kvF32);
  // Of 16 pages 11 are cold; heads of 16 take 16 bytes of scale, 2 for the range of a channel (K)
  // or a token (V), and 32 codes a channel.
  const pages = 2 * 2 * 2;
  assert.equal(plan.kvQ4, pages * (5 * 32 * 16 * 4 + 11 * (16 + (16 + 32) + 16 * 16)));
  assert.ok(plan.kvQ2 < plan.kvQ4 && plan.kvQ4 < plan.kvQ8 && plan.kvQ8 < plan.kvF32);
  const { stdout, status } = inlay("inspect", MODEL);
  assert.equal(status, 0);
  assert.match(stdout, /llama, 2 layers, width 64, 4 heads \(2 KV\) of 16/);
  assert.match(stdout, /weights +KV f32 +KV f16 +KV q8 +KV q4 +KV q2\n/);
});

test("bench --attention times a policy beside dense attention, without a model", () => {
  const { value } = json("bench", "--attention", "--lengths", "300,1024", "--runs", "1");
  assert.equal(value.policy, "dhsa");
  assert.deepEqual(
    value.rows.map(({ tokens }: { tokens: number }) => tokens),
    [300, 1024],
  );
  for (const row of value.rows) assert.ok(row.denseMs > 0 && row.kernelMs > 0 && row.selectionMs > 0);
  assert.ok(value.rows[1].keysRead < 0.6);
  const table = inlay("bench", "--attention", "vertical-slash", "--lengths", "512", "--runs", "1");
  assert.equal(table.status, 0, table.stderr);
  assert.match(table.stdout, /vertical-slash at 25 % of the keys on wasm(.|\n)* 512 /);
  for (const [args, message] of [
    [["--attention", "linear"], /--attention is "linear".*"dhsa"/],
    [["--attention", "--budget", "1.5"], /--budget is 1.5.*<= 1/],
  ] as const) {
    const { status, stderr } = inlay("bench", ...args);
    assert.equal(status, 1);
    assert.match(stderr, message);
  }
});

test("run --attention says which policy ran and what it read", () => {
  const prompt = "once upon a time ".repeat(34);
  const args = [
    "run",
    MODEL,
    "--prompt",
    prompt,
    "--raw",
    "--device",
    "wasm",
    "--max-tokens",
    "3",
    "--temperature",
    "0",
  ];
  const { value } = json(...args, "--attention", "dhsa", "--budget", "0.1");
  assert.equal(value.usage.extra.attention.prefill.policy, "dhsa");
  assert.ok(value.usage.extra.attention.prefill.keys_read < 1);
  assert.deepEqual(value.usage.extra.attention.decode, { policy: "dense", keys_read: 1 });
  const refused = inlay(...args, "--budget", "0");
  assert.equal(refused.status, 1);
  assert.match(refused.stderr, /attention.budget is 0; it must be a number with 0 < attention.budget <= 1/);
});

test("bench prints rates for every length asked for", () => {
  const { value } = json(
    "bench",
    MODEL,
    "--prompt-tokens",
    "16,64",
    "--contexts",
    "0,32",
    "--decode-tokens",
    "8",
    "--runs",
    "1",
    "--device",
    "wasm",
  );
  assert.deepEqual(
    value.rows.map(({ phase, tokens }: { phase: string; tokens: number }) => `${phase} ${tokens}`),
    ["prefill 16", "prefill 64", "decode 0", "decode 32"],
  );
  for (const { median } of value.rows) assert.ok(median > 0);
});
