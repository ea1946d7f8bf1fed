/** Compiled, never run: what the types of the chat surface allow and refuse. */

import type {
  ChatCompletion,
  ChatCompletionChunk,
  ChatCompletionRequest,
  ChatCompletionRequestNonStreaming,
  ChatCompletionRequestStreaming,
  ChatCompletionStream,
  ChatMessage,
  CompletionUsage,
} from "../../src/chat/types.ts";
import type { LoadOptions } from "../../src/options.ts";

type Equal<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;
const assertType = <_T extends true>() => {};

declare const completion: ChatCompletion;
declare const stream: ChatCompletionStream;
declare const usage: CompletionUsage;

export const accepted: ChatCompletionRequest[] = [
  { messages: [{ role: "user", content: "Hi" }] },
  { messages: [{ role: "user", content: [{ type: "text", text: "Hi" }] }], temperature: null, stop: ["a"] },
  { messages: [{ role: "assistant", content: null, tool_calls: [] }], top_k: 40, stream: undefined },
  { messages: [completion.choices[0]!.message], logit_bias: { 5: 1 }, response_format: { type: "text" } },
  {
    messages: [] as readonly ChatMessage[],
    stop: ["a"] as const,
    chat_template_kwargs: { enable_thinking: false },
  },
];

export const refused: ChatCompletionRequest[] = [
  // @ts-expect-error messages are required
  {},
  // @ts-expect-error an unknown role
  { messages: [{ role: "bot", content: "Hi" }] },
  // @ts-expect-error content is required
  { messages: [{ role: "user" }] },
  // @ts-expect-error one answer only
  { messages: [], n: 2 },
  // @ts-expect-error no JSON output yet
  { messages: [], response_format: { type: "json_object" } },
  // @ts-expect-error an unknown field
  { messages: [], temprature: 1 },
  // @ts-expect-error images are not in this version
  { messages: [{ role: "user", content: [{ type: "image_url", image_url: { url: "" } }] }] },
];

export const options: LoadOptions[] = [
  {},
  { device: "hybrid", attention: { prefill: "window" }, kvCache: { format: "f16" }, threads: "auto" },
  // @ts-expect-error not a device
  { device: "cpu" },
  { attention: { prefill: "dhsa", decode: "dhsa", budget: 0.1 } },
  // @ts-expect-error not in this version
  { attention: { prefill: "squeezed" } },
  // @ts-expect-error an unknown option
  { contextLenght: 5 },
];

/** How `create` will be declared: the request's `stream` decides what comes back. */
declare function create(request: ChatCompletionRequestStreaming): Promise<ChatCompletionStream>;
declare function create(request: ChatCompletionRequestNonStreaming): Promise<ChatCompletion>;

export async function use(messages: ChatMessage[]): Promise<void> {
  const answer = await create({ messages });
  assertType<Equal<typeof answer, ChatCompletion>>();
  assertType<Equal<(typeof answer.choices)[number]["finish_reason"], "stop" | "length">>();
  await using chunks = await create({ messages, stream: true });
  assertType<Equal<typeof chunks, ChatCompletionStream>>();
  for await (const chunk of chunks) assertType<Equal<typeof chunk, ChatCompletionChunk>>();
  stream.abort();
  assertType<Equal<typeof usage.prompt_tokens_details.cached_tokens, number>>();
  assertType<Equal<typeof usage.extra.device, "wasm" | "hybrid" | "webgpu">>();
}
