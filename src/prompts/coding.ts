/** How many bits a prompt is stored at. */

import { InlayError } from "../errors.ts";
import { NARROW } from "../kv/mixed-format.ts";
import { PAGE_TOKENS, pageCount } from "../kv/page.ts";
import { CODE_BITS, SINK_PAGES, settledPages } from "../kv/quantize.ts";
import { kvBytes, type PageCoding, type PromptManifest } from "./manifest.ts";
import { squeezedRecordBytes } from "./squeezed-info.ts";

/** Bits per element of stored keys and values, in all heads; 16: not quantized, stored as the cache has them. */
export type PinBits = 2 | 4 | 8 | 16;

/** How a prompt is to be stored. */
export interface CodingChoice {
  readonly coding: PageCoding;
  /** `coding.wide` is found out once the prompt is prefilled (choose-bits.ts). */
  readonly isAutomatic: boolean;
}

/**
 * The coding for a prompt of `bits`, undefined: 2, but 4 for heads that would lose too much; pinned on `base` if there is
 * one; `cache`: how caches keep their pages. Throws `invalid-option` for bits that `base`, or a cache which quantizes by
 * itself, does not have.
 */
export function chooseCoding(
  cache: PageCoding,
  bits: PinBits | undefined,
  base: PromptManifest | undefined,
): CodingChoice {
  if (base?.shape.cold && settledPages(base.nTokens) > SINK_PAGES)
    return { coding: codingOn(cache, bits, base), isAutomatic: false };
  const { format, cold } = cache;
  if (cold !== null) {
    if (bits === undefined || CODE_BITS[cold] === bits) return { coding: cache, isAutomatic: false };
    throw new InlayError(
      "invalid-option",
      `bits is ${bits}, and this model's kvCache.format ${JSON.stringify(cold)} has ${CODE_BITS[cold]} already: leave ` +
        "bits out, or load the model with another kvCache.format",
      { option: "bits", value: bits, kvCache: cold },
    );
  }
  if (bits === undefined) return { coding: { format: "f16", cold: NARROW, wide: [] }, isAutomatic: true };
  const coding: PageCoding =
    bits === 16 ? { format, cold, wide: null } : { format: "f16", cold: `q${bits}`, wide: null };
  return { coding, isAutomatic: false };
}

/** Quantized pages that a prompt is pinned on stay as they are, and its own are coded in the same way. */
function codingOn(
  { format, cold }: PageCoding,
  bits: PinBits | undefined,
  { id, shape }: PromptManifest,
): PageCoding {
  const of = shape.cold!;
  const nWide = shape.wide?.length ?? 0;
  const fitsCache = cold === null || (cold === of && nWide === 0);
  if (fitsCache && (bits === undefined || (bits === CODE_BITS[of] && nWide === 0)))
    return { format: cold === null ? "f16" : format, cold: of, wide: shape.wide };
  const other = fitsCache ? `bits is ${bits}` : `this model's kvCache.format is ${JSON.stringify(cold)}`;
  const has = nWide === 0 ? `${CODE_BITS[of]} bits` : `2 bits, ${nWide} of its heads 4`;
  throw new InlayError(
    "invalid-option",
    `${other}, and the prompt ${JSON.stringify(id)} that this one goes on has ${has}: ` +
      `${nWide === 0 ? "pin it with as many bits as that" : "leave bits out"}, or pin both together`,
    { option: "bits", value: bits, on: id },
  );
}

/** Whether a stored prompt is coded as one is to be. */
export function isCodedSo(stored: PageCoding, { coding, isAutomatic }: CodingChoice): boolean {
  if (stored.format !== coding.format || stored.cold !== coding.cold) return false;
  if (isAutomatic) return stored.wide !== null;
  const [a, b] = [stored.wide ?? [], coding.wide ?? []];
  return a.length === b.length && a.every((head, i) => head === b[i]);
}

/** Bits of an element of the stored pages on average, with all that is stored beside it: ranges, scales, centroids. To 0.01. */
export function averageBits({ shape, nTokens, squeezed }: PromptManifest): number {
  const { nLayers, nKvHeads, headDim } = shape;
  const elements = 2 * nLayers * nKvHeads * headDim * PAGE_TOKENS * pageCount(nTokens);
  const clusters = squeezedRecordBytes(squeezed, headDim).reduce((sum, bytes) => sum + bytes, 0);
  return Math.round((100 * 8 * (kvBytes(shape, nTokens) + clusters)) / elements) / 100;
}
