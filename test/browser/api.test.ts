// The public API in a page, with a small generated model that has a chat template.

import { assert } from "chai";
import { availability, InlayError, loadModel, type Model } from "/dist/inlay.js";
import { tinyGguf } from "../fixtures/make-tiny-gguf.ts";
import { browser } from "./harness/index.ts";

const MESSAGES = [
  { role: "system", content: "You are terse." },
  { role: "user", content: "Name three rivers." },
] as const;

async function rejection(promise: Promise<unknown>): Promise<unknown> {
  try {
    await promise;
  } catch (error) {
    return error;
  }
  return assert.fail("it did not reject");
}

async function inlayError(promise: Promise<unknown>, code: string, message: RegExp): Promise<InlayError> {
  const error = await rejection(promise);
  assert.instanceOf(error, InlayError, String(error));
  assert.equal((error as InlayError).code, code, String(error));
  assert.match((error as InlayError).message, message);
  return error as InlayError;
}

describe("the API in a page", function () {
  this.timeout(60_000);
  let model: Model;
  const bytes = tinyGguf("tiny-llama", { type: "Q8_0", seed: 8 });

  before(async () => {
    model = await loadModel(bytes, { device: "wasm", contextLength: 512 });
  });
  after(() => model.dispose());

  it("availability tells what is here", async () => {
    const found = await availability();
    assert.isTrue(found.available);
    assert.equal(found.relaxedSimd, browser !== "webkit");
    assert.isFalse(found.threads);
    assert.isNotEmpty(found.hints);
  });

  it("config describes the model", () => {
    const { architecture, nLayers, nHeads, nKvHeads, headDim, vocabSize, contextLength, hasChatTemplate } =
      model.config;
    assert.deepEqual(
      { architecture, nLayers, nHeads, nKvHeads, headDim, vocabSize, contextLength, hasChatTemplate },
      {
        architecture: "llama",
        nLayers: 2,
        nHeads: 4,
        nKvHeads: 2,
        headDim: 16,
        vocabSize: 331,
        contextLength: 512,
        hasChatTemplate: true,
      },
    );
  });

  it("answers in one piece, in OpenAI's shape", async () => {
    const answer = await model.chat.completions.create({
      messages: MESSAGES,
      max_tokens: 12,
      temperature: 0,
      logprobs: true,
      top_logprobs: 2,
    });
    assert.equal(answer.object, "chat.completion");
    assert.match(answer.id, /^chatcmpl-[0-9a-f]{32}$/);
    const [choice] = answer.choices;
    assert.equal(choice!.message.role, "assistant");
    assert.include(["length", "stop"], choice!.finish_reason);
    assert.equal(choice!.logprobs!.content.length, answer.usage.completion_tokens);
    assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
    assert.equal(answer.usage.prompt_tokens, await model.countTokens(MESSAGES));
    assert.isAbove(answer.usage.extra.decode_tokens_per_s!, 0);
  });

  it("streams the same text in chunks, with usage at the end", async () => {
    const request = { messages: MESSAGES, max_tokens: 12, temperature: 0 } as const;
    const whole = await model.chat.completions.create(request);
    const stream = await model.chat.completions.create({
      ...request,
      stream: true,
      stream_options: { include_usage: true },
    });
    let text = "";
    let last: unknown;
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta.content ?? "";
      last = chunk;
    }
    assert.equal(text, whole.choices[0]!.message.content);
    const { choices, usage } = last as {
      choices: unknown[];
      usage: { prompt_tokens_details: { cached_tokens: number } };
    };
    assert.isEmpty(choices);
    assert.isAbove(usage.prompt_tokens_details.cached_tokens, 0, "the prompt was read before");
  });

  it("leaving the loop cancels, and the model goes on answering", async () => {
    const stream = await model.chat.completions.create({ messages: MESSAGES, max_tokens: 400, stream: true });
    let nChunks = 0;
    for await (const _ of stream) if (++nChunks === 3) break;
    const start = performance.now();
    await model.chat.completions.create({ messages: MESSAGES, max_tokens: 1 });
    assert.isBelow(performance.now() - start, 3000);
  });

  it("an aborted request rejects with the signal's reason", async () => {
    const reason = new Error("the user left");
    const aborted = AbortSignal.abort(reason);
    assert.equal(
      await rejection(model.chat.completions.create({ messages: MESSAGES }, { signal: aborted })),
      reason,
    );

    const controller = new AbortController();
    const stream = await model.chat.completions.create(
      { messages: MESSAGES, max_tokens: 400, temperature: 1, stream: true },
      { signal: controller.signal },
    );
    const reading = (async () => {
      for await (const _ of stream) controller.abort(reason);
    })();
    assert.equal(await rejection(reading), reason);

    const late = new AbortController();
    const whole = model.chat.completions.create(
      { messages: MESSAGES, max_tokens: 400, logit_bias: { 2: -100 } },
      { signal: late.signal, onProgress: ({ progress }) => progress === 1 && late.abort(reason) },
    );
    assert.equal(await rejection(whole), reason);
  });

  it("reports how far the prompt is read", async () => {
    const seen: number[] = [];
    await model.chat.completions.create(
      { messages: [{ role: "user", content: "word ".repeat(100) }], max_tokens: 1 },
      {
        onProgress: ({ phase, loaded, total, progress }) => {
          assert.equal(phase, "prefill");
          assert.closeTo(progress, loaded / total, 1e-9);
          seen.push(progress);
        },
      },
    );
    assert.equal(seen.at(-1), 1);
  });

  it("continues raw text and ids", async () => {
    const ids = await model.tokenize("the ");
    const texts: string[] = [];
    for (const prompt of ["the ", ids]) {
      let text = "";
      for await (const event of model.complete({ prompt, max_tokens: 6, temperature: 0 }))
        if (event.kind === "text") text += event.text;
      texts.push(text);
    }
    assert.equal(texts[0], texts[1]);
    assert.equal(await model.detokenize(ids), "the ");
  });

  it("the same seed gives the same text", async () => {
    const ask = async (seed: number) => {
      const request = {
        messages: MESSAGES,
        max_tokens: 20,
        temperature: 1.5,
        top_p: 1,
        top_k: 0,
        min_p: 0,
        seed,
      };
      return (await model.chat.completions.create(request)).choices[0]!.message.content;
    };
    const first = await ask(42);
    assert.equal(await ask(42), first);
    assert.notEqual(await ask(43), first);
  });

  it("refuses bad requests with the field and what is allowed", async () => {
    const { create } = model.chat.completions;
    await inlayError(
      create({ messages: MESSAGES, temperature: 3 }),
      "invalid-option",
      /temperature is 3.*<= 2/,
    );
    await inlayError(create({ messages: [] }), "invalid-option", /messages/);
    const unknown = { messages: MESSAGES, max_token: 5 };
    await inlayError(create(unknown), "invalid-option", /max_token.*did you mean max_tokens/);
    const image = { role: "user", content: [{ type: "image_url", image_url: { url: "x" } }] };
    await inlayError(create({ messages: [image as never] }), "invalid-option", /image_url/);
    const long = [{ role: "user", content: "word ".repeat(600) }] as const;
    const error = await inlayError(create({ messages: long }), "context-full", /512 positions/);
    assert.isAbove(error.details.promptTokens as number, 512);
    await inlayError(model.detokenize([400]), "invalid-option", /400/);
    // The page's stack and the engine's code both survive the crossing.
    assert.instanceOf(error, Error);
    assert.isString(error.stack);
  });

  describe("sessions", () => {
    it("remember their turns, read only what is new, and can be cloned", async () => {
      const session = await model.createSession({
        initialPrompts: [{ role: "system", content: "Be brief." }],
        temperature: 0,
        max_tokens: 8,
      });
      assert.equal(session.contextWindow, 512);
      const before = session.contextUsage;
      assert.isAbove(before, 0);
      const first = await session.prompt("Hello");
      assert.equal(session.messages.length, 3);
      assert.isAbove(session.contextUsage, before);
      const clone = await session.clone();
      let streamed = "";
      for await (const piece of session.promptStreaming("And now?")) streamed += piece;
      const cloned = await clone.prompt("And now?");
      assert.equal(cloned, streamed);
      assert.deepEqual(clone.messages, session.messages);
      assert.equal(session.messages[2]!.content, first);
      session.destroy();
      await inlayError(session.prompt("x"), "disposed", /session/);
      assert.isString(await clone.prompt("still here?"));
    });

    it("an aborted turn is forgotten", async () => {
      const session = await model.createSession({ temperature: 0, max_tokens: 200 });
      await session.append("Remember: blue.");
      const controller = new AbortController();
      const reason = new Error("stop");
      const reading = (async () => {
        for await (const _ of session.promptStreaming("Go on", { signal: controller.signal }))
          controller.abort(reason);
      })();
      assert.equal(await rejection(reading), reason);
      assert.equal(session.messages.length, 1);
    });

    it("refuse unknown options", () =>
      inlayError(
        model.createSession({ temprature: 1 } as never),
        "invalid-option",
        /temprature.*temperature/,
      ));
  });
});

