/** What the engine tells → OpenAI's objects. */

import { internalError } from "../errors.ts";
import type {
  AttentionUsage,
  DescribedToken,
  GenerateEvent,
  GenerateUsage,
  TokenLogprobs,
} from "../generate/events.ts";
import type {
  ChatCompletion,
  ChatCompletionChunk,
  ChatCompletionLogprobs,
  ChatCompletionTokenLogprob,
  CompletionUsage,
} from "./types.ts";

/** What all objects of one answer have in common. */
export interface CompletionHead {
  readonly id: string;
  /** Seconds since 1970. */
  readonly created: number;
  readonly model: string;
}

/** A new answer of the model called `model`. `now`: milliseconds since 1970. */
export function newCompletionHead(model: string, now = Date.now()): CompletionHead {
  return {
    id: `chatcmpl-${randomHex(16)}`,
    created: Math.floor(now / 1000),
    model,
  };
}

/** `crypto.randomUUID` would need HTTPS or localhost. */
function randomHex(nBytes: number): string {
  const bytes = crypto.getRandomValues(new Uint8Array(nBytes));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * The chunks of one answer: one with the role, one per text, one with the finish reason, and with `includeUsage`
 * one with the usage. Leaving the loop returns `events`; what they throw is thrown on.
 */
export async function* completionChunks(
  events: AsyncIterable<GenerateEvent>,
  head: CompletionHead,
  includeUsage: boolean,
): AsyncGenerator<ChatCompletionChunk, void> {
  type Choice = ChatCompletionChunk["choices"][number];
  const chunk = (choices: Choice[], usage: CompletionUsage | null = null): ChatCompletionChunk => ({
    id: head.id,
    object: "chat.completion.chunk",
    created: head.created,
    model: head.model,
    choices,
    ...(includeUsage && { usage }),
  });
  const choice = (delta: Choice["delta"], rest: Partial<Choice> = {}): Choice => ({
    index: 0,
    delta,
    finish_reason: null,
    logprobs: null,
    ...rest,
  });

  let hasBegun = false;
  for await (const event of events) {
    if (event.kind === "prefill") continue;
    if (!hasBegun) yield chunk([choice({ role: "assistant", content: "" })]);
    hasBegun = true;
    if (event.kind === "end") {
      yield chunk([choice({}, { finish_reason: event.finishReason })]);
      if (includeUsage) yield chunk([], completionUsage(event.usage));
      return;
    }
    const logprobs = event.logprobs && choiceLogprobs(event.logprobs);
    if (event.text !== "" || logprobs)
      yield chunk([choice({ content: event.text }, logprobs ? { logprobs } : {})]);
  }
  throw internalError("the engine's events stopped without an end");
}

/** The whole answer as one object. */
export async function collectCompletion(
  events: AsyncIterable<GenerateEvent>,
  head: CompletionHead,
): Promise<ChatCompletion> {
  const texts: string[] = [];
  const logprobs: TokenLogprobs[] = [];
  let hasLogprobs = false;
  for await (const event of events) {
    if (event.kind === "text") {
      texts.push(event.text);
      if (event.logprobs) {
        hasLogprobs = true;
        for (const entry of event.logprobs) logprobs.push(entry);
      }
    } else if (event.kind === "end")
      return {
        id: head.id,
        object: "chat.completion",
        created: head.created,
        model: head.model,
        choices: [
          {
            index: 0,
            message: { role: "assistant", content: texts.join(""), refusal: null },
            finish_reason: event.finishReason,
            logprobs: hasLogprobs ? choiceLogprobs(logprobs) : null,
          },
        ],
        usage: completionUsage(event.usage),
      };
  }
  throw internalError("the engine's events stopped without an end");
}

/** Counts in OpenAI's names, and rates. */
export function completionUsage(usage: GenerateUsage): CompletionUsage {
  const prefilled = usage.promptTokens - usage.cachedTokens;
  return {
    prompt_tokens: usage.promptTokens,
    completion_tokens: usage.completionTokens,
    total_tokens: usage.promptTokens + usage.completionTokens,
    prompt_tokens_details: { cached_tokens: usage.cachedTokens },
    extra: {
      prefill_tokens_per_s: rate(prefilled, usage.prefillSeconds),
      // The first token is the prefill's; decoding takes from it to the last.
      decode_tokens_per_s: rate(usage.completionTokens - 1, usage.decodeSeconds),
      time_to_first_token_s: usage.timeToFirstTokenSeconds ?? null,
      device: usage.device,
      seed: usage.seed,
      attention: {
        prefill: describeAttention(usage.attention.prefill),
        decode: describeAttention(usage.attention.decode),
      },
    },
  };
}

function describeAttention({
  policy,
  keysRead,
  missingMass,
}: AttentionUsage): CompletionUsage["extra"]["attention"]["prefill"] {
  return {
    policy,
    keys_read: keysRead ?? null,
    ...(missingMass !== undefined && { missing_mass: missingMass }),
  };
}

function rate(count: number, seconds: number): number | null {
  return count > 0 && seconds > 0 ? count / seconds : null;
}

/** JSON has no -Infinity; OpenAI writes this number for tokens that are practically impossible. */
const IMPOSSIBLE_LOGPROB = -9999;

function choiceLogprobs(logprobs: readonly TokenLogprobs[]): ChatCompletionLogprobs {
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  const describe = ({ logprob, bytes }: DescribedToken) => ({
    token: decoder.decode(bytes),
    logprob: Math.max(logprob, IMPOSSIBLE_LOGPROB),
    bytes: Array.from(bytes),
  });
  const content = logprobs.map(
    (entry): ChatCompletionTokenLogprob => ({ ...describe(entry), top_logprobs: entry.top.map(describe) }),
  );
  return { content, refusal: null };
}
