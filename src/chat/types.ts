/**
 * The OpenAI-compatible surface of `model.chat.completions`: the same names and meanings as the Chat Completions API,
 * plus what a local model adds. Fields that OpenAI has and that mean nothing on one's own device are accepted and
 * ignored (see src/chat/request.ts); everything else that is not here is refused.
 */

import type { PinnedPrompt } from "../api/pinned.ts";
import type { FinishReason, GenerateUsage } from "../generate/events.ts";
import type { Json } from "../tokenizer/chat-template.ts";

/** A piece of message content. Only text: this version has no images or audio. */
export interface TextContentPart {
  type: "text";
  text: string;
}

/** Text, or text in parts; parts are joined by a line break. */
export type MessageContent = string | readonly TextContentPart[];

/** Instructions to the model. "developer" is OpenAI's newer name for "system"; most templates know only the latter. */
export interface SystemMessage {
  role: "system" | "developer";
  content: MessageContent;
  name?: string | undefined;
}

export interface UserMessage {
  role: "user";
  content: MessageContent;
  name?: string | undefined;
}

/** An earlier answer of the model. A `ChatCompletionMessage` may be passed back as it is. */
export interface AssistantMessage {
  role: "assistant";
  /** May be null or absent when there are tool calls. */
  content?: MessageContent | null | undefined;
  name?: string | undefined;
  tool_calls?: readonly ToolCall[] | undefined;
  /** Text that the model thought before it answered; some templates show it. */
  reasoning_content?: string | null | undefined;
  refusal?: string | null | undefined;
}

/** The result of a tool call. */
export interface ToolMessage {
  role: "tool";
  content: MessageContent;
  tool_call_id?: string | undefined;
  /** The tool's name, which some templates show. */
  name?: string | undefined;
}

export type ChatMessage = SystemMessage | UserMessage | AssistantMessage | ToolMessage;

/** A call that the assistant made. */
export interface ToolCall {
  id: string;
  type: "function";
  function: {
    name: string;
    /** JSON text. */
    arguments: string;
  };
}

/** A function that the model is told about, through its chat template. Calls in its answer are not parsed yet. */
export interface Tool {
  type: "function";
  function: {
    name: string;
    description?: string | undefined;
    /** A JSON schema. */
    parameters?: { [key: string]: Json } | undefined;
    strict?: boolean | null | undefined;
  };
}

/** How tokens are chosen: the fields that chat and raw completions share. null means the default. */
export interface SamplingFields {
  /** Most tokens to generate, at least 1. @default as many as the context has room for */
  max_tokens?: number | null | undefined;
  /** The newer name of `max_tokens`; if both are given they must agree. */
  max_completion_tokens?: number | null | undefined;
  /** 0 = always the most likely token. 0 <= temperature <= 2. @default 0.8 */
  temperature?: number | null | undefined;
  /** Only the most likely tokens with this much probability together. 0 <= top_p <= 1. @default 0.95 */
  top_p?: number | null | undefined;
  /** Only this many of the most likely tokens; 0 = no limit. @default 40 */
  top_k?: number | null | undefined;
  /** Only tokens at least this probable relative to the most likely one. 0 <= min_p <= 1. @default 0.05 */
  min_p?: number | null | undefined;
  /** Divides positive logits of recent tokens and multiplies negative ones. 0 < repetition_penalty <= 10. @default 1 */
  repetition_penalty?: number | null | undefined;
  /** Subtracted from a token's logit for each use in this answer. -2 <= frequency_penalty <= 2. @default 0 */
  frequency_penalty?: number | null | undefined;
  /** Subtracted from a token's logit if this answer used it. -2 <= presence_penalty <= 2. @default 0 */
  presence_penalty?: number | null | undefined;
  /** Tokens, prompt included, that `repetition_penalty` looks back over; 0 = none, -1 = all. @default 64 */
  repeat_last_n?: number | null | undefined;
  /** Same seed, same tokens. 0 <= seed < 2^53. @default a random one, reported in `usage.extra.seed` */
  seed?: number | null | undefined;
  /** Up to 16 strings of at most 256 characters; the answer ends before the first of them. */
  stop?: string | readonly string[] | null | undefined;
  /** Token id → number added to its logit, -100 to 100. */
  logit_bias?: Record<string, number> | null | undefined;
  /** Report each token's log-probability. @default false */
  logprobs?: boolean | null | undefined;
  /** How many alternatives to report with each token. 0 <= top_logprobs <= 20. @default 0 */
  top_logprobs?: number | null | undefined;
}

