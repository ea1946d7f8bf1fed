import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { resolveChatRequest, resolveCompletionRequest } from "../../src/chat/request.ts";
import { InlayError } from "../../src/errors.ts";

const MESSAGES = [{ role: "user", content: "Hi" }];
const CONTROL = { messages: MESSAGES };

const DEFAULT_SAMPLING = {
  temperature: 0.8,
  topK: 40,
  topP: 0.95,
  minP: 0.05,
  repetitionPenalty: 1,
  frequencyPenalty: 0,
  presencePenalty: 0,
  repeatLastN: 64,
  logitBias: new Map(),
  seed: undefined,
};
const DEFAULT_GENERATE = {
  sampling: DEFAULT_SAMPLING,
  stop: [],
  maxTokens: undefined,
  topLogprobs: undefined,
};

function refused(attempt: () => unknown, message: string | RegExp): void {
  assert.throws(attempt, (error: unknown) => {
    assert.ok(error instanceof InlayError, String(error));
    assert.equal(error.code, "invalid-option");
    if (typeof message === "string") assert.equal(error.message, message);
    else assert.match(error.message, message);
    assert.equal(typeof error.details.option, "string");
    structuredClone(error.details);
    return true;
  });
}

function chatPrompt({ generate: { prompt } }: ReturnType<typeof resolveChatRequest>) {
  assert.equal(prompt.kind, "chat");
  return prompt as Extract<typeof prompt, { kind: "chat" }>;
}

describe("chat requests that are accepted", () => {
  test("messages alone: every default", () =>
    assert.deepEqual(resolveChatRequest(CONTROL), {
      model: undefined,
      generate: {
        prompt: {
          kind: "chat",
          messages: [{ role: "user", content: "Hi" }],
          options: { addGenerationPrompt: true, tools: [], variables: {} },
        },
        ...DEFAULT_GENERATE,
      },
      stream: false,
      includeUsage: false,
    }));
  test("null everywhere is the same", () => {
    const nothing = Object.fromEntries(
      "model stream stream_options n response_format tools tool_choice chat_template_kwargs modalities max_tokens max_completion_tokens temperature top_p top_k min_p repetition_penalty frequency_penalty presence_penalty repeat_last_n seed stop logit_bias logprobs top_logprobs pinned audio functions"
        .split(" ")
        .map((name) => [name, null]),
    );
    assert.deepEqual(resolveChatRequest({ ...CONTROL, ...nothing }), resolveChatRequest(CONTROL));
    const missing = Object.fromEntries(Object.keys(nothing).map((name) => [name, undefined]));
    assert.deepEqual(resolveChatRequest({ ...CONTROL, ...missing }), resolveChatRequest(CONTROL));
  });
  test("everything", () => {
    const tool = {
      type: "function",
      function: { name: "f", description: "d", parameters: { type: "object", properties: {} }, strict: true },
    };
    const resolved = resolveChatRequest({
      messages: MESSAGES,
      model: "my-model",
      stream: true,
      stream_options: { include_usage: true, include_obfuscation: false },
      n: 1,
      response_format: { type: "text" },
      tools: [tool],
      tool_choice: "auto",
      chat_template_kwargs: { enable_thinking: false },
      modalities: ["text"],
      max_tokens: 10,
      max_completion_tokens: 10,
      temperature: 0,
      top_p: 1,
      top_k: 0,
      min_p: 0,
      repetition_penalty: 1.1,
      frequency_penalty: -2,
      presence_penalty: 2,
      repeat_last_n: -1,
      seed: 0,
      stop: ["a", "b"],
      logit_bias: { "5": -100, "0": 1.5 },
      logprobs: true,
      top_logprobs: 20,
      user: "u",
      store: true,
      metadata: { a: "b" },
      service_tier: "auto",
      parallel_tool_calls: true,
    });
    assert.deepEqual(resolved, {
      model: "my-model",
      stream: true,
      includeUsage: true,
      generate: {
        prompt: {
          kind: "chat",
          messages: [{ role: "user", content: "Hi" }],
          options: { addGenerationPrompt: true, tools: [tool], variables: { enable_thinking: false } },
        },
        maxTokens: 10,
        stop: ["a", "b"],
        topLogprobs: 20,
        sampling: {
          temperature: 0,
          topK: 0,
          topP: 1,
          minP: 0,
          repetitionPenalty: 1.1,
          frequencyPenalty: -2,
          presencePenalty: 2,
          repeatLastN: -1,
          logitBias: new Map([
            [0, 1.5],
            [5, -100],
          ]),
          seed: 0,
        },
      },
    });
    structuredClone(resolved);
  });
  const single: [
    name: string,
    fields: object,
    pick: (r: ReturnType<typeof resolveChatRequest>) => unknown,
    expected: unknown,
  ][] = [
    ["one stop string", { stop: "x" }, (r) => r.generate.stop, ["x"]],
    ["no stop strings", { stop: [] }, (r) => r.generate.stop, []],
    ["log-probabilities without alternatives", { logprobs: true }, (r) => r.generate.topLogprobs, 0],
    ["log-probabilities refused", { logprobs: false }, (r) => r.generate.topLogprobs, undefined],
    ["the newer name of max_tokens", { max_completion_tokens: 7 }, (r) => r.generate.maxTokens, 7],
    [
      "tools that are not to be used",
      { tools: [{ type: "function", function: { name: "f" } }], tool_choice: "none" },
      (r) => chatPrompt(r).options.tools,
      [],
    ],
    [
      "a stream without usage",
      { stream: true, stream_options: {} },
      (r) => [r.stream, r.includeUsage],
      [true, false],
    ],
  ];
  for (const [name, fields, pick, expected] of single)
    test(name, () => assert.deepEqual(pick(resolveChatRequest({ ...CONTROL, ...fields })), expected));
});

