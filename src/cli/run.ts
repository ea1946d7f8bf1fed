/** `inlay run`: one answer, as text or as one JSON object. */

import type { Model } from "../api/model.ts";
import { resolveChatRequest, resolveCompletionRequest } from "../chat/request.ts";
import { completionUsage } from "../chat/response.ts";
import type { SamplingFields } from "../chat/types.ts";
import type { GenerateEvent } from "../generate/events.ts";
import type { GenerateRequest } from "../generate/request.ts";
import { readArguments, UsageError } from "./arguments.ts";
import { loadArgument, MODEL_OPTIONS } from "./model-argument.ts";
import { openPinned } from "./pin.ts";
import { ProgressBar } from "./progress-bar.ts";

export const RUN_USAGE =
  "inlay run MODEL --prompt TEXT [--raw | --chat] [--system TEXT] [--pinned FILE.inlaykv] [--max-tokens N]\n" +
  "          [--temperature T] [--top-k K] [--top-p P] [--min-p P] [--seed S] [--stop TEXT] [--device auto|wasm|hybrid|webgpu]\n" +
  "          [--threads N] [--context N] [--attention POLICY] [--decode-attention POLICY] [--budget B]\n" +
  "          [--head-budgets FILE] [--boundaries FILE] [--kv FORMAT] [--json]";

const OPTIONS = {
  ...MODEL_OPTIONS,
  prompt: "string",
  system: "string",
  pinned: "string",
  raw: "boolean",
  chat: "boolean",
  "max-tokens": "integer",
  temperature: "number",
  "top-k": "integer",
  "top-p": "number",
  "min-p": "number",
  seed: "integer",
  stop: "string",
  json: "boolean",
} as const;

/** What `run --json` prints. */
interface RunResult {
  text: string;
  promptTokenIds: number[];
  /** Sampled tokens, the end token included. */
  tokenIds: number[];
  finishReason: string;
  usage: unknown;
  timings: unknown;
  device: unknown;
}

export async function run(args: readonly string[], signal: AbortSignal): Promise<void> {
  const { options, positionals } = readArguments(args, OPTIONS, ["MODEL"]);
  const { prompt } = options;
  if (prompt === undefined) throw new UsageError("--prompt is missing");
  if (options.raw && options.chat) throw new UsageError("--raw and --chat exclude each other");
  if (options.raw && options.system !== undefined) throw new UsageError("--system needs a chat, not --raw");

  const loadStart = performance.now();
  await using model = await loadArgument(positionals[0]!, options, signal);
  const loadSeconds = (performance.now() - loadStart) / 1000;
  const restoreStart = performance.now();
  const pinned = await openPinned(model, options.pinned, signal);
  const restoreSeconds = (performance.now() - restoreStart) / 1000;
  const sampling: SamplingFields = {
    max_tokens: options["max-tokens"],
    temperature: options.temperature,
    top_k: options["top-k"],
    top_p: options["top-p"],
    min_p: options["min-p"],
    seed: options.seed,
    stop: options.stop,
  };
  const isChat = options.chat ?? (!options.raw && !pinned?.info.raw && model.config.hasChatTemplate);
  const request = isChat
    ? resolveChatRequest({ messages: chatMessages(prompt, options.system), pinned, ...sampling }).generate
    : resolveCompletionRequest({ prompt, pinned, ...sampling });

  const promptIds = await model.promptIds(request.prompt);
  const result = await answer(
    model,
    { ...request, prompt: { kind: "ids", ids: promptIds } },
    signal,
    options.json,
  );
  if (!options.json) {
    process.stdout.write("\n");
    return;
  }
  const { usage } = result.end;
  const printed: RunResult = {
    text: result.text,
    promptTokenIds: Array.from(promptIds),
    tokenIds: result.tokenIds,
    finishReason: result.end.finishReason,
    usage: completionUsage(usage),
    timings: {
      load_s: loadSeconds,
      ...(pinned && { restore_s: restoreSeconds }),
      prefill_s: usage.prefillSeconds,
      decode_s: usage.decodeSeconds,
      time_to_first_token_s: usage.timeToFirstTokenSeconds,
    },
    device: model.config.device,
  };
  process.stdout.write(`${JSON.stringify(printed)}\n`);
}

function chatMessages(prompt: string, system: string | undefined) {
  const user = { role: "user", content: prompt } as const;
  return system === undefined ? [user] : [{ role: "system", content: system } as const, user];
}

type EndEvent = Extract<GenerateEvent, { kind: "end" }>;

/** Generates; without `--json` the text goes to standard output as it comes. */
async function answer(
  model: Model,
  request: GenerateRequest,
  signal: AbortSignal,
  isSilent = false,
): Promise<{ text: string; tokenIds: number[]; end: EndEvent }> {
  const bar = new ProgressBar();
  const tokenIds: number[] = [];
  let text = "";
  for await (const event of model.generate(request, { signal })) {
    switch (event.kind) {
      case "prefill":
        bar.update("prompt", event.loaded / event.total);
        break;
      case "text":
        bar.clear();
        text += event.text;
        tokenIds.push(...event.tokenIds);
        if (!isSilent) process.stdout.write(event.text);
        break;
      case "end":
        bar.clear();
        if (event.endTokenId !== undefined) tokenIds.push(event.endTokenId);
        return { text, tokenIds, end: event };
    }
  }
  throw new Error("internal: the answer had no end");
}
