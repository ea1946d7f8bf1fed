/**
 * KV slots in the WASM heap: (nLayers, nKvHeads) pages, K then V. Slots are numbered by their address; cold ones by their
 * address + tag, which the kernels know them by (wasm/kernels/attention.h).
 */

import { InlayError, internalError } from "../../errors.ts";
import { type ColdFormat, headFormats, layerPageBytes, MixedFormat } from "../../kv/mixed-format.ts";
import { type CacheFormat, type KvShape, PAGE_TOKENS, type PageFormat } from "../../kv/page.ts";
import type { ColdSlots, SlotStore } from "../../kv/paged-cache.ts";
import { CLIP, isQuantized, type QuantizedFormat, wholePageBytes } from "../../kv/quantize.ts";
import type { WasmModule } from "./module.ts";
import { FORMAT_CODES } from "./page-converter.ts";

/** What a cold slot's address ends with. */
const COLD_TAGS = { q8: 1, q4: 2, q2: 3 } as const;
const TAG_FORMATS = [undefined, "q8", "q4", "q2"] as const;
const MIXED_TAG = 4;

const tagOf = (slot: number) => slot % 8;
const addressOf = (slot: number) => slot - tagOf(slot);

export class WasmSlotStore implements SlotStore {
  readonly slotBytes: number;
  readonly format: PageFormat;
  readonly cold: WasmColdSlots;

  constructor(
    private readonly wasm: WasmModule,
    private readonly shape: KvShape,
  ) {
    this.format = shape.format;
    this.slotBytes = shape.nLayers * layerPageBytes(shape.format, 0, shape);
    this.cold = new WasmColdSlots(wasm, shape, this.slotBytes);
  }

  /** Zeroed: kernels multiply what is past the last token by 0, which would keep a NaN that lay here before. */
  allocate(): number {
    const slot = this.wasm.alloc(this.slotBytes, "KV cache");
    this.wasm.bytes(slot, this.slotBytes).fill(0);
    return slot;
  }

  release(slot: number): void {
    this.wasm.free(addressOf(slot));
    this.cold.forget(slot);
  }

  copy(from: number, to: number): void {
    this.wasm.u8.copyWithin(to, from, from + this.slotBytes);
  }

  layerBytes(layer: number, slots: readonly number[]): number {
    return slots.reduce((sum, slot) => sum + this.#place(layer, slot).size, 0);
  }

  read(layer: number, slots: readonly number[]): Uint8Array<ArrayBuffer> {
    const pages = new Uint8Array(this.layerBytes(layer, slots));
    const { u8 } = this.wasm;
    let at = 0;
    for (const slot of slots) {
      const { ptr, size } = this.#place(layer, slot);
      pages.set(u8.subarray(ptr, ptr + size), at);
      at += size;
    }
    return pages;
  }

  write(layer: number, slots: readonly number[], pages: Uint8Array): void {
    const { u8 } = this.wasm;
    let at = 0;
    for (const slot of slots) {
      const { ptr, size } = this.#place(layer, slot);
      u8.set(pages.subarray(at, at + size), ptr);
      at += size;
    }
  }

  /** Where a layer of a slot lies. */
  #place(layer: number, slot: number): { ptr: number; size: number } {
    const format = this.cold.formatOf(slot) ?? this.format;
    const size = layerPageBytes(format, layer, this.shape);
    if (!(format instanceof MixedFormat)) return { ptr: addressOf(slot) + layer * size, size };
    return { ptr: addressOf(slot) + this.cold.layoutOf(format).pages[layer * this.shape.nKvHeads]!, size };
  }
}

/** Consecutive pages of one format in a slot. */
interface HeadRun {
  readonly format: CacheFormat;
  /** Of (layer, KV head). */
  readonly first: number;
  readonly count: number;
  /** Bytes from the slot's start. */
  readonly at: number;
}

/** Where the pages of a mixed slot lie: after the table that begins it. */
class MixedLayout {
  /** Bytes from the slot's start to each (layer, KV head). */
  readonly pages: readonly number[];
  /** What the slot begins with. */
  readonly table: Uint32Array;
  readonly runs: readonly HeadRun[];
  readonly bytes: number;

  constructor(format: MixedFormat, { nLayers, nKvHeads, headDim }: KvShape) {
    const formats = Array.from({ length: nLayers }, (_, layer) =>
      headFormats(format, layer, nKvHeads),
    ).flat() as QuantizedFormat[];
    const pages: number[] = [];
    const runs: HeadRun[] = [];
    let at = 16 * Math.ceil(formats.length / 4);
    for (const [first, of] of formats.entries()) {
      const last = runs.at(-1);
      if (last?.format === of) runs[runs.length - 1] = { ...last, count: last.count + 1 };
      else runs.push({ format: of, first, count: 1, at });
      pages.push(at);
      at += wholePageBytes(of, headDim);
    }
    this.pages = pages;
    this.table = Uint32Array.from(pages, (page, i) => page + COLD_TAGS[formats[i]!]);
    this.runs = runs;
    this.bytes = at;
  }
}