describe("chat requests with one thing wrong", () => {
  test("the control is right", () => assert.doesNotThrow(() => resolveChatRequest(CONTROL)));
  const cases: [name: string, fields: object, message: string | RegExp][] = [
    [
      "temperature too high",
      { temperature: 2.1 },
      "temperature is 2.1; it must be a number with 0 <= temperature <= 2",
    ],
    ["temperature negative", { temperature: -0.1 }, /temperature is -0\.1/],
    ["temperature NaN", { temperature: Number.NaN }, /temperature is NaN/],
    [
      "temperature as text",
      { temperature: "1" },
      'temperature is "1"; it must be a number with 0 <= temperature <= 2',
    ],
    ["top_p above 1", { top_p: 1.01 }, /top_p is 1\.01; .* 0 <= top_p <= 1/],
    ["top_k fractional", { top_k: 1.5 }, /top_k is 1\.5; it must be an integer/],
    ["top_k negative", { top_k: -1 }, /top_k is -1/],
    ["min_p above 1", { min_p: 2 }, /min_p is 2/],
    [
      "repetition_penalty 0",
      { repetition_penalty: 0 },
      /repetition_penalty is 0; .* 0 < repetition_penalty <= 10/,
    ],
    ["frequency_penalty too low", { frequency_penalty: -2.5 }, /frequency_penalty is -2\.5; .*-2 <= /],
    ["presence_penalty too high", { presence_penalty: 3 }, /presence_penalty is 3/],
    ["repeat_last_n too low", { repeat_last_n: -2 }, /repeat_last_n is -2; .*-1 <= /],
    ["seed negative", { seed: -1 }, /seed is -1; .* 0 <= seed <= 9007199254740991/],
    ["seed too large", { seed: 2 ** 53 }, /seed is 9007199254740992/],
    ["no tokens", { max_tokens: 0 }, /max_tokens is 0; it must be an integer with 1 <= max_tokens/],
    [
      "two limits",
      { max_tokens: 1, max_completion_tokens: 2 },
      "max_tokens is 1 and max_completion_tokens is 2; they mean the same, give one",
    ],
    ["an empty stop string", { stop: "" }, "stop: string 0 is empty, and would match everywhere"],
    ["too many stop strings", { stop: Array(17).fill("x") }, /stop: 17 strings/],
    ["a stop string that is a number", { stop: ["a", 5] }, "stop[1] is 5; it must be a string"],
    ["stop of another type", { stop: 5 }, "stop is 5; it must be a string or an array of strings"],
    [
      "a bias on a word",
      { logit_bias: { hello: 1 } },
      'a key of logit_bias is "hello"; it must be a token id',
    ],
    ["a bias too large", { logit_bias: { 5: 101 } }, /logit_bias\[5\] is 101; .*-100 <= .* <= 100/],
    ["biases in an array", { logit_bias: [1] }, /logit_bias is an array of 1; it must be an object/],
    ["logprobs as a number", { logprobs: 5 }, "logprobs is 5; it must be true or false"],
    ["too many alternatives", { logprobs: true, top_logprobs: 21 }, /top_logprobs is 21; .* <= 20/],
    [
      "alternatives without logprobs",
      { top_logprobs: 2 },
      "logprobs is undefined; it must be true when top_logprobs is given",
    ],
    ["stream as text", { stream: "yes" }, 'stream is "yes"; it must be true or false'],
    [
      "stream options without a stream",
      { stream_options: {} },
      "stream_options is an object; it must be absent unless stream is true",
    ],
    [
      "a misspelt stream option",
      { stream: true, stream_options: { includeUsage: true } },
      "unknown option stream_options.includeUsage; did you mean stream_options.include_usage?",
    ],
    ["two answers", { n: 2 }, "n 2 is not supported in this version; ask for one answer at a time"],
    [
      "JSON output",
      { response_format: { type: "json_object" } },
      'response_format.type "json_object" is not supported in this version; it has "text"; ask for JSON in a message',
    ],
    [
      "a JSON schema",
      { response_format: { type: "json_schema", json_schema: {} } },
      /"json_schema" is not supported in this version/,
    ],
    [
      "an unknown format",
      { response_format: { type: "xml" } },
      'response_format.type is "xml"; it must be "text"',
    ],
    ["audio output", { modalities: ["text", "audio"] }, /modalities "audio" is not supported/],
    [
      "a pinned prompt that is none",
      { pinned: {} },
      "pinned is an object; it must be a pinned prompt from model.pin or model.pinned.open",
    ],
    ["functions", { functions: [] }, /functions is not supported in this version; use tools/],
    ["reasoning effort", { reasoning_effort: "low" }, /use chat_template_kwargs/],
    ["a model that is no name", { model: 5 }, "model is 5; it must be a string"],
    ["an unknown field", { temprature: 1 }, "unknown option temprature; did you mean temperature?"],
    ["camel case", { maxTokens: 5 }, "unknown option maxTokens; did you mean max_tokens?"],
    [
      "a field nobody knows",
      { grammar_path: 5 },
      /^unknown option grammar_path; known are messages, model, /,
    ],
    ["tools that are an object", { tools: {} }, "tools is an object; it must be an array"],
    [
      "a tool without a function",
      { tools: [{ type: "function" }] },
      "tools[0].function is undefined; it must be an object",
    ],
    [
      "a tool of another kind",
      { tools: [{ type: "web_search" }] },
      'tools[0].type is "web_search"; it must be "function"',
    ],
    [
      "a tool without a name",
      { tools: [{ type: "function", function: {} }] },
      "tools[0].function.name is undefined; it must be a string",
    ],
    [
      "a tool whose parameters are no JSON",
      { tools: [{ type: "function", function: { name: "f", parameters: { a: () => 1 } } }] },
      /tools\[0\]\.function\.parameters\.a is a function/,
    ],
    [
      "a tool that must be used",
      { tool_choice: "required" },
      /tool_choice "required" is not supported in this version; it has "auto" and "none"/,
    ],
    [
      "a named tool",
      { tool_choice: { type: "function", function: { name: "f" } } },
      /tool_choice is not supported/,
    ],
    [
      "template variables that are no JSON",
      { chat_template_kwargs: { when: new Date() } },
      /chat_template_kwargs\.when is an object; it must be a plain object/,
    ],
    ["template variables in an array", { chat_template_kwargs: [] }, /chat_template_kwargs is an array of 0/],
  ];
  for (const [name, fields, message] of cases)
    test(name, () => refused(() => resolveChatRequest({ ...CONTROL, ...fields }), message));
  for (const request of [undefined, null, "Hi", 5, [CONTROL]])
    test(`a request that is ${JSON.stringify(request)}`, () =>
      refused(() => resolveChatRequest(request), /^request is .*; it must be an object$/));
});

