import assert from "node:assert/strict";
import { describe, test } from "node:test";
import {
  collectCompletion,
  completionChunks,
  completionUsage,
  newCompletionHead,
} from "../../src/chat/response.ts";
import { openChatCompletionStream } from "../../src/chat/stream.ts";
import { InlayError } from "../../src/errors.ts";
import type { GenerateEvent, GenerateUsage } from "../../src/generate/events.ts";

const HEAD = { id: "chatcmpl-1", created: 1700000000, model: "tiny" };
const USAGE: GenerateUsage = {
  promptTokens: 10,
  cachedTokens: 4,
  completionTokens: 3,
  prefillSeconds: 0.5,
  decodeSeconds: 0.25,
  attention: { prefill: { policy: "dhsa", keysRead: 0.5 }, decode: { policy: "dense", keysRead: undefined } },
  timeToFirstTokenSeconds: 0.6,
  seed: 7,
  device: "wasm",
};
const OPENAI_USAGE = {
  prompt_tokens: 10,
  completion_tokens: 3,
  total_tokens: 13,
  prompt_tokens_details: { cached_tokens: 4 },
  extra: {
    prefill_tokens_per_s: 12,
    decode_tokens_per_s: 8,
    time_to_first_token_s: 0.6,
    device: "wasm",
    seed: 7,
    attention: { prefill: { policy: "dhsa", keys_read: 0.5 }, decode: { policy: "dense", keys_read: null } },
  },
};
const EVENTS: GenerateEvent[] = [
  { kind: "prefill", loaded: 4, total: 10 },
  { kind: "prefill", loaded: 10, total: 10 },
  { kind: "text", text: "Hel", tokenIds: [1] },
  { kind: "text", text: "lo", tokenIds: [2, 3] },
  { kind: "end", finishReason: "length", usage: USAGE },
];

/** A source that records what its consumer does with it. */
function source(events: readonly GenerateEvent[], options: { waitAfter?: number; error?: unknown } = {}) {
  const log: string[] = [];
  let n = 0;
  const iterator: AsyncIterator<GenerateEvent> = {
    async next() {
      if (n === options.waitAfter) await new Promise(() => {});
      const value = events[n++];
      if (value) return { done: false, value };
      if (options.error) throw options.error;
      return { done: true, value: undefined };
    },
    async return() {
      log.push("return");
      return { done: true, value: undefined };
    },
  };
  return { log, [Symbol.asyncIterator]: () => iterator };
}

async function collect<T>(items: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const item of items) all.push(item);
  return all;
}

const chunk = (choices: unknown[], usage?: unknown) => ({
  ...HEAD,
  object: "chat.completion.chunk",
  choices,
  ...(usage !== undefined && { usage }),
});
const choice = (delta: object, finish_reason: string | null = null) => ({
  index: 0,
  delta,
  finish_reason,
  logprobs: null,
});

describe("chunks", () => {
  test("role, texts, finish reason", async () => {
    const chunks = await collect(completionChunks(source(EVENTS), HEAD, false));
    assert.deepEqual(chunks, [
      chunk([choice({ role: "assistant", content: "" })]),
      chunk([choice({ content: "Hel" })]),
      chunk([choice({ content: "lo" })]),
      chunk([choice({}, "length")]),
    ]);
  });
  test("with usage: null until a last chunk without choices", async () => {
    const chunks = await collect(completionChunks(source(EVENTS), HEAD, true));
    assert.deepEqual(
      chunks.map(({ usage }) => usage),
      [null, null, null, null, OPENAI_USAGE],
    );
    assert.deepEqual(chunks.at(-1)!.choices, []);
  });
  test("an answer without text", async () => {
    const chunks = await collect(completionChunks(source(EVENTS.slice(-1)), HEAD, false));
    assert.deepEqual(chunks, [
      chunk([choice({ role: "assistant", content: "" })]),
      chunk([choice({}, "length")]),
    ]);
  });
  test("a text event without text gives no chunk", async () => {
    const events: GenerateEvent[] = [{ kind: "text", text: "", tokenIds: [9] }, EVENTS.at(-1)!];
    assert.equal((await collect(completionChunks(source(events), HEAD, false))).length, 2);
  });
  test("what the source throws is thrown on, before any chunk if it comes first", async () => {
    const error = new InlayError("context-full", "full");
    for (const events of [[], EVENTS.slice(0, 3)]) {
      let nChunks = 0;
      await assert.rejects(
        async () => {
          for await (const _ of completionChunks(source(events, { error }), HEAD, false)) nChunks++;
        },
        (thrown) => thrown === error,
      );
      assert.equal(nChunks, events.length === 0 ? 0 : 2);
    }
  });
  test("a source that stops without an end is our fault", async () => {
    const chunks = completionChunks(source(EVENTS.slice(0, 3)), HEAD, false);
    await assert.rejects(collect(chunks), { code: "internal" });
  });
});

