/**
 * The page: the unit of selection, quantization, GPU upload and storage.
 *
 * A page holds the keys and values of `PAGE_TOKENS` consecutive tokens of one layer and one KV head:
 *
 *     K  (headDim, PAGE_TOKENS)   transposed, so that q·k of 4 neighbouring tokens is one SIMD lane each,
 *                                 and neighbouring GPU threads read neighbouring tokens
 *     V  (PAGE_TOKENS, headDim)   rows
 *
 * Keys are stored after RoPE. Packed f16 pairs two values in a u32, low half first, along the fastest axis.
 */

import type { QuantizedFormat } from "./quantize.ts";

/** Tokens in a page. 32, so that a mask of a page's tokens is one u32. */
export const PAGE_TOKENS = 32;

/** How the elements of a page are stored that may still be written. */
export type PageFormat = "f32" | "f16";

/** How a cache stores its pages; in a quantized format new pages are f32 and old ones quantized. */
export type CacheFormat = PageFormat | QuantizedFormat;

/** The shape that KV storage and attention kernels are made for. */
export interface KvShape {
  readonly nLayers: number;
  readonly nHeads: number;
  readonly nKvHeads: number;
  readonly headDim: number;
  readonly format: PageFormat;
  /** What pages become when they leave the window; undefined = they stay as they are. */
  readonly cold?: QuantizedFormat | undefined;
}

/** Bytes of one element; pages have no headers in the unquantized formats. */
const ELEMENT_BYTES: Readonly<Record<PageFormat, number>> = { f32: 4, f16: 2 };

/** Bytes of K, or of V, in one page of one KV head. */
export function pageBytes(format: PageFormat, headDim: number): number {
  return PAGE_TOKENS * headDim * ELEMENT_BYTES[format];
}

/**
 * Zeroes everything past the first `nTokens` tokens of one layer's page of all KV heads, (nKvHeads, K then V):
 * what a slot was used for before must not leave with it.
 */
export function clearPastTokens(
  page: Uint8Array,
  { nKvHeads, headDim, format }: Pick<KvShape, "nKvHeads" | "headDim" | "format">,
  nTokens: number,
): void {
  const element = ELEMENT_BYTES[format];
  const size = pageBytes(format, headDim);
  for (let head = 0; head < nKvHeads; head++) {
    const k = 2 * head * size;
    for (let d = 0; d < headDim; d++) {
      const row = k + d * PAGE_TOKENS * element;
      page.fill(0, row + nTokens * element, row + PAGE_TOKENS * element);
    }
    page.fill(0, k + size + nTokens * headDim * element, k + 2 * size);
  }
}

/** Pages needed for `nTokens` tokens. */
export function pageCount(nTokens: number): number {
  return Math.ceil(nTokens / PAGE_TOKENS);
}
