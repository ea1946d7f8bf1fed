/** How well a model finds facts in long texts: asks the cases of needle-cases.ts and counts the answers that are right. */

import type { Model } from "../api/model.ts";
import type { PinnedPrompt, PinOptions } from "../api/pinned.ts";
import type { ChatCompletion } from "../chat/types.ts";
import { InlayError } from "../errors.ts";
import { makeNeedleCase, NEEDLE_TASKS, type NeedleCase, type NeedleTask } from "./needle-cases.ts";

/** Which cases are asked. The same options give the same cases. */
export interface NeedleOptions {
  /** @default all of them */
  tasks?: readonly NeedleTask[] | undefined;
  /** Prompt lengths in tokens, each at least 256. @default 512, 1024, … up to the model's context */
  lengths?: readonly number[] | undefined;
  /** 0 <= depth <= 1. @default 0, 0.25, 0.5, 0.75, 1 */
  depths?: readonly number[] | undefined;
  /** Cases of every task, length and depth. @default 4 */
  count?: number | undefined;
  /** @default 2026 */
  seed?: number | undefined;
  /** Each document is pinned in this way, as the system message, and the question asked of it. @default not pinned */
  pinned?: NeedlePinning | undefined;
  signal?: AbortSignal | undefined;
  /** Called after every answer. */
  onProgress?: ((progress: { done: number; total: number; right: number }) => void) | undefined;
}

/** How documents are pinned. */
export type NeedlePinning = Pick<PinOptions, "bits" | "sparsity">;

/** One answer. */
export interface NeedleAnswer {
  readonly task: NeedleTask;
  readonly length: number;
  readonly depth: number;
  readonly index: number;
  readonly promptTokens: number;
  readonly expected: string;
  readonly answer: string;
  /** The answer is the expected text, but for white space around it. */
  readonly isRight: boolean;
}

/** Right answers of all. */
export interface Score {
  readonly right: number;
  readonly total: number;
  /** right / total. */
  readonly accuracy: number;
}

export interface NeedleReport {
  readonly seed: number;
  readonly overall: Score;
  readonly byTask: Readonly<Record<string, Score>>;
  /** task → length → score */
  readonly byLength: Readonly<Record<string, Readonly<Record<string, Score>>>>;
  /** task → length → depth → score */
  readonly byDepth: Readonly<Record<string, Readonly<Record<string, Readonly<Record<string, Score>>>>>>;
  readonly answers: readonly NeedleAnswer[];
}

const DEFAULT_DEPTHS = [0, 0.25, 0.5, 0.75, 1];
const DEFAULT_COUNT = 4;
const DEFAULT_SEED = 2026;
const SHORTEST = 256;

/** More than any right answer has. */
const MAX_ANSWER_TOKENS = 64;

/**
 * Asks a chat model with greedy decoding and scores by exact match. Runs wherever the model runs.
 * Throws `invalid-option` for a length outside the context, and `signal.reason`.
 */
export async function evaluateNeedles(model: Model, options: NeedleOptions = {}): Promise<NeedleReport> {
  const { seed = DEFAULT_SEED, pinned, signal, onProgress } = options;
  const ask = pinned
    ? (needle: NeedleCase) => askPinned(model, needle, pinned, signal)
    : (needle: NeedleCase) => askWhole(model, needle, signal);
  const specs = resolveSpecs(options, model.config.contextLength, seed);
  const answers: NeedleAnswer[] = [];
  let right = 0;
  for (const spec of specs) {
    const answer = await ask(makeNeedleCase(spec));
    answers.push(answer);
    if (answer.isRight) right++;
    onProgress?.({ done: answers.length, total: specs.length, right });
  }
  return report(seed, answers);
}

