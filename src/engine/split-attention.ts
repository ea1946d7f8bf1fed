/**
 * Attention of the hybrid pair. The first 256 tokens of a sequence are attended to in WASM: a GPU's read-back costs more
 * there than the attention, and WASM keeps ggml's order of operations (wasm/kernels/attention_exact.h). The tokens after
 * them are attended to on the GPU, which gets each layer's first keys and values when it first needs them.
 */

import type { SampledMasses } from "../attention/policy.ts";
import type { AttendCall, AttentionOps, Tensor, UnselectedCall } from "../backend/backend.ts";
import type { WasmAttention } from "../backend/wasm/wasm-attention.ts";
import type { AppendCall } from "../backend/webgpu/hybrid-attention.ts";
import { internalError } from "../errors.ts";
import type { CacheCompanion, PagedCache } from "../kv/paged-cache.ts";

/** Tokens attended to in WASM: kExactKeys of wasm/kernels/attention_exact.h. */
export const NEAR_TOKENS = 256;

/** Attention on the GPU, with a way to hand it rows that were computed elsewhere. */
export interface FarAttention extends AttentionOps {
  append(call: AppendCall): Promise<void>;
}

/** The first tokens of a cache in WASM, and how many of each layer's the GPU has too. */
class NearTokens implements CacheCompanion {
  /** Tokens of layer i that the GPU has. */
  readonly onGpu: number[] = [];
  /** Tokens written by calls that are not committed yet. */
  #pending = 0;

  constructor(
    readonly cache: PagedCache,
    private readonly bring: (near: NearTokens, cache: PagedCache, layer: number) => Promise<void>,
  ) {}

  /** Every token before `nTokens` is here, so the next can be attended to here. */
  isComplete(nTokens: number): boolean {
    return this.cache.nTokens === nTokens;
  }

  /** Makes room for a call of `nTokens` tokens. */
  reserve(nTokens: number): void {
    this.cache.reserve(nTokens);
    this.#pending = nTokens;
  }

  commit(nTokens: number): void {
    if (this.#pending === 0 || this.cache.nTokens + this.#pending !== nTokens) return;
    this.cache.commit(this.#pending);
    this.#pending = 0;
  }

  restorable(nTokens: number): number {
    return nTokens;
  }

  truncate(nTokens: number): void {
    this.#pending = 0;
    if (nTokens < this.cache.nTokens) this.cache.truncate(nTokens);
    for (const [layer, n] of this.onGpu.entries()) this.onGpu[layer] = Math.min(n ?? 0, nTokens);
  }

  fork(): NearTokens {
    const fork = new NearTokens(this.cache.fork(), this.bring);
    fork.onGpu.push(...this.onGpu);
    return fork;
  }

  flush(cache: PagedCache, layer: number): Promise<void> {
    return this.bring(this, cache, layer);
  }

  dispose(): void {
    this.cache.dispose();
  }
}

export class SplitAttention implements AttentionOps {
  readonly device = "webgpu";
  readonly boundary = NEAR_TOKENS;

  constructor(
    private readonly near: WasmAttention,
    private readonly far: FarAttention,
  ) {}

  createCache(): PagedCache {
    const cache = this.far.createCache();
    cache.attach(new NearTokens(this.near.createCache(), this.#bring));
    return cache;
  }

  async attend(call: AttendCall): Promise<Tensor> {
    const near = await this.#nearCache(call);
    return near ? this.near.attend({ ...call, cache: near }) : this.far.attend(call);
  }

  async sampleMasses(call: UnselectedCall, rows: Uint32Array): Promise<SampledMasses> {
    const near = await this.#nearCache(call);
    return near ? this.near.sampleMasses({ ...call, cache: near }, rows) : this.far.sampleMasses(call, rows);
  }

  /** Where the first tokens are, with room for the call's, if it is attended to there; else the GPU has them then. */
  async #nearCache({
    cache,
    blocks: { qStart, qLen },
    layer,
  }: UnselectedCall): Promise<PagedCache | undefined> {
    const end = qStart + qLen;
    if (qStart < NEAR_TOKENS && end > NEAR_TOKENS)
      throw internalError(`attention across token ${NEAR_TOKENS}`, { qStart, qLen });
    const near = cache.companion(NearTokens);
    if (!near) throw internalError("a cache of another device was passed to the hybrid pair");
    if (end <= NEAR_TOKENS && near.isComplete(qStart)) {
      near.reserve(qLen);
      return near.cache;
    }
    await this.#bring(near, cache, layer);
    return undefined;
  }

  memory(): { kv: number; scratch: number } {
    const far = this.far.memory();
    return { kv: far.kv + this.near.memory().kv, scratch: far.scratch };
  }

  dispose(): void {
    this.far.dispose();
  }

  /** Gives the GPU those of the layer's first tokens that it lacks. */
  readonly #bring = async (near: NearTokens, cache: PagedCache, layer: number): Promise<void> => {
    const start = near.onGpu[layer] ?? 0;
    const end = near.cache.nTokens;
    if (start >= end) return;
    const { k, v } = this.near.rows(near.cache, layer, start, end);
    try {
      await this.far.append({ layer, cache, k, v, start });
    } finally {
      k[Symbol.dispose]();
      v[Symbol.dispose]();
    }
    near.onGpu[layer] = end;
  };
}