describe("the whole answer", () => {
  test("texts joined, usage, finish reason", async () =>
    assert.deepEqual(await collectCompletion(source(EVENTS), HEAD), {
      ...HEAD,
      object: "chat.completion",
      choices: [
        {
          index: 0,
          message: { role: "assistant", content: "Hello", refusal: null },
          finish_reason: "length",
          logprobs: null,
        },
      ],
      usage: OPENAI_USAGE,
    }));
  test("a source that stops without an end is our fault", () =>
    assert.rejects(collectCompletion(source(EVENTS.slice(0, 3)), HEAD), { code: "internal" }));
});

describe("log-probabilities", () => {
  const bytes = (...values: number[]) => Uint8Array.from(values);
  const events: GenerateEvent[] = [
    {
      kind: "text",
      text: "é!",
      tokenIds: [1, 2, 3],
      logprobs: [
        { id: 1, logprob: -0.5, bytes: bytes(0xc3), top: [{ id: 8, logprob: -0.25, bytes: bytes(0x61) }] },
        { id: 2, logprob: -Infinity, bytes: bytes(0xa9), top: [] },
        { id: 3, logprob: 0, bytes: bytes(0x21), top: [] },
      ],
    },
    { kind: "end", finishReason: "stop", usage: USAGE },
  ];
  const expected = {
    content: [
      {
        token: "\ufffd",
        logprob: -0.5,
        bytes: [0xc3],
        top_logprobs: [{ token: "a", logprob: -0.25, bytes: [0x61] }],
      },
      { token: "\ufffd", logprob: -9999, bytes: [0xa9], top_logprobs: [] },
      { token: "!", logprob: 0, bytes: [0x21], top_logprobs: [] },
    ],
    refusal: null,
  };
  test("in chunks", async () => {
    const chunks = await collect(completionChunks(source(events), HEAD, false));
    assert.deepEqual(chunks[1]!.choices[0]!.logprobs, expected);
    assert.equal(chunks[2]!.choices[0]!.logprobs, null);
  });
  test("in the whole answer, and as JSON", async () => {
    const answer = await collectCompletion(source(events), HEAD);
    assert.deepEqual(answer.choices[0]!.logprobs, expected);
    assert.deepEqual(JSON.parse(JSON.stringify(answer)), answer);
  });
});

describe("usage", () => {
  test("rates are null where nothing was measured", () => {
    const nothing = {
      ...USAGE,
      cachedTokens: 10,
      completionTokens: 1,
      prefillSeconds: 0,
      decodeSeconds: 0,
      timeToFirstTokenSeconds: undefined,
    };
    assert.deepEqual(completionUsage(nothing).extra, {
      prefill_tokens_per_s: null,
      decode_tokens_per_s: null,
      time_to_first_token_s: null,
      device: "wasm",
      seed: 7,
      attention: {
        prefill: { policy: "dhsa", keys_read: 0.5 },
        decode: { policy: "dense", keys_read: null },
      },
    });
  });
});

test("heads: an id of OpenAI's form that is never the same, and the time in seconds", () => {
  const head = newCompletionHead("tiny", 1_700_000_000_999);
  assert.match(head.id, /^chatcmpl-[0-9a-f]{32}$/);
  assert.notEqual(newCompletionHead("tiny").id, head.id);
  assert.equal(head.created, 1_700_000_000);
  assert.equal(head.model, "tiny");
});