function resolveSpecs(options: NeedleOptions, contextLength: number, seed: number) {
  const tasks = options.tasks ?? (Object.keys(NEEDLE_TASKS) as NeedleTask[]);
  const lengths = options.lengths ?? defaultLengths(contextLength);
  const depths = options.depths ?? DEFAULT_DEPTHS;
  const count = options.count ?? DEFAULT_COUNT;
  const check = (isGood: boolean, message: string, details: Record<string, unknown>) => {
    if (!isGood) throw new InlayError("invalid-option", message, details);
  };
  for (const task of tasks)
    check(task in NEEDLE_TASKS, `unknown task ${task}; there are ${Object.keys(NEEDLE_TASKS).join(", ")}`, {
      task,
    });
  for (const length of lengths)
    check(
      Number.isInteger(length) && length >= SHORTEST && length <= contextLength,
      `length is ${length}; it must be a whole number from ${SHORTEST} to the context's ${contextLength} tokens`,
      { length, contextLength },
    );
  for (const depth of depths)
    check(depth >= 0 && depth <= 1, `depth is ${depth}; it must be from 0 to 1`, { depth });
  check(Number.isInteger(count) && count >= 1, `count is ${count}; it must be a whole number from 1`, {
    count,
  });
  check(Number.isSafeInteger(seed) && seed >= 0, `seed is ${seed}; it must be a whole number from 0`, {
    seed,
  });
  const indices = Array.from({ length: count }, (_, index) => index);
  return tasks.flatMap((task) =>
    lengths.flatMap((length) =>
      depths.flatMap((depth) => indices.map((index) => ({ task, length, depth, index, seed }))),
    ),
  );
}

/** 512, 1024, … up to the context; what does not fit at all is the context itself. */
function defaultLengths(contextLength: number): number[] {
  const lengths: number[] = [];
  for (let length = 512; length <= contextLength; length *= 2) lengths.push(length);
  return lengths.length > 0 ? lengths : [contextLength];
}

async function askWhole(
  model: Model,
  needle: NeedleCase,
  signal: AbortSignal | undefined,
): Promise<NeedleAnswer> {
  return answered(needle, await complete(model, needlePrompt(needle), undefined, signal));
}

async function askPinned(
  model: Model,
  needle: NeedleCase,
  options: NeedlePinning,
  signal: AbortSignal | undefined,
): Promise<NeedleAnswer> {
  const id = "inlay-needle";
  const prompt = await model.pin([{ role: "system", content: needle.document }], { ...options, id, signal });
  try {
    return answered(needle, await complete(model, needle.question, prompt, signal));
  } finally {
    await prompt.close();
    await model.pinned.delete(id);
  }
}

function complete(
  model: Model,
  content: string,
  pinned: PinnedPrompt | undefined,
  signal: AbortSignal | undefined,
): Promise<ChatCompletion> {
  const messages = [{ role: "user", content }] as const;
  return model.chat.completions.create(
    { messages, pinned, temperature: 0, max_tokens: MAX_ANSWER_TOKENS },
    { signal },
  );
}

function answered(
  { task, length, depth, index, answer: expected }: NeedleCase,
  { choices, usage }: ChatCompletion,
): NeedleAnswer {
  const answer = (choices[0]!.message.content ?? "").trim();
  const promptTokens = usage.prompt_tokens;
  return { task, length, depth, index, promptTokens, expected, answer, isRight: answer === expected };
}

/** The user's message: the document, an empty line, the question. */
export function needlePrompt({ document, question }: Pick<NeedleCase, "document" | "question">): string {
  return `${document}\n\n${question}`;
}

function report(seed: number, answers: readonly NeedleAnswer[]): NeedleReport {
  const byTask = groupBy(answers, ({ task }) => task);
  const byLength = mapValues(byTask, (list) => groupBy(list, ({ length }) => String(length)));
  const byDepth = mapValues(byLength, (lengths) =>
    mapValues(lengths, (list) => groupBy(list, ({ depth }) => String(depth))),
  );
  return {
    seed,
    overall: score(answers),
    byTask: mapValues(byTask, score),
    byLength: mapValues(byLength, (lengths) => mapValues(lengths, score)),
    byDepth: mapValues(byDepth, (lengths) => mapValues(lengths, (depths) => mapValues(depths, score))),
    answers,
  };
}

function score(answers: readonly NeedleAnswer[]): Score {
  const right = answers.filter(({ isRight }) => isRight).length;
  return { right, total: answers.length, accuracy: right / answers.length };
}

function groupBy<T>(list: readonly T[], key: (item: T) => string): Record<string, T[]> {
  const groups: Record<string, T[]> = {};
  for (const item of list) {
    groups[key(item)] ??= [];
    groups[key(item)]!.push(item);
  }
  return groups;
}

function mapValues<T, U>(groups: Readonly<Record<string, T>>, map: (value: T) => U): Record<string, U> {
  return Object.fromEntries(Object.entries(groups).map(([key, value]) => [key, map(value)]));
}
