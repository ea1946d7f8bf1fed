/**
 * Quantized pages: what they are made of, and which pages become one. The codec itself is wasm/kv/page_codec.h.
 *
 * A page is quantized once, when it leaves the window (SKVQ, Duanmu et al. 2024, arXiv:2405.06219): the first page, which
 * holds the attention sinks, and the last `WINDOW_TOKENS` tokens stay as they were written. A forward call reads its own
 * tokens unquantized; pages change when it has ended.
 */

import { type CacheFormat, PAGE_TOKENS, pageBytes } from "./page.ts";

/** How old pages are stored. */
export type QuantizedFormat = "q8" | "q4" | "q2";

/** Pages at the start of a sequence that are never quantized. */
export const SINK_PAGES = 1;

/** Tokens at the end of a sequence that are not quantized. */
export const WINDOW_TOKENS = 128;

/** Bits of a code. */
export const CODE_BITS: Readonly<Record<QuantizedFormat, number>> = { q8: 8, q4: 4, q2: 2 };

/** Whether a cache format quantizes old pages. */
export function isQuantized(format: string): format is QuantizedFormat {
  return Object.hasOwn(CODE_BITS, format);
}

/**
 * The least part of a range that is kept when both of its ends are cut off, so that far elements are clipped and the others
 * are told apart; the best down to it is searched. 1 = no clipping.
 */
export const CLIP: Readonly<Record<QuantizedFormat, number>> = { q8: 1, q4: 0.9, q2: 0.7 };

/** Number of leading pages that are sinks or have left the window when `nTokens` tokens are cached. */
export function settledPages(nTokens: number): number {
  return Math.max(SINK_PAGES, Math.floor((nTokens - WINDOW_TOKENS) / PAGE_TOKENS));
}

/** Channels of V that share a token's range: the largest divisor of headDim that is a multiple of 8 and at most 64. */
export function groupChannels(headDim: number): number {
  for (let g = 64; g > 8; g -= 8) if (headDim % g === 0) return g;
  return 8;
}

/**
 * Ranges of K, one a channel, and of V, one for each token and group of channels, in a quantized page of one KV head.
 */
export function rangeCounts(headDim: number): { readonly k: number; readonly v: number } {
  return { k: headDim, v: (headDim / groupChannels(headDim)) * PAGE_TOKENS };
}

/** Bytes of one page of one KV head, K and V, in any format. Quantized: of each a scale (16 bytes), its ranges, its codes. */
export function wholePageBytes(format: CacheFormat, headDim: number): number {
  if (!isQuantized(format)) return 2 * pageBytes(format, headDim);
  const { k, v } = rangeCounts(headDim);
  return 2 * (16 + k + v + (headDim * PAGE_TOKENS * CODE_BITS[format]) / 8);
}
