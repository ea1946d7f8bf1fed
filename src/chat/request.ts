/**
 * Requests as callers write them → what the engine takes. Everything is checked here, before the engine is asked:
 * types, ranges, unknown fields. null and undefined mean that a field is absent.
 */

import { PinnedPrompt } from "../api/pinned.ts";
import { InlayError } from "../errors.ts";
import type { GenerateRequest } from "../generate/request.ts";
import type { SamplingParams } from "../generate/sampling-params.ts";
import { assertStopStrings } from "../generate/stop-strings.ts";
import {
  checkArray,
  checkBoolean,
  checkJson,
  checkKnownNames,
  checkNumber,
  checkObject,
  checkOneOf,
  checkString,
  invalidOption,
  notSupported,
} from "../option-checks.ts";
import { SAMPLING_BOUNDS, SAMPLING_DEFAULTS } from "../options.ts";
import type { Json } from "../tokenizer/chat-template.ts";
import { resolveMessages } from "./messages.ts";

const SAMPLING_FIELDS = [
  "max_tokens",
  "max_completion_tokens",
  "temperature",
  "top_p",
  "top_k",
  "min_p",
  "repetition_penalty",
  "frequency_penalty",
  "presence_penalty",
  "repeat_last_n",
  "seed",
  "stop",
  "logit_bias",
  "logprobs",
  "top_logprobs",
] as const;

const CHAT_FIELDS = [
  "messages",
  "model",
  "stream",
  "stream_options",
  "n",
  "response_format",
  "tools",
  "tool_choice",
  "chat_template_kwargs",
  "modalities",
  "pinned",
] as const;

/** Fields of OpenAI's API that do not change an answer given on one's own device: accepted, whatever their value. */
const IGNORED_FIELDS = [
  "metadata",
  "parallel_tool_calls",
  "prediction",
  "prompt_cache_key",
  "prompt_cache_retention",
  "safety_identifier",
  "service_tier",
  "store",
  "user",
] as const;

/** Fields that would change the answer and that this version does not have; with what to do instead. */
const UNSUPPORTED_FIELDS: ReadonlyMap<string, string> = new Map([
  ["audio", "ask for text"],
  ["functions", "use tools"],
  ["function_call", "use tools and tool_choice"],
  ["reasoning_effort", "use chat_template_kwargs if the model's template has such a switch"],
  ["verbosity", "say it in a message"],
  ["web_search_options", "put what the model should know into messages"],
]);

type Fields = Readonly<Record<string, unknown>>;

/** A chat request, complete. */
export interface ResolvedChatRequest {
  /** The name that the caller gave the model; undefined = the loaded model's own. */
  readonly model: string | undefined;
  readonly generate: GenerateRequest;
  readonly stream: boolean;
  readonly includeUsage: boolean;
}

/** Checks a `ChatCompletionRequest`. Throws `invalid-option` naming the field, its value and what is allowed. */
export function resolveChatRequest(request: unknown): ResolvedChatRequest {
  const fields = withoutAbsent(checkObject("request", request));
  for (const [name, instead] of UNSUPPORTED_FIELDS)
    if (name in fields) throw notSupported(name, fields[name], instead);
  checkKnownNames("", fields, [...CHAT_FIELDS, ...SAMPLING_FIELDS, ...IGNORED_FIELDS]);

  if ("n" in fields && fields.n !== 1) throw notSupported("n", fields.n, "ask for one answer at a time");
  if ("modalities" in fields) checkModalities(fields.modalities);
  if ("response_format" in fields) checkResponseFormat(fields.response_format);
  const stream = "stream" in fields && checkBoolean("stream", fields.stream);
  const prompt = {
    kind: "chat",
    messages: resolveMessages(fields.messages),
    options: {
      addGenerationPrompt: true,
      tools: resolveTools(fields),
      variables: "chat_template_kwargs" in fields ? resolveVariables(fields.chat_template_kwargs) : {},
    },
    ...resolvePinned(fields),
  } as const;
  return {
    model: "model" in fields ? checkString("model", fields.model) : undefined,
    generate: { prompt, ...resolveSampling(fields) },
    stream,
    includeUsage: "stream_options" in fields && resolveIncludeUsage(fields.stream_options, stream),
  };
}

/** Checks a `CompletionRequest`. Throws `invalid-option` naming the field, its value and what is allowed. */
export function resolveCompletionRequest(request: unknown): GenerateRequest {
  const fields = withoutAbsent(checkObject("request", request));
  checkKnownNames("", fields, ["prompt", "ignore_eos", "pinned", ...SAMPLING_FIELDS, ...IGNORED_FIELDS]);
  const { prompt } = fields;
  const ignoreEnd = "ignore_eos" in fields && checkBoolean("ignore_eos", fields.ignore_eos);
  const sampling = { ...resolveSampling(fields), ...(ignoreEnd && { ignoreEnd }) };
  if (typeof prompt === "string")
    return {
      prompt: { kind: "text", text: prompt, parseSpecial: true, ...resolvePinned(fields) },
      ...sampling,
    };
  const isIds =
    prompt instanceof Uint32Array ||
    (Array.isArray(prompt) && prompt.every((id) => Number.isInteger(id) && id >= 0 && id < 2 ** 32));
  if (!isIds) throw invalidOption("prompt", prompt, "a string or an array of token ids");
  return { prompt: { kind: "ids", ids: Uint32Array.from(prompt), ...resolvePinned(fields) }, ...sampling };
}

/** The engine's name of an open pinned prompt. */
function resolvePinned({ pinned }: Fields): { pinned?: string } {
  if (pinned === undefined) return {};
  if (pinned instanceof PinnedPrompt) return { pinned: pinned.key };
  throw invalidOption("pinned", pinned, "a pinned prompt from model.pin or model.pinned.open");
}

