/** The engine: answers, prefix reuse, order of requests, aborts, context limits, disposal. */

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import type { Engine } from "../../src/engine/engine.ts";
import { InlayError } from "../../src/errors.ts";
import { collect, greedy, loadEngine } from "../fixtures/engine.ts";
import { tinyGguf } from "../fixtures/make-tiny-gguf.ts";

const BYTES = tinyGguf("tiny-llama", { type: "Q8_0", seed: 4 });
const PROMPT = Array.from({ length: 75 }, (_, i) => 30 + ((i * 37) % 200));

async function withEngine(
  f: (engine: Engine) => Promise<void>,
  options?: Parameters<typeof loadEngine>[1],
): Promise<void> {
  const engine = await loadEngine(BYTES, options);
  try {
    await f(engine);
  } finally {
    await engine.dispose();
  }
}

const inlayError = (code: string, message: RegExp) => (error: unknown) => {
  assert.ok(error instanceof InlayError, String(error));
  assert.equal(error.code, code);
  assert.match(error.message, message);
  return true;
};

describe("answers", () => {
  test("usage counts the prompt, the answer and the times", () =>
    withEngine(async (engine) => {
      const { ids, end, prefill } = await collect(engine.generate(greedy(PROMPT, 9)));
      assert.equal(ids.length, 9);
      assert.equal(end.finishReason, "length");
      const { usage } = end;
      assert.equal(usage.promptTokens, 75);
      assert.equal(usage.cachedTokens, 0);
      assert.equal(usage.completionTokens, 9);
      assert.equal(usage.device, "wasm");
      assert.ok(usage.prefillSeconds > 0 && usage.decodeSeconds > 0);
      assert.ok(usage.timeToFirstTokenSeconds! >= usage.prefillSeconds);
      assert.deepEqual(prefill, [0, 75]);
    }));

  test("the size of prefill chunks does not change the answer, but its progress", async () => {
    const answers: number[][] = [];
    for (const prefillChunk of [1, 7, 32, 512])
      await withEngine(
        async (engine) => {
          const { ids, prefill } = await collect(engine.generate(greedy(PROMPT, 12)));
          answers.push(ids);
          assert.equal(prefill.length, 1 + Math.ceil(75 / prefillChunk));
        },
        { prefillChunk },
      );
    for (const ids of answers) assert.deepEqual(ids, answers[0]);
  });

  test("an end token ends the answer and is told apart from its text", () =>
    withEngine(async (engine) => {
      const { eosId } = engine.tokenizer;
      const request = greedy(PROMPT, 5);
      const sampling = { ...request.sampling, logitBias: new Map([[eosId!, 100]]) };
      const { ids, text, end } = await collect(engine.generate({ ...request, sampling, ignoreEnd: false }));
      assert.deepEqual({ ids, text }, { ids: [], text: "" });
      assert.equal(end.finishReason, "stop");
      assert.equal(end.endTokenId, eosId);
      assert.equal(end.usage.completionTokens, 1);
      const ignoring = await collect(engine.generate({ ...request, sampling, ignoreEnd: true }));
      assert.equal(ignoring.ids.length, 5);
    }));

  test("a stop string ends the answer before it", () =>
    withEngine(async (engine) => {
      const free = await collect(engine.generate(greedy(PROMPT, 20)));
      const stop = free.text.slice(5, 8);
      const stopped = await collect(engine.generate({ ...greedy(PROMPT, 20), stop: [stop] }));
      assert.equal(stopped.text, free.text.slice(0, free.text.indexOf(stop)));
      assert.equal(stopped.end.finishReason, "stop");
      assert.equal(stopped.end.stop, stop);
    }));
});