describe("the stream that callers hold", () => {
  const open = (events: AsyncIterable<GenerateEvent>, cancel: (reason: unknown) => void = () => {}) =>
    openChatCompletionStream(events, HEAD, false, cancel);

  test("gives all chunks, and returns the source at the end", async () => {
    const events = source(EVENTS);
    const chunks = await collect(await openChatCompletionStream(events, HEAD, true, () => {}));
    assert.equal(chunks.length, 5);
    assert.deepEqual(events.log, ["return"]);
  });
  test("what fails before the first event rejects at once", async () => {
    const error = new InlayError("context-full", "full");
    await assert.rejects(open(source([], { error })), (thrown) => thrown === error);
  });
  test("what fails later reaches the loop", async () => {
    const error = new InlayError("worker-died", "gone");
    const stream = await open(source(EVENTS.slice(0, 3), { error }));
    await assert.rejects(collect(stream), (thrown) => thrown === error);
  });
  test("break returns the source", async () => {
    const events = source(EVENTS);
    const stream = await open(events);
    for await (const { choices } of stream) if (choices[0]!.delta.content === "Hel") break;
    assert.deepEqual(events.log, ["return"]);
    assert.deepEqual(await stream.next(), { done: true, value: undefined });
  });
  test("a throw in the loop returns the source", async () => {
    const events = source(EVENTS);
    await assert.rejects(
      async () => {
        for await (const _ of await open(events)) throw new Error("mine");
      },
      { message: "mine" },
    );
    assert.deepEqual(events.log, ["return"]);
  });
  test("disposing a stream that was never read ends a generator's work", async () => {
    const log: string[] = [];
    async function* events(): AsyncGenerator<GenerateEvent> {
      try {
        for (const event of EVENTS) {
          log.push(event.kind);
          yield event;
        }
      } finally {
        log.push("ended");
      }
    }
    {
      await using stream = await open(events());
      assert.ok(stream);
    }
    assert.deepEqual(log, ["prefill", "ended"]);
  });
  test("disposing twice returns the source once", async () => {
    const events = source(EVENTS);
    const stream = await open(events);
    await stream[Symbol.asyncDispose]();
    await stream[Symbol.asyncDispose]();
    assert.deepEqual(events.log, ["return"]);
  });
  test("abort while a chunk is awaited: the loop rejects with the reason, the source is cancelled", async () => {
    const events = source(EVENTS, { waitAfter: 3 });
    const reason = new Error("enough");
    const stream = await open(events, (given) =>
      events.log.push(given === reason ? "cancel" : "wrong reason"),
    );
    const texts: (string | undefined)[] = [];
    await assert.rejects(
      async () => {
        for await (const { choices } of stream) {
          texts.push(choices[0]!.delta.content);
          if (texts.length === 2) setTimeout(() => stream.abort(reason), 5);
        }
      },
      (thrown) => thrown === reason,
    );
    assert.deepEqual(texts, ["", "Hel"]);
    assert.deepEqual(events.log, ["cancel", "return"]);
    await assert.rejects(stream.next(), (thrown) => thrown === reason);
  });
  test("abort before reading, without a reason", async () => {
    const events = source(EVENTS);
    const stream = await open(events);
    stream.abort();
    stream.abort("again");
    await assert.rejects(stream.next(), { name: "AbortError" });
    assert.deepEqual(events.log, ["return"]);
  });
  test("abort after the loop was left does nothing", async () => {
    const stream = await open(source(EVENTS), () => assert.fail("cancelled"));
    for await (const { choices } of stream) if (choices[0]!.finish_reason) break;
    stream.abort();
    assert.deepEqual(await stream.next(), { done: true, value: undefined });
  });
  test("abort after the end does nothing", async () => {
    const events = source(EVENTS);
    const stream = await open(events, () => assert.fail("cancelled"));
    await collect(stream);
    stream.abort();
    await stream[Symbol.asyncDispose]();
    assert.deepEqual(await stream.next(), { done: true, value: undefined });
    assert.deepEqual(events.log, ["return"]);
  });
  test("a source without return", async () => {
    const bare = {
      [Symbol.asyncIterator]: () => ({ next: async () => ({ done: false as const, value: EVENTS[0]! }) }),
    };
    const stream = await open(bare);
    await stream[Symbol.asyncDispose]();
    assert.deepEqual(await stream.next(), { done: true, value: undefined });
  });
});