function withoutAbsent(fields: Fields): Fields {
  return Object.fromEntries(
    Object.entries(fields).filter(([, value]) => value !== undefined && value !== null),
  );
}

function resolveSampling(fields: Fields): Omit<GenerateRequest, "prompt"> {
  const number = (field: string, option: keyof typeof SAMPLING_DEFAULTS) =>
    field in fields ? checkNumber(field, fields[field], SAMPLING_BOUNDS[option]) : SAMPLING_DEFAULTS[option];
  const sampling: SamplingParams = {
    temperature: number("temperature", "temperature"),
    topK: number("top_k", "topK"),
    topP: number("top_p", "topP"),
    minP: number("min_p", "minP"),
    repetitionPenalty: number("repetition_penalty", "repetitionPenalty"),
    frequencyPenalty: number("frequency_penalty", "frequencyPenalty"),
    presencePenalty: number("presence_penalty", "presencePenalty"),
    repeatLastN: number("repeat_last_n", "repeatLastN"),
    logitBias: "logit_bias" in fields ? resolveLogitBias(fields.logit_bias) : new Map(),
    seed: "seed" in fields ? checkNumber("seed", fields.seed, SAMPLING_BOUNDS.seed) : undefined,
  };
  return {
    sampling,
    stop: "stop" in fields ? resolveStop(fields.stop) : [],
    maxTokens: resolveMaxTokens(fields),
    topLogprobs: resolveTopLogprobs(fields),
  };
}

function resolveLogitBias(value: unknown): Map<number, number> {
  const biases = new Map<number, number>();
  for (const [id, bias] of Object.entries(checkObject("logit_bias", value))) {
    if (!/^\d{1,10}$/.test(id)) throw invalidOption("a key of logit_bias", id, "a token id");
    biases.set(Number(id), checkNumber(`logit_bias[${id}]`, bias, SAMPLING_BOUNDS.logitBias));
  }
  return biases;
}

function resolveStop(value: unknown): string[] {
  const stops = typeof value === "string" ? [value] : value;
  if (!Array.isArray(stops)) throw invalidOption("stop", value, "a string or an array of strings");
  const strings = stops.map((stop: unknown, i) => checkString(`stop[${i}]`, stop));
  assertStopStrings(strings);
  return strings;
}

function resolveMaxTokens(fields: Fields): number | undefined {
  const names = ["max_tokens", "max_completion_tokens"] as const;
  const [old, current] = names.map((name) =>
    name in fields ? checkNumber(name, fields[name], SAMPLING_BOUNDS.maxTokens) : undefined,
  );
  if (old !== undefined && current !== undefined && old !== current)
    throw new InlayError(
      "invalid-option",
      `max_tokens is ${old} and max_completion_tokens is ${current}; they mean the same, give one`,
      { option: "max_tokens", value: old, max_completion_tokens: current },
    );
  return current ?? old;
}

function resolveTopLogprobs(fields: Fields): number | undefined {
  const wanted = "logprobs" in fields && checkBoolean("logprobs", fields.logprobs);
  if (!("top_logprobs" in fields)) return wanted ? 0 : undefined;
  const n = checkNumber("top_logprobs", fields.top_logprobs, SAMPLING_BOUNDS.topLogprobs);
  if (!wanted) throw invalidOption("logprobs", fields.logprobs, "true when top_logprobs is given");
  return n;
}

function resolveVariables(value: unknown): Readonly<Record<string, Json>> {
  checkJson("chat_template_kwargs", checkObject("chat_template_kwargs", value));
  return value as Record<string, Json>;
}

function resolveTools(fields: Fields): Json[] {
  const tools = "tools" in fields ? checkArray("tools", fields.tools) : [];
  tools.forEach((tool, i) => {
    checkTool(`tools[${i}]`, tool);
  });
  const choice = fields.tool_choice ?? "auto";
  if (choice === "required" || typeof choice === "object")
    throw notSupported("tool_choice", choice, 'it has "auto" and "none"');
  return checkOneOf("tool_choice", choice, ["auto", "none"]) === "none" ? [] : (tools as Json[]);
}

function checkTool(path: string, value: unknown): void {
  const tool = checkObject(path, value);
  checkKnownNames(`${path}.`, tool, ["type", "function"]);
  checkOneOf(`${path}.type`, tool.type, ["function"]);
  const described = checkObject(`${path}.function`, tool.function);
  checkKnownNames(`${path}.function.`, described, ["name", "description", "parameters", "strict"]);
  checkString(`${path}.function.name`, described.name);
  if (described.description !== undefined) checkString(`${path}.function.description`, described.description);
  if (described.parameters !== undefined)
    checkJson(
      `${path}.function.parameters`,
      checkObject(`${path}.function.parameters`, described.parameters),
    );
}

function resolveIncludeUsage(value: unknown, stream: boolean): boolean {
  const options = checkObject("stream_options", value);
  if (!stream) throw invalidOption("stream_options", value, "absent unless stream is true");
  checkKnownNames("stream_options.", options, ["include_usage", "include_obfuscation"]);
  return (
    options.include_usage !== undefined && checkBoolean("stream_options.include_usage", options.include_usage)
  );
}

function checkModalities(value: unknown): void {
  for (const modality of checkArray("modalities", value))
    if (modality !== "text") throw notSupported("modalities", modality, 'it has "text"');
}

function checkResponseFormat(value: unknown): void {
  const { type } = checkObject("response_format", value);
  if (type === "json_object" || type === "json_schema")
    throw notSupported("response_format.type", type, 'it has "text"; ask for JSON in a message');
  checkOneOf("response_format.type", type, ["text"]);
}