describe("prefix reuse", () => {
  test("the next turn reads only what is new, and answers the same", () =>
    withEngine(async (engine) => {
      const first = await collect(engine.generate(greedy(PROMPT, 10)));
      const longer = [...PROMPT, ...first.ids, 40, 41, 42];
      const second = await collect(engine.generate(greedy(longer, 10)));
      // The last sampled token was never run: it is the first of the new ones.
      assert.equal(second.end.usage.cachedTokens, 75 + 9);
      const fresh = await loadEngine(BYTES);
      const alone = await collect(fresh.generate(greedy(longer, 10)));
      assert.equal(alone.end.usage.cachedTokens, 0);
      assert.deepEqual(second.ids, alone.ids);
      await fresh.dispose();
    }));

  test("the same prompt again runs one token", () =>
    withEngine(async (engine) => {
      const first = await collect(engine.generate(greedy(PROMPT, 6)));
      const second = await collect(engine.generate(greedy(PROMPT, 6)));
      assert.equal(second.end.usage.cachedTokens, 74);
      assert.deepEqual(second.ids, first.ids);
    }));

  test("two conversations with a common beginning both keep their caches", () =>
    withEngine(async (engine) => {
      const a = [...PROMPT, 1, 2, 3, 4, 5, 6, 7, 8, 9];
      const b = [...PROMPT, 99, 98, 97, 96, 95, 94, 93, 92];
      await collect(engine.generate(greedy(a, 4)));
      const other = await collect(engine.generate(greedy(b, 4)));
      assert.equal(other.end.usage.cachedTokens, 75);
      const again = await collect(engine.generate(greedy(a, 4)));
      assert.equal(again.end.usage.cachedTokens, a.length - 1);
    }));

  test("an abandoned answer's tokens are reused too", () =>
    withEngine(async (engine) => {
      const seen: number[] = [];
      for await (const event of engine.generate(greedy(PROMPT, 50))) {
        if (event.kind === "text") seen.push(...event.tokenIds);
        if (seen.length >= 5) break;
      }
      const { end } = await collect(engine.generate(greedy([...PROMPT, ...seen, 7], 1)));
      assert.ok(end.usage.cachedTokens >= 75 + 4, `${end.usage.cachedTokens}`);
    }));

  test("idle caches do not grow without bound", () =>
    withEngine(
      async (engine) => {
        for (let i = 0; i < 20; i++) await collect(engine.generate(greedy([i + 20, ...PROMPT], 2)));
        const pages = Math.ceil(256 / 32) * 2;
        const slot = 2 * 2 * 2 * 32 * 16 * 4; // layers, KV heads, K and V, tokens, headDim, f32
        assert.ok(engine.memory().kv <= (pages + 3) * slot, `${engine.memory().kv} bytes of KV`);
      },
      { contextLength: 256 },
    ));
});

describe("quantized caches", () => {
  const LONG = Array.from({ length: 400 }, (_, i) => 30 + ((i * 37) % 200));
  const SLOT = 2 * 2 * 2 * 32 * 16 * 4; // layers, KV heads, K and V, tokens, headDim, f32

  for (const [format, codeBits] of [
    ["q8", 8],
    ["q4", 4],
    ["q2", 2],
  ] as const)
    test(`${format}: old pages shrink, and the same prompt again runs one token`, () =>
      withEngine(
        async (engine) => {
          assert.equal(engine.info.device.kvFormat, format);
          await collect(engine.generate(greedy(LONG, 4)));
          // Of 403 cached tokens in 13 pages, 8 pages but the first have left the window.
          // A scale for K and for V, ranges of 16 channels and of 32 tokens.
          const coldSlot = 2 * 2 * 2 * (16 + (16 + 32) + 16 * 4 * codeBits);
          assert.equal(engine.memory().kv, 6 * SLOT + 7 * coldSlot);
          // The answer's last tokens may part: a page that has left the window stays quantized when the cache is cut.
          const again = await collect(engine.generate(greedy(LONG, 40)));
          assert.equal(again.end.usage.cachedTokens, 399);
          assert.equal(again.ids.length, 40);
        },
        { kvCache: { format }, contextLength: 512 },
      ));

  test("auto device places a model with a quantized cache as any other", () =>
    withEngine(
      async (engine) => {
        const { kind, kvFormat } = engine.info.device;
        // The tests' adapter is software.
        assert.deepEqual({ kind, kvFormat }, { kind: "wasm", kvFormat: "q4" });
      },
      { device: "auto", kvCache: { format: "q4" } },
    ));
});