describe("messages", () => {
  const resolve = (...messages: unknown[]) => chatPrompt(resolveChatRequest({ messages })).messages;
  test("every role", () =>
    assert.deepEqual(
      resolve(
        { role: "system", content: "s" },
        { role: "developer", content: "d" },
        { role: "user", content: "u", name: "Ada" },
        { role: "assistant", content: "a", reasoning_content: "hm" },
        { role: "tool", content: "t", tool_call_id: "c1", name: "f" },
      ),
      [
        { role: "system", content: "s" },
        { role: "developer", content: "d" },
        { role: "user", content: "u", name: "Ada" },
        { role: "assistant", content: "a", reasoning_content: "hm" },
        { role: "tool", content: "t", tool_call_id: "c1", name: "f" },
      ],
    ));
  test("text parts are joined by a line break", () =>
    assert.deepEqual(
      resolve({
        role: "user",
        content: [
          { type: "text", text: "one" },
          { type: "text", text: "two" },
        ],
      }),
      [{ role: "user", content: "one\ntwo" }],
    ));
  test("no parts are no text", () =>
    assert.deepEqual(resolve({ role: "user", content: [] }), [{ role: "user", content: "" }]));
  test("an OpenAI answer can be passed back as it is", () =>
    assert.deepEqual(
      resolve({
        role: "assistant",
        content: "a",
        refusal: null,
        annotations: [],
        audio: null,
        function_call: null,
        tool_calls: null,
      }),
      [{ role: "assistant", content: "a" }],
    ));
  test("tool calls: arguments become what their JSON stands for", () => {
    const call = (args: string) => ({ id: "c1", type: "function", function: { name: "f", arguments: args } });
    const resolved = resolve({
      role: "assistant",
      content: null,
      tool_calls: [call('{"x": [1]}'), call("not json"), call("5"), call('"text"'), call("")],
    });
    assert.deepEqual(
      resolved[0]!.tool_calls!.map((toolCall) => toolCall.function.arguments),
      [{ x: [1] }, "not json", "5", '"text"', ""],
    );
    assert.equal(resolved[0]!.content, "");
    assert.deepEqual(Object.keys(resolved[0]!), ["role", "content", "tool_calls"]);
  });

  const cases: [name: string, messages: unknown, message: string | RegExp][] = [
    ["no messages", [], "messages is an array of 0; it must be an array of at least one message"],
    ["absent messages", undefined, "messages is undefined; it must be an array"],
    ["one message instead of an array", MESSAGES[0], "messages is an object; it must be an array"],
    ["a text instead of a message", ["Hi"], 'messages[0] is "Hi"; it must be an object'],
    [
      "no role",
      [{ content: "Hi" }],
      /messages\[0\]\.role is undefined; it must be "system", "developer", "user", "assistant" or "tool"/,
    ],
    ["an unknown role", [...MESSAGES, { role: "bot", content: "Hi" }], /messages\[1\]\.role is "bot"/],
    [
      "the old role",
      [{ role: "function", content: "1", name: "f" }],
      /"function" is not supported.*the role "tool"/,
    ],
    [
      "no content",
      [{ role: "user" }],
      "messages[0].content is undefined; it must be a string or an array of text parts",
    ],
    ["null content", [{ role: "assistant", content: null }], /messages\[0\]\.content is null/],
    [
      "an image",
      [{ role: "user", content: [{ type: "image_url", image_url: { url: "" } }] }],
      'messages[0].content[0].type "image_url" is not supported in this version; this version takes text only',
    ],
    [
      "audio input",
      [{ role: "user", content: [{ type: "input_audio", input_audio: {} }] }],
      /content\[0\]\.type "input_audio" is not supported/,
    ],
    [
      "a part that is a text",
      [{ role: "user", content: ["Hi"] }],
      'messages[0].content[0] is "Hi"; it must be an object',
    ],
    [
      "a part without text",
      [{ role: "user", content: [{ type: "text" }] }],
      /content\[0\]\.text is undefined; it must be a string/,
    ],
    [
      "an unknown field",
      [{ role: "user", content: "Hi", text: "Ho" }],
      /^unknown option messages\[0\]\.text; /,
    ],
    [
      "a field of another role",
      [{ role: "user", content: "Hi", tool_calls: [] }],
      /^unknown option messages\[0\]\.tool_calls/,
    ],
    [
      "a name that is a number",
      [{ role: "user", content: "Hi", name: 5 }],
      "messages[0].name is 5; it must be a string",
    ],
    [
      "an audio answer",
      [{ role: "assistant", content: "", audio: { id: "a" } }],
      /messages\[0\]\.audio is not supported/,
    ],
    [
      "tool arguments as an object",
      [
        {
          role: "assistant",
          tool_calls: [{ id: "c", type: "function", function: { name: "f", arguments: {} } }],
        },
      ],
      "messages[0].tool_calls[0].function.arguments is an object; it must be a string",
    ],
    [
      "a tool call of another kind",
      [{ role: "assistant", tool_calls: [{ id: "c", type: "custom" }] }],
      /tool_calls\[0\]\.type is "custom"/,
    ],
  ];
  for (const [name, messages, message] of cases)
    test(name, () => refused(() => resolveChatRequest({ messages }), message));
});

