/** Attention in WASM SIMD over the pages of a cache in the WASM heap. */

import type { SampledMasses, Selection } from "../../attention/policy.ts";
import { InlayError, internalError } from "../../errors.ts";
import { type KvShape, PAGE_TOKENS, pageBytes, pageCount } from "../../kv/page.ts";
import { PagedCache, SlotPool } from "../../kv/paged-cache.ts";
import type { AttendCall, AttentionOps, Tensor, UnselectedCall } from "../backend.ts";
import { FORMAT_CODES } from "./page-converter.ts";
import type { WasmOps } from "./wasm-ops.ts";
import { WasmSlotStore } from "./wasm-slots.ts";
import { wasmTensor } from "./wasm-tensor.ts";

/** Bytes of the C struct AttendCall (wasm/kernels/attention.h): 19 fields of 32 bits. */
const CALL_FIELDS = 19;

export class WasmAttention implements AttentionOps {
  readonly device = "wasm";
  readonly #pool: SlotPool;
  readonly #slotBytes: number;
  readonly #call: number;
  /** The selection that is in the heap now, and where. */
  #uploaded: { selection: Selection; ptr: number } | undefined;
  #slotTable = { ptr: 0, capacity: 0 };

  constructor(
    private readonly ops: WasmOps,
    private readonly shape: KvShape,
  ) {
    const store = new WasmSlotStore(ops.wasm, shape);
    this.#pool = new SlotPool(store);
    this.#slotBytes = store.slotBytes;
    this.#call = ops.wasm.alloc(CALL_FIELDS * 4, "call arguments");
  }

  createCache(): PagedCache {
    return new PagedCache(this.#pool);
  }

  attend(call: AttendCall): Tensor {
    const { wasm, heap } = this.ops;
    const { nHeads, headDim } = this.shape;
    const [selection] = call.selections;
    if (!selection || call.selections.length !== 1 || selection.segment !== "tail")
      throw internalError(`attention over ${call.selections.length} segments`);
    const out = heap.create(call.blocks.qLen, nHeads * headDim);
    const lists = this.#writeSelection(selection);
    const nRows = selection.rowPtr.length;
    const nPages = selection.page.length;
    const fields = this.#writeCall(call);
    fields[6] = out.ptr;
    fields.set([lists, lists + nRows * 4, selection.mask ? lists + (nRows + nPages) * 4 : 0], 7);
    fields[10] = selection.nBlocks;
    fields[12] = selection.headShared ? 1 : 0;

    wasm.call("kv_append_rows", this.#call, wasmTensor(call.k).ptr, wasmTensor(call.v).ptr);
    const status = wasm.call("attend_pages", this.#call);
    if (status === 0) return out;
    out[Symbol.dispose]();
    if (status === -1) throw new InlayError("out-of-memory", "no scratch memory for attention");
    throw internalError(`attention of layer ${call.layer} returned ${status}`);
  }

  sampleMasses(call: UnselectedCall, rows: Uint32Array): SampledMasses {
    const { wasm } = this.ops;
    const nPages = pageCount(call.blocks.qStart + call.blocks.qLen);
    const length = this.shape.nKvHeads * nPages;
    const columnsPtr = wasm.alloc(8 * length + rows.byteLength, "sampled attention");
    const rowsPtr = columnsPtr + 8 * length;
    wasm.u32(rowsPtr, rows.length).set(rows);
    this.#writeCall(call);
    wasm.call("kv_append_rows", this.#call, wasmTensor(call.k).ptr, wasmTensor(call.v).ptr);
    const status = wasm.call(
      "sample_page_masses",
      this.#call,
      rowsPtr,
      rows.length,
      nPages,
      columnsPtr,
      columnsPtr + 4 * length,
    );
    const masses = wasm.f32(columnsPtr, 2 * length).slice();
    wasm.free(columnsPtr);
    if (status === -1) throw new InlayError("out-of-memory", "no scratch memory for sampling attention");
    if (status !== 0) throw internalError(`sampled attention of layer ${call.layer} returned ${status}`);
    return { nPages, columns: masses.subarray(0, length), diagonals: masses.subarray(length) };
  }

  /** Cached keys and values of tokens [from, to) of one layer, (to - from, nKvHeads * headDim) each. f32 pages only. */
  rows(cache: PagedCache, layer: number, from: number, to: number): { k: Tensor; v: Tensor } {
    const { nKvHeads, headDim, format, cold } = this.shape;
    if (format !== "f32" || cold) throw internalError(`rows of ${cold ?? format} pages`);
    const width = nKvHeads * headDim;
    const { wasm, heap } = this.ops;
    const k = heap.create(to - from, width);
    const v = heap.create(to - from, width);
    const [keys, values] = [k.view, v.view];
    const size = PAGE_TOKENS * headDim;
    for (let token = from; token < to; token++) {
      const slot = cache.slots[Math.floor(token / PAGE_TOKENS)]!;
      const inPage = token % PAGE_TOKENS;
      const pages = wasm.f32(slot, this.#slotBytes / 4).subarray(layer * nKvHeads * 2 * size);
      for (let head = 0; head < nKvHeads; head++) {
        const at = (token - from) * width + head * headDim;
        const page = pages.subarray(head * 2 * size, (head + 1) * 2 * size);
        for (let d = 0; d < headDim; d++) keys[at + d] = page[d * PAGE_TOKENS + inPage]!;
        values.set(page.subarray(size + inPage * headDim, size + (inPage + 1) * headDim), at);
      }
    }
    return { k, v };
  }

  memory(): { kv: number; scratch: number } {
    return { kv: this.#pool.bytes, scratch: 0 };
  }

  /** Nothing to do: the heap goes with the module. */
  dispose(): void {}

  /** The fields that do not depend on a selection; the others are left as they are. */
  #writeCall(call: UnselectedCall): Uint32Array {
    const { wasm } = this.ops;
    const { nHeads, nKvHeads, headDim, format } = this.shape;
    const { qStart, qLen, blockSize } = call.blocks;
    const slots = this.#writeSlots(call.cache);
    const layerOffset = call.layer * nKvHeads * 2 * pageBytes(format, headDim);
    const fields = wasm.u32(this.#call, CALL_FIELDS);
    fields.set([slots, layerOffset, FORMAT_CODES[format], nKvHeads, headDim, wasmTensor(call.q).ptr]);
    fields[11] = blockSize;
    fields.set([qStart, qLen, nHeads], 13);
    wasm.f32(this.#call, CALL_FIELDS).set([call.scale, call.softcap ?? 0], 16);
    fields[18] = call.window ?? 0;
    return fields;
  }

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
