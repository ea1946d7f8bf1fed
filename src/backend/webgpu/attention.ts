/**
 * Attention on GPU buffers: records the append of new keys and values and the attention of their queries over the
 * selected pages into a compute pass. Whoever owns the pass submits it, so that a whole forward pass can be
 * one submit.
 *
 *     append    k, v rows -> pages
 *     attend    one dispatch per selection and format, in `nSplits` parts: partial results and their log-sum-exp
 *     merge     partials -> out; left out when there is only one
 */

import { blockCount, type QueryBlocks, type Selection } from "../../attention/policy.ts";
import { internalError } from "../../errors.ts";
import { PAGE_TOKENS, pageCount } from "../../kv/page.ts";
import { PagedCache, SlotPool } from "../../kv/paged-cache.ts";
import { BufferGroup, ScratchBuffer } from "./buffers.ts";
import type { GpuDevice } from "./device.ts";
import {
  type AttentionKernels,
  type AttentionTuning,
  compileKernels,
  defaultTuning,
  FLAT_THREADS,
  type KernelShape,
  splitCount,
} from "./kernels.ts";
import { GpuPageStore, type LayerPages } from "./page-store.ts";
import { Uploads } from "./uploads.ts";

/** Options of {@link GpuAttention}. */
export interface GpuAttentionOptions {
  /** Pages that the cache has room for from the start. @default 16 */
  readonly initialPages?: number;
  readonly tuning?: Partial<AttentionTuning>;
}

/** Page lists on the GPU; see attention_pages.wgsl. */
export interface PageLists {
  readonly buffer: GPUBuffer;
  /** Where its parts start, in words. */
  readonly pagesAt: number;
  readonly masksAt: number;
  readonly headShared: boolean;
  readonly isCausal: boolean;
  /** Pages of the longest row, or about as many: their number of splits depends on it. */
  readonly longest: number;
}

/** One layer's attention, in buffers; the fields are those of `AttendCall`. All f32, row-major. */
export interface GpuAttendCall {
  readonly layer: number;
  /** (nTokens, nHeads * headDim), after RoPE. */
  readonly q: GPUBuffer;
  /** (nTokens, nKvHeads * headDim), after RoPE. */
  readonly k: GPUBuffer;
  /** (nTokens, nKvHeads * headDim). */
  readonly v: GPUBuffer;
  /** (nTokens, nHeads * headDim), written. Not one of the inputs. */
  readonly out: GPUBuffer;
  readonly cache: PagedCache;
  readonly blocks: QueryBlocks;
  /** Page ids of every segment are logical pages of `cache`; not changed while the model lives. */
  readonly selections: readonly Selection[];
  /** Lists that are on this device already, instead of `selections`. */
  readonly onDevice?: PageLists | undefined;
  readonly scale: number;
  readonly softcap?: number | undefined;
  readonly window?: number | undefined;
}

/** Keys and values of tokens [start, start + nTokens) of one layer, in buffers as in {@link GpuAttendCall}. */
export type GpuAppendCall = Pick<GpuAttendCall, "layer" | "k" | "v" | "cache"> & {
  readonly start: number;
  readonly nTokens: number;
};

/** A layer's pages, and which of them the cache uses. */
interface CachePages extends LayerPages {
  readonly table: GPUBuffer;
}

/** Pages of one workgroup of attention_sample.wgsl. */
const SAMPLE_PAGES = 8;

/** One dispatch of an attention kernel. */
interface Part {
  readonly lists: PageLists;
  readonly isDecode: boolean;
  /** Workgroups of one (block, KV head). */
  readonly tiles: number;
  readonly nSplits: number;
  readonly firstPartial: number;
}

export class GpuAttention {
  readonly #store: GpuPageStore;
  readonly #pool: SlotPool;
  readonly #uploads: Uploads;
  readonly #scratch: BufferGroup;
  readonly #partials: ScratchBuffer;
  readonly #lse: ScratchBuffer;

  private constructor(
    readonly device: GpuDevice,
    readonly shape: KernelShape,
    private readonly kernels: AttentionKernels,
    private readonly tuning: AttentionTuning,
    initialPages: number,
  ) {
    this.#store = new GpuPageStore(device, shape, initialPages, kernels.codec);
    this.#pool = new SlotPool(this.#store);
    this.#uploads = new Uploads(device);
    this.#scratch = new BufferGroup(device, "attention");
    this.#partials = new ScratchBuffer(this.#scratch, "partials");
    this.#lse = new ScratchBuffer(this.#scratch, "lse");
  }

  /** Compiles the kernels for `shape`. */
  static async create(
    device: GpuDevice,
    shape: KernelShape,
    options: GpuAttentionOptions = {},
  ): Promise<GpuAttention> {
    const tuning = { ...defaultTuning(device), ...options.tuning };
    const kernels = await compileKernels(device, shape, tuning);
    return new GpuAttention(device, shape, kernels, tuning, options.initialPages ?? 16);
  }