describe("limits", () => {
  test("a prompt as long as the context is refused with both numbers", () =>
    withEngine(
      async (engine) => {
        await assert.rejects(
          collect(engine.generate(greedy(PROMPT.slice(0, 64), 1))),
          inlayError("context-full", /64 tokens.*64 positions/),
        );
        const { end } = await collect(engine.generate(greedy(PROMPT.slice(0, 60), 50)));
        assert.equal(end.finishReason, "length");
        assert.equal(end.usage.completionTokens, 4);
      },
      { contextLength: 64 },
    ));

  test("an empty prompt and ids outside the vocabulary are refused", () =>
    withEngine(async (engine) => {
      await assert.rejects(collect(engine.generate(greedy([], 1))), inlayError("invalid-option", /empty/));
      await assert.rejects(
        collect(engine.generate(greedy([5, 331], 1))),
        inlayError("invalid-option", /331 is outside the vocabulary of 331/),
      );
      const { ids } = await collect(engine.generate(greedy([5, 330], 3)));
      assert.equal(ids.length, 3, "the engine is usable afterwards");
    }));

  test("more context than the model was trained for is refused", () =>
    assert.rejects(
      loadEngine(BYTES, { contextLength: 513 }),
      inlayError("invalid-option", /513.*trained for 512/),
    ));
});

describe("aborts", () => {
  test("in the middle of prefill and of decoding, at many moments", () =>
    withEngine(
      async (engine) => {
        const whole = await collect(engine.generate(greedy(PROMPT, 30)));
        const scratch = engine.memory().scratch;
        for (let at = 0; at < 12; at++) {
          const controller = new AbortController();
          const reason = new Error(`stop ${at}`);
          let nEvents = 0;
          const run = (async () => {
            for await (const _ of engine.generate(greedy([at + 7, ...PROMPT], 30), controller.signal))
              if (nEvents++ === at) controller.abort(reason);
          })();
          await assert.rejects(run, (error) => error === reason);
          assert.equal(engine.memory().scratch, scratch, "activations are freed");
        }
        const again = await collect(engine.generate(greedy(PROMPT, 30)));
        assert.deepEqual(again.ids, whole.ids);
      },
      { prefillChunk: 16 },
    ));

  test("before it begins, and while it waits for its turn", () =>
    withEngine(async (engine) => {
      const aborted = AbortSignal.abort(new Error("never"));
      await assert.rejects(collect(engine.generate(greedy(PROMPT, 1), aborted)), /never/);
      const first = collect(engine.generate(greedy(PROMPT, 20)));
      const controller = new AbortController();
      const waiting = collect(engine.generate(greedy(PROMPT, 20), controller.signal));
      const third = collect(engine.generate(greedy(PROMPT, 3)));
      controller.abort(new Error("gave up"));
      await assert.rejects(waiting, /gave up/);
      assert.equal((await first).ids.length, 20);
      assert.equal((await third).ids.length, 3);
    }));

  test("of loading leaves nothing and rejects with the reason", async () => {
    const reason = new Error("changed my mind");
    const controller = new AbortController();
    const loading = loadEngine(BYTES, {
      signal: controller.signal,
      onProgress: ({ phase }) => phase === "weights" && controller.abort(reason),
    });
    await assert.rejects(loading, (error) => error === reason);
  });
});

test("requests are answered in order, one at a time", () =>
  withEngine(async (engine) => {
    const order: string[] = [];
    const run = async (name: string, n: number) => {
      for await (const event of engine.generate(greedy(PROMPT, n)))
        if (event.kind === "text") order.push(name);
    };
    await Promise.all([run("a", 8), run("b", 3), run("c", 2)]);
    assert.match(order.join(""), /^a+b+c+$/);
  }));

test("load progress rises to 1 and names its phases", async () => {
  const seen: { phase: string; progress: number }[] = [];
  const engine = await loadEngine(BYTES, { onProgress: (p) => seen.push(p) });
  await engine.dispose();
  for (let i = 1; i < seen.length; i++) assert.ok(seen[i]!.progress >= seen[i - 1]!.progress);
  assert.equal(seen.at(-1)!.progress, 1);
  assert.deepEqual([...new Set(seen.map(({ phase }) => phase))], ["header", "weights", "warm-up"]);
});

describe("dispose", () => {
  test("ends the answer in progress, refuses what comes after, and may be called twice", async () => {
    const engine = await loadEngine(BYTES);
    const running = collect(engine.generate(greedy(PROMPT, 400)));
    const waiting = collect(engine.generate(greedy(PROMPT, 400)));
    const ends = Promise.all([
      assert.rejects(running, inlayError("disposed", /disposed/)),
      assert.rejects(waiting, inlayError("disposed", /disposed/)),
    ]);
    await new Promise((resolve) => setTimeout(resolve, 20));
    await engine.dispose();
    await engine.dispose();
    await ends;
    await assert.rejects(collect(engine.generate(greedy(PROMPT, 1))), inlayError("disposed", /disposed/));
  });
});
