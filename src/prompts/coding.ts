/** How many bits a prompt is stored at. */

import { InlayError } from "../errors.ts";
import { CODE_BITS, type QuantizedFormat } from "../kv/quantize.ts";
import type { PageCoding, PromptManifest } from "./manifest.ts";

/** Bits per element of a stored key or value; 16: not quantized, stored as the cache has them. */
export type PinBits = 2 | 4 | 8 | 16;

const DEFAULT_BITS = 4;

/**
 * The coding for a prompt of `bits`, pinned on `base` if there is one; `cache`: how caches keep their pages. Throws
 * `invalid-option` for bits that `base`, or a cache which quantizes by itself, does not have.
 */
export function chooseCoding(
  cache: PageCoding,
  bits: PinBits | undefined,
  base: PromptManifest | undefined,
): PageCoding {
  if (base?.shape.cold) return codingOn(cache, bits, base.id, base.shape.cold);
  const { format, cold } = cache;
  if (cold !== null) {
    if (bits === undefined || CODE_BITS[cold] === bits) return { format, cold };
    throw new InlayError(
      "invalid-option",
      `bits is ${bits}, and this model's kvCache.format ${JSON.stringify(cold)} has ${CODE_BITS[cold]} already: leave ` +
        "bits out, or load the model with another kvCache.format",
      { option: "bits", value: bits, kvCache: cold },
    );
  }
  const wanted = bits ?? DEFAULT_BITS;
  return wanted === 16 ? { format, cold } : { format: "f16", cold: `q${wanted}` };
}

/** Quantized pages that a prompt is pinned on stay as they are, and its own are coded in the same way. */
function codingOn(
  { format, cold }: PageCoding,
  bits: PinBits | undefined,
  id: string,
  of: QuantizedFormat,
): PageCoding {
  const fitsCache = cold === null || cold === of;
  if (fitsCache && (bits === undefined || bits === CODE_BITS[of]))
    return { format: cold === null ? "f16" : format, cold: of };
  const other = fitsCache ? `bits is ${bits}` : `this model's kvCache.format is ${JSON.stringify(cold)}`;
  throw new InlayError(
    "invalid-option",
    `${other}, and the prompt ${JSON.stringify(id)} that this one goes on has ${CODE_BITS[of]} bits: pin it with as many ` +
      "bits as that, or pin both together",
    { option: "bits", value: bits, on: id },
  );
}

/** The bits of most elements. */
export function bitsOf({ format, cold }: PageCoding): number {
  if (cold !== null) return CODE_BITS[cold];
  return format === "f32" ? 32 : 16;
}
