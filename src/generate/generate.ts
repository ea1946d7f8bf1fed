/**
 * One answer: prefill what the cache does not hold yet, then decode token by token until something ends it.
 */

import type { AttentionObserver } from "../attention/observer.ts";
import { AttentionTally } from "../attention/tally.ts";
import type { AttentionPlans } from "../engine/attention-plans.ts";
import { type Sequence, type SequenceStore, withRoom } from "../engine/sequences.ts";
import type { Checkpoint } from "../engine/yielding.ts";
import { InlayError } from "../errors.ts";
import { callEnd } from "../model/call-end.ts";
import { forward, type Transformer } from "../model/forward.ts";
import type { AttentionPlan } from "../model/select-pages.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import type { AttentionUsage, FinishReason, GenerateEvent, TokenLogprobs } from "./events.ts";
import type { SampledLogprobs } from "./logprobs.ts";
import { Sampler } from "./sampler.ts";
import type { SamplingParams } from "./sampling-params.ts";
import { type TextPiece, TextStream } from "./text-stream.ts";

/** What generation runs on. */
export interface GenerateContext {
  /** Replaced when its device was lost. */
  model: Transformer;
  readonly tokenizer: Tokenizer;
  readonly sequences: SequenceStore;
  /** How the prompt is attended to, and how decoding is. */
  readonly plan: AttentionPlans;
  /** Positions that prompt and answer may take. */
  readonly contextLength: number;
  /** Prompt tokens per forward call. */
  readonly prefillChunk: number;
  readonly device: "wasm" | "hybrid" | "webgpu";
  /** The model on a new device, without what was cached on the lost one. Rejects with `device-lost` if that cannot be. */
  recover(): Promise<Transformer>;
}

/** One answer to generate, with the prompt already in tokens. */
export interface GenerateJob {
  readonly promptIds: Uint32Array;
  readonly sampling: SamplingParams;
  readonly stop: readonly string[];
  readonly maxTokens: number | undefined;
  readonly topLogprobs: number | undefined;
  readonly ignoreEnd: boolean;
  /** When the caller asked, for time to first token; milliseconds of performance.now(). */
  readonly startedAt: number;
}

/**
 * The events of one answer. Leaving the loop early keeps what was computed for later requests.
 * Throws `context-full` when the prompt leaves no room, and the checkpoint's abort reason.
 */
export async function* generate(
  context: GenerateContext,
  job: GenerateJob,
  checkpoint: Checkpoint,
): AsyncGenerator<GenerateEvent, void> {
  const { promptIds } = job;
  checkFits(promptIds.length, context.contextLength);
  const sequence = context.sequences.borrow(promptIds);
  try {
    yield* answer(context, job, sequence, checkpoint);
  } finally {
    context.sequences.release(sequence);
  }
}

/** Runs a prompt into the cache and leaves it there. Yields its progress. Throws as `generate` does. */
export async function* prefillOnly(
  context: GenerateContext,
  promptIds: Uint32Array,
  checkpoint: Checkpoint,
): AsyncGenerator<GenerateEvent, void> {
  checkFits(promptIds.length, context.contextLength);
  const sequence = context.sequences.borrow(promptIds);
  try {
    yield* prefill(context, sequence, promptIds, context.plan.prefill, checkpoint);
  } finally {
    context.sequences.release(sequence);
  }
}

/**
 * Runs what `sequence` lacks of a prompt into it; it stays the caller's. Yields its progress. `observer` is shown its
 * queries and keys. Throws as `generate` does.
 */
export async function* prefillInto(
  context: GenerateContext,
  sequence: Sequence,
  promptIds: Uint32Array,
  checkpoint: Checkpoint,
  observer?: AttentionObserver,
): AsyncGenerator<GenerateEvent, void> {
  checkFits(promptIds.length, context.contextLength);
  yield* prefill(context, sequence, promptIds, { ...context.plan.prefill, observer }, checkpoint);
}

async function* answer(
  context: GenerateContext,
  job: GenerateJob,
  sequence: Sequence,
  checkpoint: Checkpoint,
): AsyncGenerator<GenerateEvent, void> {
  const { tokenizer } = context;
  const { promptIds } = job;
  const sampler = new Sampler({
    vocabSize: context.model.config.vocabSize,
    params: job.sampling,
    promptIds,
    topLogprobs: job.topLogprobs,
  });
  const text = new TextStream<SampledLogprobs | undefined>(job.stop);
  const cachedTokens = sequence.ids.length;
  const prefillStart = performance.now();
  const plan = countedPlan(context.plan, promptIds.length);
  const logits = yield* prefill(context, sequence, promptIds, plan.prefill, checkpoint);
  const prefillEnd = performance.now();

  const room = context.contextLength - promptIds.length;
  const limit = Math.min(job.maxTokens ?? room, room);
  let completionTokens = 0;
  let firstTokenAt: number | undefined;
  let finishReason: FinishReason = "length";
  let endTokenId: number | undefined;
  for (let next = logits; ; ) {
    const sampled = sampler.sample(next);
    firstTokenAt ??= performance.now();
    completionTokens++;
    if (!job.ignoreEnd && tokenizer.isEndOfGeneration(sampled.id)) {
      finishReason = "stop";
      endTokenId = sampled.id;
      break;
    }
    const piece = text.push({
      id: sampled.id,
      bytes: tokenizer.tokenBytes(sampled.id),
      attached: sampled.logprobs,
    });
    if (piece) yield textEvent(tokenizer, piece);
    if (text.stop !== undefined) {
      finishReason = "stop";
      break;
    }
    if (completionTokens >= limit) break;
    next = await step(context, sequence, Uint32Array.of(sampled.id), plan.decode, checkpoint);
  }
  const rest = text.end();
  if (rest) yield textEvent(tokenizer, rest);

  const end = performance.now();
  yield {
    kind: "end",
    finishReason,
    endTokenId,
    stop: text.stop,
    usage: {
      promptTokens: promptIds.length,
      cachedTokens,
      completionTokens,
      prefillSeconds: (prefillEnd - prefillStart) / 1000,
      decodeSeconds: (end - (firstTokenAt ?? end)) / 1000,
      timeToFirstTokenSeconds: firstTokenAt === undefined ? undefined : (firstTokenAt - job.startedAt) / 1000,
      seed: sampler.seed,
      device: context.device,
      attention: { prefill: readOf(plan.prefill), decode: readOf(plan.decode) },
    },
  };
}