  /** An empty cache in this object's pages. */
  createCache(): PagedCache {
    return new PagedCache(this.#pool);
  }

  /**
   * Makes reserved pages real. To be awaited after `cache.reserve` and before the first `encode` of a pass, while
   * nothing recorded is unsubmitted.
   */
  prepare(): Promise<void> {
    return this.#store.prepare();
  }

  /** Records the append of rows alone. Buffers must stay alive until the pass is submitted. */
  encodeAppend(pass: GPUComputePassEncoder, call: GpuAppendCall): void {
    this.#append(pass, call, this.#pagesOf(call));
  }

  #append(pass: GPUComputePassEncoder, call: GpuAppendCall, { k, v, table }: CachePages): void {
    const { cache, start, nTokens } = call;
    if (start + nTokens > cache.slots.length * PAGE_TOKENS)
      throw internalError("an append past the reserved pages", {
        start,
        nTokens,
        nPages: cache.slots.length,
      });
    const { nKvHeads, headDim } = this.shape;
    const nPairs = pairCount(start, nTokens);
    const params = this.#uploads.uniform("append params", Uint32Array.of(nTokens, start, nKvHeads, nPairs));
    this.#dispatch(pass, this.kernels.append, "append", [params, call.k, call.v, table, k, v], {
      nGroups: Math.ceil((nPairs * nKvHeads * headDim) / 2 / FLAT_THREADS),
    });
  }

  #pagesOf({ cache, layer }: Pick<GpuAttendCall, "cache" | "layer">): CachePages {
    const table = this.#uploads.storage("page table", Uint32Array.from(cache.slots));
    return { ...this.#store.layer(layer, cache.slots), table };
  }

  /** Records append and attention. Buffers it reads through `call` must stay alive until the pass is submitted. */
  encode(pass: GPUComputePassEncoder, call: GpuAttendCall): void {
    const { blocks } = call;
    const pages = this.#pagesOf(call);
    this.#append(pass, { ...call, start: blocks.qStart, nTokens: blocks.qLen }, pages);
    const { nHeads, nKvHeads, headDim } = this.shape;

    const parts = this.#plan(blocks, this.#lists(call));
    const nPartials = parts.reduce((n, part) => n + part.nSplits, 0);
    const nRows = blocks.qLen * nHeads;
    const out = nPartials === 1 ? call.out : this.#partials.atLeast(nPartials * nRows * headDim * 4);
    const lse = this.#lse.atLeast(nPartials * nRows * 4);
    for (const part of parts) {
      const params = this.#attendParams(call, part);
      const buffers = [
        this.#uploads.uniform("attention params", params),
        call.q,
        pages.k,
        pages.v,
        pages.table,
        part.lists.buffer,
        out,
        lse,
        // Bound, though not read, where no page is quantized.
        pages.cold ?? pages.table,
      ];
      const kernel = part.isDecode ? this.kernels.decode : this.kernels.prefill;
      this.#dispatch(pass, kernel, part.isDecode ? "decode" : "prefill", buffers, {
        nGroups: part.tiles * blockCount(blocks) * nKvHeads,
        nSplits: part.nSplits,
      });
    }
    if (nPartials === 1) return;
    const merge = this.#uploads.uniform("merge params", Uint32Array.of(nRows, nPartials, 0, 0));
    this.#dispatch(pass, this.kernels.merge, "merge", [merge, out, lse, call.out], {
      nGroups: Math.ceil((nRows * headDim) / 4 / FLAT_THREADS),
    });
  }

  /**
   * Records the append, and the attention of sampled rows of the call on every page: log2 of the sum of 2^x, (rows,
   * nHeads, nPages), into `out`. `kernel` is what `sampleKernel` returned.
   */
  encodeSample(
    pass: GPUComputePassEncoder,
    call: Omit<GpuAttendCall, "selections">,
    kernel: GPUComputePipeline,
    rows: Uint32Array,
  ): void {
    const { blocks, scale, softcap = 0, window = 0 } = call;
    const { nHeads, nKvHeads } = this.shape;
    const pages = this.#pagesOf(call);
    this.#append(pass, { ...call, start: blocks.qStart, nTokens: blocks.qLen }, pages);
    const nPages = pageCount(blocks.qStart + blocks.qLen);
    const params = new Uint32Array(16);
    params.set([blocks.qLen, blocks.qStart, 1, rows.length, nHeads, nKvHeads, nPages]);
    new Float32Array(params.buffer).set([scale, softcap], 12);
    params.set([window, 1], 14);
    const buffers = [
      this.#uploads.uniform("sample params", params),
      call.q,
      pages.k,
      undefined,
      pages.table,
      this.#uploads.storage("sampled rows", Uint32Array.from(rows)),
      undefined,
      call.out,
      pages.cold ?? pages.table,
    ];
    this.#dispatch(pass, kernel, "sample", buffers, {
      nGroups: Math.ceil(nPages / SAMPLE_PAGES) * rows.length * nKvHeads,
    });
  }

  /** What `encodeSample` needs. */
  sampleKernel(): Promise<GPUComputePipeline> {
    return this.kernels.sample();
  }

  /** To be called after the pass was submitted, or given up: small buffers may then be reused. */
  submitted(): void {
    this.#uploads.submitted();
    this.#scratch.submitted();
  }

  /** Frees everything but the cached pages; after a failed pass, buffers may be invalid. */
  dropScratch(): void {
    this.#uploads.clear();
    this.#scratch.clear();
    this.#partials.forget();
    this.#lse.forget();
  }

  /** `kv`: bytes of pages in use; `scratch`: all other GPU bytes, free pages included. */
  memory(): { kv: number; scratch: number } {
    // Reserved slots get their bytes in `prepare`.
    const kv = Math.min(this.#pool.bytes, this.#store.bytes);
    return { kv, scratch: this.#store.bytes - kv + this.#uploads.bytes + this.#scratch.bytes };
  }

  /** Destroys all buffers; the device stays. Idempotent. */
  dispose(): void {
    this.dropScratch();
    this.#store.dispose();
  }

  /** The lists of a call: those of the host are uploaded. */
  #lists({ blocks, selections, onDevice }: GpuAttendCall): PageLists[] {
    if (onDevice) return [onDevice];
    const nBlocks = blockCount(blocks);
    return selections.map((selection) => {
      if (selection.nBlocks !== nBlocks)
        throw internalError(`a selection has ${selection.nBlocks} blocks, the queries ${nBlocks}`);
      return {
        ...this.#uploads.selection(selection),
        headShared: selection.headShared,
        // Positions inside a prefix are not those of its pages, and all of them lie before the queries.
        isCausal: selection.segment === "tail",
        longest: longestRow(selection),
      };
    });
  }

  /** Cuts a call into dispatches, one for each of its lists. */
  #plan(blocks: QueryBlocks, lists: readonly PageLists[]): Part[] {
    const { nHeads, nKvHeads } = this.shape;
    const nBlocks = blockCount(blocks);
    const group = nHeads / nKvHeads;
    const blockTokens = Math.min(blocks.blockSize, blocks.qLen);
    const isDecode = blockTokens === 1;
    const tiles = Math.ceil(
      isDecode ? group / this.kernels.decodeHeads : (blockTokens * group) / this.kernels.prefillRows,
    );
    const parts: Part[] = [];
    let firstPartial = 0;
    for (const one of lists) {
      const nSplits = splitCount(this.tuning, tiles * nBlocks * nKvHeads, one.longest);
      parts.push({ lists: one, isDecode, tiles, nSplits, firstPartial });
      firstPartial += nSplits;
    }
    if (parts.length === 0) throw internalError("attention without a selection");
    return parts;
  }

  /** `Params` of attention_prefill.wgsl and attention_decode.wgsl. */
  #attendParams(call: GpuAttendCall, part: Part): Uint32Array<ArrayBuffer> {
    const { blocks, scale, softcap = 0, window = 0 } = call;
    const { nHeads, nKvHeads } = this.shape;
    const { pagesAt, masksAt, headShared, isCausal } = part.lists;
    const nBlocks = blockCount(blocks);
    const params = new Uint32Array(16);
    params.set([blocks.qLen, blocks.qStart, Math.min(blocks.blockSize, blocks.qLen), nBlocks], 0);
    params.set([nHeads, nKvHeads, part.tiles, headShared ? 1 : 0], 4);
    params.set([pagesAt, masksAt, part.nSplits, part.firstPartial], 8);
    new Float32Array(params.buffer).set([scale, softcap], 12);
    params.set([isCausal ? window : 0, isCausal ? 1 : 0], 14);
    return params;
  }

  /** Binds `buffers` in order, those that the kernel has, and dispatches `nGroups` workgroups, folded over x and y, `nSplits` deep. */
  #dispatch(
    pass: GPUComputePassEncoder,
    pipeline: GPUComputePipeline,
    label: string,
    buffers: readonly (GPUBuffer | undefined)[],
    size: { nGroups: number; nSplits?: number },
  ): void {
    const entries = buffers.flatMap((buffer, binding) => (buffer ? [{ binding, resource: { buffer } }] : []));
    const bindings = this.device.handle.createBindGroup({
      label: `${this.device.label} ${label}`,
      layout: pipeline.getBindGroupLayout(0),
      entries,
    });
    pass.setPipeline(pipeline);
    pass.setBindGroup(0, bindings);
    const width = Math.min(size.nGroups, this.device.limits.maxComputeWorkgroupsPerDimension);
    pass.dispatchWorkgroups(width, Math.ceil(size.nGroups / width), size.nSplits ?? 1);
  }
}

/** Pairs of positions (2i, 2i + 1) that hold one of the tokens. */
function pairCount(start: number, nTokens: number): number {
  return Math.floor((start + nTokens - 1) / 2) - Math.floor(start / 2) + 1;
}

/** Pages of the longest list. */
function longestRow({ rowPtr }: Selection): number {
  let longest = 0;
  for (let row = 1; row < rowPtr.length; row++) longest = Math.max(longest, rowPtr[row]! - rowPtr[row - 1]!);
  return longest;
}
