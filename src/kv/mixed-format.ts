/**
 * Quantized pages whose heads differ: of most (layer, KV head) 2 bits, of some, whose pages would lose too much, 4. Which
 * those are is chosen for each pinned prompt (src/prompts/choose-bits.ts).
 */

import type { CacheFormat } from "./page.ts";
import { type QuantizedFormat, wholePageBytes } from "./quantize.ts";

/** The formats of a mixed page. */
export const NARROW = "q2";
export const WIDE = "q4";

export class MixedFormat {
  readonly #wide: ReadonlySet<number>;

  /** `wide`: the heads with 4 bits as `layer * nKvHeads + kvHead`, ascending. */
  constructor(readonly wide: readonly number[]) {
    this.#wide = new Set(wide);
  }

  /** Of head `layer * nKvHeads + kvHead`. */
  formatOf(head: number): typeof NARROW | typeof WIDE {
    return this.#wide.has(head) ? WIDE : NARROW;
  }

  /** How many heads from `from` to before `to` have 4 bits. */
  countWide(from: number, to: number): number {
    return this.wide.filter((head) => head >= from && head < to).length;
  }

  equals({ wide }: MixedFormat): boolean {
    return wide.length === this.wide.length && wide.every((head, i) => head === this.wide[i]);
  }
}

/** How a quantized slot is coded. */
export type ColdFormat = QuantizedFormat | MixedFormat;

/** How any slot is stored. */
export type SlotFormat = CacheFormat | MixedFormat;

export function isSameFormat(a: SlotFormat | undefined, b: SlotFormat | undefined): boolean {
  return a instanceof MixedFormat && b instanceof MixedFormat ? a.equals(b) : a === b;
}

/** The format of each KV head of a layer. */
export function headFormats(format: SlotFormat, layer: number, nKvHeads: number): CacheFormat[] {
  return Array.from({ length: nKvHeads }, (_, head) =>
    format instanceof MixedFormat ? format.formatOf(layer * nKvHeads + head) : format,
  );
}

/** Bytes of one layer of a slot: one page of every KV head. */
export function layerPageBytes(
  format: SlotFormat,
  layer: number,
  { nKvHeads, headDim }: { readonly nKvHeads: number; readonly headDim: number },
): number {
  if (!(format instanceof MixedFormat)) return nKvHeads * wholePageBytes(format, headDim);
  const nWide = format.countWide(layer * nKvHeads, (layer + 1) * nKvHeads);
  return nWide * wholePageBytes(WIDE, headDim) + (nKvHeads - nWide) * wholePageBytes(NARROW, headDim);
}