/** The last queries of a prompt, which read everything: the question is there (algorithms.md A.5). */
const DENSE_PROMPT_END = 64;

/** The plan of one answer: its prompt ends at `nPrompt`, and what it reads is counted. */
function countedPlan({ prefill, decode }: AttentionPlans, nPrompt: number) {
  return {
    prefill: { ...prefill, denseFrom: nPrompt - DENSE_PROMPT_END, tally: new AttentionTally() },
    decode: { ...decode, tally: new AttentionTally() },
  };
}

/** What a policy did: one that read everything was dense. */
function readOf({ policy, tally }: ReturnType<typeof countedPlan>["prefill" | "decode"]): AttentionUsage {
  const { fraction, missing } = tally;
  return {
    policy: fraction === 1 ? "dense" : (tally.policy ?? policy.name),
    keysRead: fraction,
    missingMass: missing,
  };
}

/** Runs the part of the prompt that is not cached, chunk by chunk; returns the last token's logits. */
async function* prefill(
  context: GenerateContext,
  sequence: Sequence,
  promptIds: Uint32Array,
  plan: AttentionPlan,
  checkpoint: Checkpoint,
): AsyncGenerator<GenerateEvent, Float32Array> {
  const total = promptIds.length;
  yield { kind: "prefill", loaded: sequence.ids.length, total };
  for (;;) {
    const from = sequence.ids.length;
    const to = callEnd(context.model.attention, from, context.prefillChunk, total);
    const ids = promptIds.subarray(from, to);
    const logits = await step(context, sequence, ids, plan, checkpoint, to === total);
    yield { kind: "prefill", loaded: to, total };
    if (to === total) return logits;
  }
}

/**
 * One forward call; the sequence grows by `ids`. Returns the last token's logits, empty if not wanted. A GPU that is
 * lost meanwhile is made anew, the sequence is computed again, and the call repeated.
 */
async function step(
  context: GenerateContext,
  sequence: Sequence,
  ids: Uint32Array,
  plan: AttentionPlan,
  checkpoint: Checkpoint,
  wantsLogits = true,
): Promise<Float32Array> {
  try {
    return await call(context, sequence, ids, plan, checkpoint, wantsLogits);
  } catch (error) {
    if (!(error instanceof InlayError && error.code === "device-lost")) throw error;
    context.model = await context.recover();
  }
  const before = Uint32Array.from(sequence.ids);
  sequence.restart(context.sequences.createCache());
  for (let from = 0; from < before.length; ) {
    const to = callEnd(context.model.attention, from, context.prefillChunk, before.length);
    await call(context, sequence, before.subarray(from, to), context.plan.prefill, checkpoint, false);
    from = to;
  }
  return call(context, sequence, ids, plan, checkpoint, wantsLogits);
}

async function call(
  context: GenerateContext,
  sequence: Sequence,
  ids: Uint32Array,
  plan: AttentionPlan,
  checkpoint: Checkpoint,
  wantsLogits: boolean,
): Promise<Float32Array> {
  const wanted = wantsLogits ? "last" : "none";
  const logits = await withRoom(context.sequences, () =>
    forward(context.model, sequence.cache, ids, plan, wanted, checkpoint),
  );
  sequence.extend(ids);
  return logits ?? new Float32Array();
}

/** Throws `invalid-option` for an empty prompt, `context-full` for one that leaves no room for an answer. */
export function checkFits(nPrompt: number, contextLength: number): void {
  if (nPrompt === 0)
    throw new InlayError(
      "invalid-option",
      "the prompt is empty; there must be at least one token to continue",
    );
  if (nPrompt < contextLength) return;
  throw new InlayError(
    "context-full",
    `the prompt has ${nPrompt} tokens, and the context has ${contextLength} positions for prompt and answer; ` +
      "shorten the prompt or load the model with a larger contextLength",
    { promptTokens: nPrompt, contextLength },
  );
}

function textEvent(tokenizer: Tokenizer, piece: TextPiece<SampledLogprobs | undefined>): GenerateEvent {
  const { text, tokens } = piece;
  const logprobs = tokens.flatMap(({ id, bytes, attached }): TokenLogprobs[] => {
    if (!attached) return [];
    const top = attached.top.map((t) => ({ ...t, bytes: tokenizer.tokenBytes(t.id) }));
    return [{ id, logprob: attached.logprob, bytes, top }];
  });
  return {
    kind: "text",
    text,
    tokenIds: tokens.map(({ id }) => id),
    logprobs: logprobs.length > 0 ? logprobs : undefined,
  };
}