/** Quantized slots. */
class WasmColdSlots implements ColdSlots {
  readonly automatic: QuantizedFormat | undefined;
  /** Of the mixed slots. */
  readonly #mixed = new Map<number, MixedFormat>();
  readonly #layouts = new WeakMap<MixedFormat, MixedLayout>();

  constructor(
    private readonly wasm: WasmModule,
    private readonly shape: KvShape,
    private readonly hotBytes: number,
  ) {
    this.automatic = shape.cold;
  }

  canCode(): boolean {
    return true;
  }

  slotBytes(format: ColdFormat): number {
    if (format instanceof MixedFormat) return this.layoutOf(format).bytes;
    return this.shape.nLayers * layerPageBytes(format, 0, this.shape);
  }

  formatOf(slot: number): ColdFormat | undefined {
    return tagOf(slot) === MIXED_TAG ? this.#mixed.get(slot) : TAG_FORMATS[tagOf(slot)];
  }

  layoutOf(format: MixedFormat): MixedLayout {
    const known = this.#layouts.get(format);
    if (known) return known;
    const layout = new MixedLayout(format, this.shape);
    this.#layouts.set(format, layout);
    return layout;
  }

  allocate(format: ColdFormat): number {
    const address = this.wasm.alloc(this.slotBytes(format), "KV cache");
    if (!(format instanceof MixedFormat)) return address + COLD_TAGS[format];
    const { table } = this.layoutOf(format);
    this.wasm.u32(address, table.length).set(table);
    this.#mixed.set(address + MIXED_TAG, format);
    return address + MIXED_TAG;
  }

  forget(slot: number): void {
    this.#mixed.delete(slot);
  }

  freeze(slot: number, format: ColdFormat, page: number): number {
    const { nKvHeads } = this.shape;
    const cold = this.allocate(format);
    const bad = this.#convert(slot, cold, "freeze");
    if (bad === undefined) return cold;
    this.wasm.free(addressOf(cold));
    this.forget(cold);
    throw notFinite(bad.what, Math.floor(bad.head / nKvHeads), bad.head % nKvHeads, page);
  }

  thaw(slot: number): number {
    if (this.formatOf(slot) === undefined) throw internalError(`slot ${slot} is hot`);
    const hot = this.wasm.alloc(this.hotBytes, "KV cache");
    this.#convert(hot, slot, "thaw");
    return hot;
  }

  /** Codes a hot slot into a cold one, or the reverse. Returns the first head with an element that is not finite. */
  #convert(hot: number, cold: number, direction: "freeze" | "thaw") {
    const { headDim, format: hotFormat } = this.shape;
    const hotSize = wholePageBytes(hotFormat, headDim);
    for (const { format, first, count, at } of this.#runsOf(cold)) {
      const [hotAt, coldAt] = [hot + first * hotSize, addressOf(cold) + at];
      const [from, fromFormat, to, toFormat] =
        direction === "freeze" ? [hotAt, hotFormat, coldAt, format] : [coldAt, format, hotAt, hotFormat];
      const clip = isQuantized(toFormat) ? CLIP[toFormat] : 1;
      const [fromCode, toCode] = [FORMAT_CODES[fromFormat], FORMAT_CODES[toFormat]];
      const status = this.wasm.call("kv_convert_pages", from, fromCode, count, headDim, clip, toCode, to);
      if (status < 0 || (status > 0 && direction === "thaw"))
        throw internalError(`converting ${fromFormat} pages to ${toFormat} returned ${status}`);
      if (status > 0) {
        const what: "keys" | "values" = status % 2 === 1 ? "keys" : "values";
        return { what, head: first + ((status - 1) >> 1) };
      }
    }
    return undefined;
  }

  #runsOf(slot: number): readonly HeadRun[] {
    const format = this.formatOf(slot)!;
    if (format instanceof MixedFormat) return this.layoutOf(format).runs;
    return [{ format, first: 0, count: this.shape.nLayers * this.shape.nKvHeads, at: 0 }];
  }
}

function notFinite(what: "keys" | "values", layer: number, kvHead: number, page: number): InlayError {
  const first = page * PAGE_TOKENS;
  return new InlayError(
    "invalid-model",
    `the ${what} of layer ${layer}, KV head ${kvHead} are not finite in page ${page} (tokens ${first} to ` +
      `${first + PAGE_TOKENS - 1}): the model's weights or activations overflow; try another file of the model`,
    { what, layer, kvHead, page },
  );
}