describe("raw completion requests", () => {
  test("text, with special tokens recognised", () =>
    assert.deepEqual(resolveCompletionRequest({ prompt: "Once" }), {
      prompt: { kind: "text", text: "Once", parseSpecial: true },
      ...DEFAULT_GENERATE,
    }));
  test("token ids, and sampling", () => {
    const expected = { kind: "ids", ids: Uint32Array.of(1, 2) };
    const given = resolveCompletionRequest({ prompt: [1, 2], temperature: 0, max_tokens: 3 });
    assert.deepEqual(given.prompt, expected);
    assert.equal(given.sampling.temperature, 0);
    assert.equal(given.maxTokens, 3);
    assert.deepEqual(resolveCompletionRequest({ prompt: Uint32Array.of(1, 2) }).prompt, expected);
  });
  const cases: [name: string, request: unknown, message: RegExp][] = [
    ["no prompt", {}, /prompt is undefined; it must be a string or an array of token ids/],
    ["ids that are no ids", { prompt: [1, -1] }, /prompt is an array of 2/],
    ["fractional ids", { prompt: [1.5] }, /prompt is an array of 1/],
    ["messages", { prompt: "x", messages: MESSAGES }, /^unknown option messages; known are prompt, /],
    ["a wrong range", { prompt: "x", temperature: 3 }, /temperature is 3/],
  ];
  for (const [name, request, message] of cases)
    test(name, () => refused(() => resolveCompletionRequest(request), message));
});
