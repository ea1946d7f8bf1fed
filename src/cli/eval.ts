/** `inlay eval`: measures a model. */

import { UsageError } from "./arguments.ts";
import { EVAL_QUALITY_USAGE, evalQuality } from "./eval-quality.ts";

export const EVAL_USAGE = EVAL_QUALITY_USAGE;

export async function evaluate(args: readonly string[], signal: AbortSignal): Promise<void> {
  if (args.some((arg) => /^--perplexity(=|$)/.test(arg))) return evalQuality(args, signal);
  throw new UsageError("--perplexity FILE is missing; it is the one evaluation there is");
}
