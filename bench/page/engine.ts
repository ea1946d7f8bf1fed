/** What the benchmarks need of an engine, Inlay's or a rival's, in the page. */

import type { LoadOptions } from "../../src/options.ts";
import type { BenchPrompt } from "../prompts.ts";

/** How an engine is started. */
export interface EngineOptions {
  /** Tokens of context. */
  readonly contextLength: number;
  readonly threads: number;
  /** Inlay only. */
  readonly attention?: LoadOptions["attention"];
  readonly kvCache?: LoadOptions["kvCache"];
}

/** An engine with a model in it. */
export interface BenchEngine {
  /** Runs a prompt of which nothing is cached; seconds. */
  prefill(prompt: BenchPrompt): Promise<number>;
  /** Makes `prompt` the context, reusing what is cached, then decodes `nTokens` one by one; seconds of the decoding. */
  decode(prompt: BenchPrompt, nTokens: number): Promise<number>;
  /** What the engine says about itself: build, threads, KV format. */
  readonly about: string;
  dispose(): Promise<void>;
}

/** Tokens at the beginning that both have. */
export function commonPrefix(a: readonly number[], b: readonly number[]): number {
  const n = Math.min(a.length, b.length);
  for (let i = 0; i < n; i++) if (a[i] !== b[i]) return i;
  return n;
}