/** What `model.chat.completions.create` takes. */
export interface ChatCompletionRequest extends SamplingFields {
  messages: readonly ChatMessage[];
  /** An open prompt that was pinned as messages; they come before `messages` and are not computed again. @default none */
  pinned?: PinnedPrompt | null | undefined;
  /** Any name; it comes back in the answer. @default the loaded model's name */
  model?: string | undefined;
  /** true: the answer comes in chunks. @default false */
  stream?: boolean | null | undefined;
  stream_options?: {
    /** Adds a last chunk without choices that has the usage. @default false */
    include_usage?: boolean | undefined;
  } | null;
  /** Answers per request: 1. */
  n?: 1 | null | undefined;
  /** Only text; JSON output is not in this version. */
  response_format?: { type: "text" } | null | undefined;
  /** Functions the model is told about. */
  tools?: readonly Tool[] | null | undefined;
  /** "none": the model is not told about the tools. @default "auto" */
  tool_choice?: "auto" | "none" | null | undefined;
  /** Variables for the chat template, such as Qwen3's `{ enable_thinking: false }`. */
  chat_template_kwargs?: Record<string, Json> | null | undefined;
}

export interface ChatCompletionRequestStreaming extends ChatCompletionRequest {
  stream: true;
}

export interface ChatCompletionRequestNonStreaming extends ChatCompletionRequest {
  stream?: false | null | undefined;
}

/** What `model.completions` takes: text or tokens to continue, without a chat template. */
export interface CompletionRequest extends SamplingFields {
  /** Text, in which special tokens are recognised by their text, or token ids, used as they are. */
  prompt: string | readonly number[] | Uint32Array;
  /** An open prompt that comes before `prompt`, raw text before text. @default none */
  pinned?: PinnedPrompt | null | undefined;
  /** Go on past the model's end tokens, up to `max_tokens`: for benchmarks. @default false */
  ignore_eos?: boolean | null | undefined;
}

export interface ChatCompletionTokenLogprob {
  token: string;
  /** Natural logarithm of the probability; -9999 if it is 0. */
  logprob: number;
  /** The token's UTF-8 bytes; `token` shows parts of characters as U+FFFD. */
  bytes: number[];
  top_logprobs: { token: string; logprob: number; bytes: number[] }[];
}

export interface ChatCompletionLogprobs {
  content: ChatCompletionTokenLogprob[];
  refusal: null;
}

/** Counts of one answer, and how fast it was. */
export interface CompletionUsage {
  prompt_tokens: number;
  completion_tokens: number;
  total_tokens: number;
  prompt_tokens_details: {
    /** Prompt tokens that were not computed again. */
    cached_tokens: number;
  };
  /** What OpenAI's API does not have. Rates are null where there was nothing to measure. */
  extra: {
    prefill_tokens_per_s: number | null;
    decode_tokens_per_s: number | null;
    time_to_first_token_s: number | null;
    device: GenerateUsage["device"];
    /** The seed that repeats this answer. */
    seed: number;
    /**
     * Which policy read the prompt and wrote the answer, the share of the keys that it read (null: none were), and after a
     * pinned prompt with a sparsity the estimated attention probability of its keys that were not read.
     */
    attention: Record<
      "prefill" | "decode",
      { policy: string; keys_read: number | null; missing_mass?: number | undefined }
    >;
  };
}

export interface ChatCompletionMessage {
  role: "assistant";
  content: string;
  refusal: null;
}

/** A complete answer. */
export interface ChatCompletion {
  id: string;
  object: "chat.completion";
  /** Seconds since 1970. */
  created: number;
  model: string;
  choices: {
    index: 0;
    message: ChatCompletionMessage;
    finish_reason: FinishReason;
    logprobs: ChatCompletionLogprobs | null;
  }[];
  usage: CompletionUsage;
}

/** A piece of an answer. The first has the role, the last with a choice has the finish reason. */
export interface ChatCompletionChunk {
  /** The same in all chunks of an answer. */
  id: string;
  object: "chat.completion.chunk";
  created: number;
  model: string;
  /** One choice; none in the chunk that has the usage. */
  choices: {
    index: 0;
    delta: { role?: "assistant"; content?: string };
    finish_reason: FinishReason | null;
    logprobs: ChatCompletionLogprobs | null;
  }[];
  /** Only with `stream_options.include_usage`: null until the last chunk. */
  usage?: CompletionUsage | null;
}

/**
 * An answer in chunks. Leaving the loop (`break`, `return`, a throw) cancels the work, and so does disposing.
 * Can be iterated once.
 */
export interface ChatCompletionStream extends AsyncIterableIterator<ChatCompletionChunk>, AsyncDisposable {
  [Symbol.asyncIterator](): ChatCompletionStream;
  /** Cancels the work; the loop rejects with `reason`. @default reason a DOMException named "AbortError" */
  abort(reason?: unknown): void;
}
