/**
 * KV cache and attention in WASM SIMD. Slots are blocks of the WASM heap: (nLayers, nKvHeads) pages, K then V.
 */

import type { Selection } from "../../attention/policy.ts";
import { InlayError, internalError } from "../../errors.ts";
import { type KvShape, pageBytes } from "../../kv/page.ts";
import { PagedCache, SlotPool, type SlotStore } from "../../kv/paged-cache.ts";
import type { AttendCall, AttentionOps, Tensor } from "../backend.ts";
import type { WasmModule } from "./module.ts";
import type { WasmOps } from "./wasm-ops.ts";
import { wasmTensor } from "./wasm-tensor.ts";

/** Slots are numbered by their address. */
class WasmSlotStore implements SlotStore {
  readonly slotBytes: number;
  readonly layerPageBytes: number;

  constructor(
    private readonly wasm: WasmModule,
    shape: KvShape,
  ) {
    this.layerPageBytes = shape.nKvHeads * 2 * pageBytes(shape.format, shape.headDim);
    this.slotBytes = shape.nLayers * this.layerPageBytes;
  }

  allocate(): number {
    const slot = this.wasm.alloc(this.slotBytes, "KV cache");
    // Tokens not written yet are masked, but 0 * NaN would not be.
    this.wasm.bytes(slot, this.slotBytes).fill(0);
    return slot;
  }

  release(slot: number): void {
    this.wasm.free(slot);
  }

  copy(from: number, to: number): void {
    this.wasm.u8.copyWithin(to, from, from + this.slotBytes);
  }

  read(layer: number, slots: readonly number[]): Uint8Array<ArrayBuffer> {
    const size = this.layerPageBytes;
    const pages = new Uint8Array(slots.length * size);
    for (const [i, slot] of slots.entries()) pages.set(this.wasm.bytes(slot + layer * size, size), i * size);
    return pages;
  }

  write(layer: number, slots: readonly number[], pages: Uint8Array): void {
    const size = this.layerPageBytes;
    for (const [i, slot] of slots.entries())
      this.wasm.bytes(slot + layer * size, size).set(pages.subarray(i * size, (i + 1) * size));
  }
}

/** Bytes of the C struct AttendCall (wasm/kernels/attention.h): 19 fields of 32 bits. */
const CALL_FIELDS = 19;

export class WasmAttention implements AttentionOps {
  readonly device = "wasm";
  readonly #pool: SlotPool;
  readonly #call: number;
  /** The selection that is in the heap now, and where. */
  #uploaded: { selection: Selection; ptr: number } | undefined;
  #slotTable = { ptr: 0, capacity: 0 };

  constructor(
    private readonly ops: WasmOps,
    private readonly shape: KvShape,
  ) {
    this.#pool = new SlotPool(new WasmSlotStore(ops.wasm, shape));
    this.#call = ops.wasm.alloc(CALL_FIELDS * 4, "call arguments");
  }

  createCache(): PagedCache {
    return new PagedCache(this.#pool);
  }

  attend(call: AttendCall): Tensor {
    const { wasm, heap } = this.ops;
    const { nHeads, nKvHeads, headDim, format } = this.shape;
    const [selection] = call.selections;
    if (!selection || call.selections.length !== 1 || selection.segment !== "tail")
      throw internalError(`attention over ${call.selections.length} segments`);
    const { qStart, qLen, blockSize } = call.blocks;
    const q = wasmTensor(call.q);
    const out = heap.create(qLen, nHeads * headDim);
    const slots = this.#writeSlots(call.cache);
    const lists = this.#writeSelection(selection);
    const nRows = selection.rowPtr.length;
    const nPages = selection.page.length;
    const layerOffset = call.layer * nKvHeads * 2 * pageBytes(format, headDim);
    const fields = wasm.u32(this.#call, CALL_FIELDS);
    fields.set([slots, layerOffset, format === "f32" ? 0 : 1, nKvHeads, headDim, q.ptr, out.ptr]);
    fields.set([lists, lists + nRows * 4, selection.mask ? lists + (nRows + nPages) * 4 : 0], 7);
    fields.set([selection.nBlocks, blockSize, selection.headShared ? 1 : 0, qStart, qLen, nHeads], 10);
    wasm.f32(this.#call, CALL_FIELDS).set([call.scale, call.softcap ?? 0], 16);
    fields[18] = call.window ?? 0;

    wasm.call("kv_append_rows", this.#call, wasmTensor(call.k).ptr, wasmTensor(call.v).ptr);
    const status = wasm.call("attend_pages", this.#call);
    if (status === 0) return out;
    out[Symbol.dispose]();
    if (status === -1) throw new InlayError("out-of-memory", "no scratch memory for attention");
    throw internalError(`attention of layer ${call.layer} returned ${status}`);
  }

  memory(): { kv: number; scratch: number } {
    return { kv: this.#pool.bytes, scratch: 0 };
  }

  /** Nothing to do: the heap goes with the module. */
  dispose(): void {}

  /** The page table of `cache`: one slot address per logical page. */
  #writeSlots(cache: PagedCache): number {
    const { wasm } = this.ops;
    const { slots } = cache;
    if (slots.length > this.#slotTable.capacity) {
      if (this.#slotTable.ptr !== 0) wasm.free(this.#slotTable.ptr);
      const capacity = Math.max(64, slots.length * 2);
      this.#slotTable = { ptr: wasm.alloc(capacity * 4, "the page table"), capacity };
    }
    wasm.u32(this.#slotTable.ptr, slots.length).set(slots);
    return this.#slotTable.ptr;
  }

  /** rowPtr, page and mask one after the other; layers usually share one selection, so it is written once. */
  #writeSelection(selection: Selection): number {
    if (this.#uploaded?.selection === selection) return this.#uploaded.ptr;
    const { wasm } = this.ops;
    if (this.#uploaded) wasm.free(this.#uploaded.ptr);
    this.#uploaded = undefined;
    const { rowPtr, page, mask } = selection;
    const length = rowPtr.length + page.length + (mask?.length ?? 0);
    const ptr = wasm.alloc(length * 4, "page lists");
    const words = wasm.u32(ptr, length);
    words.set(rowPtr);
    words.set(page, rowPtr.length);
    if (mask) words.set(mask, rowPtr.length + page.length);
    this.#uploaded = { selection, ptr };
    return ptr;
  }
}
