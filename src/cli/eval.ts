/** `inlay eval`: measures a model. */

import { UsageError } from "./arguments.ts";
import { EVAL_NEEDLE_USAGE, evalNeedle } from "./eval-needle.ts";
import { EVAL_QUALITY_USAGE, evalQuality } from "./eval-quality.ts";

export const EVAL_USAGE = `${EVAL_NEEDLE_USAGE}\n  ${EVAL_QUALITY_USAGE}`;

export async function evaluate(args: readonly string[], signal: AbortSignal): Promise<void> {
  if (args.some((arg) => /^--perplexity(=|$)/.test(arg))) return evalQuality(args, signal);
  if (args.includes("--needle")) return evalNeedle(args, signal);
  throw new UsageError("--needle or --perplexity FILE is missing; it says what is evaluated");
}