describe("loading that fails", function () {
  this.timeout(30_000);
  const bytes = tinyGguf("tiny-llama", { type: "Q4_0", seed: 1 });

  it("says what the file is instead", async () => {
    await inlayError(loadModel(new TextEncoder().encode("<!doctype html>")), "invalid-model", /web page/);
    await inlayError(loadModel(bytes.slice(0, -100)), "invalid-model", /./);
    await inlayError(loadModel(new Blob([bytes.slice(0, 5000)])), "invalid-model", /./);
    await inlayError(loadModel("/no/such/model.gguf"), "source-failed", /404/);
  });

  it("refuses unknown options and devices", async () => {
    await inlayError(loadModel(bytes, { devise: "wasm" } as never), "invalid-option", /devise.*device/);
    await inlayError(loadModel(bytes, { device: "tpu" } as never), "invalid-option", /"tpu"/);
    await inlayError(loadModel(bytes, { contextLength: 4096 }), "invalid-option", /4096.*512/);
    await inlayError(
      loadModel(bytes, { threads: 4, device: "wasm" }),
      "invalid-option",
      /cross-origin isolated/,
    );
    await inlayError(loadModel(42 as never), "invalid-option", /number/);
  });

  it("names missing assets", async () => {
    await inlayError(
      loadModel(bytes, { assets: { worker: "/nowhere/worker.js" } }),
      "worker-died",
      /nowhere/,
    );
    await inlayError(
      loadModel(bytes, { assets: { wasm: "/nowhere/" } }),
      "source-failed",
      /nowhere.*\.wasm.*404/,
    );
  });

  it("can be aborted, and leaves no worker behind", async () => {
    const reason = new Error("never mind");
    assert.equal(await rejection(loadModel(bytes, { signal: AbortSignal.abort(reason) })), reason);
    const controller = new AbortController();
    const slow = new ReadableStream<Uint8Array>({
      start(stream) {
        stream.enqueue(bytes.slice(0, 2000));
      },
    });
    setTimeout(() => controller.abort(reason), 100);
    assert.equal(await rejection(loadModel(slow, { signal: controller.signal })), reason);
  });

  it("a progress callback that throws does not stop loading", async () => {
    const errors: unknown[] = [];
    const onError = (event: ErrorEvent) => {
      errors.push(event.error);
      event.preventDefault();
    };
    addEventListener("error", onError);
    // Mocha listens too and would take it for a failure of this test.
    const mochaListener = globalThis.onerror;
    globalThis.onerror = null;
    try {
      const model = await loadModel(bytes, {
        device: "wasm",
        onProgress: () => {
          throw new Error("bar broke");
        },
      });
      await model.dispose();
    } finally {
      globalThis.onerror = mochaListener;
      removeEventListener("error", onError);
    }
    assert.isNotEmpty(errors);
  });
});

describe("a disposed model", function () {
  this.timeout(30_000);
  it("ends what runs, refuses what comes, and may be disposed twice", async () => {
    const model = await loadModel(tinyGguf("tiny-llama", { seed: 2 }), { device: "wasm" });
    const running = model.chat.completions.create({
      messages: MESSAGES,
      max_tokens: 400,
      logit_bias: { 2: -100 },
    });
    const ended = inlayError(running, "disposed", /disposed/);
    await new Promise((resolve) => setTimeout(resolve, 30));
    await model.dispose();
    await model.dispose();
    await ended;
    await inlayError(model.tokenize("x"), "disposed", /disposed/);
    await inlayError(model.chat.completions.create({ messages: MESSAGES }), "disposed", /disposed/);
  });
});
