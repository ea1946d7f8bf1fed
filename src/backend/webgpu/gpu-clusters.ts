/**
 * Looking up a pinned prompt's clusters on the GPU (Squeezed Attention, arXiv:2411.09688; algorithms.md B.3): centroids lie in
 * buffers, and per layer these kernels are recorded before its attention, into the same pass, so that queries stay where
 * they are:
 *
 *     cluster_logits   q, centroids -> scores of every query and entry
 *     cluster_scores   -> sigma, the estimated probability of one key of each entry
 *     (the two once more for the clusters of coarse clusters above their threshold, where there are those)
 *     cluster_select   -> page lists and masks, where attention_decode and attention_prefill read them
 *
 * They compute what wasm/cluster/score.cpp and src/attention/squeezed.ts do.
 *
 * What must be read and computed at least, at 20 keys a cluster: an f32 centroid for 20 keys and values of f16 is 1/20 of dense
 * attention's bytes, and its scores are 1/40 of the multiply-adds; cluster_logits does them in as many workgroups as there
 * are, the other two read a number per query and entry. Of 16,384 made-up tokens at a sparsity of 90 %, quads of keys with
 * one to be read are 11.5 %: 1/7.1 of dense attention with the lookup. Measured on SwiftShader, which computes more than it waits
 * for memory: dense 136 ms a layer and token, lookup 4.9 (1/28), attention 25 (1/5.4), together 1/4.5.
 */

import clusterLogits from "../../../shaders/cluster_logits.wgsl";
import clusterScores from "../../../shaders/cluster_scores.wgsl";
import clusterSelect from "../../../shaders/cluster_select.wgsl";
import {
  coarseEntries,
  entryCounts,
  type LayerClusters,
  SINK_ENTRIES,
} from "../../attention/cluster-index.ts";
import { blockCount, type QueryBlocks } from "../../attention/policy.ts";
import { leastKeys, type SqueezedPolicy, thresholdOf } from "../../attention/squeezed.ts";
import { internalError } from "../../errors.ts";
import { PAGE_TOKENS, pageCount } from "../../kv/page.ts";
import type { DeviceClusters, DeviceSelection, LookupCall, Tensor } from "../backend.ts";
import type { PageLists } from "./attention.ts";
import type { BufferGroup } from "./buffers.ts";
import { type GpuOps, gpuTensor } from "./gpu-ops.ts";
import type { GpuTensor } from "./gpu-tensor.ts";
import type { KernelShape } from "./kernels.ts";
import type { Kernel, Recorder } from "./recorder.ts";
import { BufferUse } from "./usage.ts";

/** Threads of the three kernels. */
const THREADS = 64;

/** Scores kept at a time: calls of many queries are scored block by block. */
const LOGITS_BYTES = 16 << 20;

/** Set as the parent of entries that always are looked up: those of the sinks. */
const NO_PARENT = 0xffffffff;

/** Pages of a list, as a share of all, where only the GPU knows them. */
const EXPECTED_SHARE = 1 / 4;

type ClusterShape = Pick<KernelShape, "nHeads" | "nKvHeads" | "headDim">;

interface ClusterKernels {
  readonly logits: Kernel;
  readonly scores: Kernel;
  readonly select: Kernel;
}

/** Page lists on the GPU, as attention_pages.wgsl describes them, with masks, a row for each KV head and block. */
export class GpuSelection implements DeviceSelection, PageLists {
  readonly headShared = false;
  readonly isCausal = true;

  constructor(
    readonly layer: number,
    private readonly lists: GpuTensor,
    readonly pagesAt: number,
    readonly masksAt: number,
    readonly longest: number,
  ) {}

  get buffer(): GPUBuffer {
    return this.lists.buffer;
  }

  [Symbol.dispose](): void {
    this.lists[Symbol.dispose]();
  }
}

/** The entries of one level of one layer. */
interface Level {
  readonly centroids: GPUBuffer;
  /** tiles (nKvHeads + 1); counts, spreads, ends, parents (nEntries each); firsts (nKvHeads, pages): see the shaders. */
  readonly index: GPUBuffer;
  /** Of all KV heads, each filled up to whole tiles. */
  readonly nEntries: number;
}

interface Layer {
  readonly fine: Level;
  readonly coarse: Level | undefined;
}

export class GpuClusters implements DeviceClusters {
  private constructor(
    private readonly ops: GpuOps,
    private readonly shape: ClusterShape,
    private readonly group: BufferGroup,
    private readonly kernels: ClusterKernels,
    private readonly policy: SqueezedPolicy,
    private readonly layers: readonly (Layer | undefined)[],
  ) {}

  /** Uploads the clusters into buffers of `group`. Rejects with `out-of-memory`, and nothing is kept then. */
  static async open(
    ops: GpuOps,
    shape: ClusterShape,
    group: BufferGroup,
    policy: SqueezedPolicy,
  ): Promise<GpuClusters> {
    const { recorder } = ops;
    const { index, options } = policy;
    const kernels = await compile(recorder, shape);
    const made: GPUBuffer[] = [];
    const byteLength = index.layers.reduce((sum, heads) => sum + (heads ? centroidBytes(heads) : 0), 0);
    try {
      const layers = await recorder.device.guarded(
        "putting a pinned prompt's clusters on the GPU",
        { byteLength },
        () =>
          index.layers.map((heads, layer) => {
            if (!heads) return undefined;
            const upload = (what: string, words: Uint32Array<ArrayBuffer> | Float32Array<ArrayBuffer>) => {
              const buffer = group.create(`${what}${layer}`, words.byteLength, BufferUse.storage);
              made.push(buffer);
              recorder.device.handle.queue.writeBuffer(buffer, 0, words);
              return buffer;
            };
            const level = (name: string, of: LayerClusters, nPages: number): Level => {
              const { centroids, words, nEntries } = packLevel(of, index.headDim, nPages);
              return {
                centroids: upload(`${name} centroids `, centroids),
                index: upload(`${name} clusters `, words),
                nEntries,
              };
            };
            return {
              fine: level("fine", heads, index.clusteredEnd / PAGE_TOKENS),
              coarse: options.coarse && level("coarse", coarseLevel(heads, index.headDim), 0),
            };
          }),
      );
      return new GpuClusters(ops, shape, group, kernels, policy, layers);
    } catch (error) {
      for (const buffer of made) group.destroy(buffer);
      throw error;
    }
  }

  counters(blocks: QueryBlocks): Tensor {
    return this.ops.upload(new Float32Array(2 * this.shape.nKvHeads * blockCount(blocks)), 2);
  }

  select(call: LookupCall, counters: Tensor): GpuSelection {
    using sigma = this.estimate(call);
    const { recorder, tensors } = this.ops;
    const { nKvHeads } = this.shape;
    const { qStart, qLen, blockSize } = call.blocks;
    const { thresholds, maxMissing, leastRead } = this.policy.options;
    const { index, nEntries } = this.#layer(call).fine;
    const nBlocks = blockCount(call.blocks);
    const nRows = nKvHeads * nBlocks;
    const capacity = pageCount(qStart + qLen);
    const countsAt = nKvHeads + 1;
    const endsAt = countsAt + 2 * nEntries;
    const params = new Uint32Array(16);
    params.set([qStart, qLen, blockSize, nBlocks, nKvHeads, nEntries]);
    params.set([this.policy.index.clusteredEnd / PAGE_TOKENS, capacity], 6);
    params.set([countsAt, endsAt, endsAt + 2 * nEntries], 8);
    // Estimates are at least 0: -1 is as good as -Infinity, which WGSL does not know.
    new Float32Array(params.buffer).set([Math.max(-1, thresholdOf(thresholds, blockSize)), maxMissing], 11);
    params[13] = leastKeys(leastRead, this.policy.index.clusteredEnd);
    const lists = tensors.create(1, 2 * nRows * (1 + capacity));
    try {
      const bindings = {
        0: recorder.params("cluster_select params", params),
        1: index,
        2: sigma.buffer,
        3: lists.buffer,
        4: gpuTensor(counters).buffer,
      };
      recorder.dispatch(this.kernels.select, bindings, nRows, 0);
    } catch (error) {
      lists[Symbol.dispose]();
      throw error;
    }
    const expected = Math.ceil(capacity * EXPECTED_SHARE);
    return new GpuSelection(call.layer, lists, 2 * nRows, nRows * (2 + capacity), expected);
  }

  /** Records the estimated probability of one key of each entry: (nBlocks, entries of all KV heads, each filled up to tiles of 32). */
  estimate(call: LookupCall): GpuTensor {
    const { fine, coarse } = this.#layer(call);
    const threshold = this.policy.options.coarse;
    if (!coarse || !threshold) return this.#score(call, fine);
    using above = this.#score(call, coarse);
    return this.#score(call, fine, {
      sigma: above,
      threshold: thresholdOf(threshold, call.blocks.blockSize),
    });
  }

  /** Frees the centroids. Idempotent. */
  [Symbol.dispose](): void {
    for (const layer of this.layers)
      for (const level of [layer?.fine, layer?.coarse])
        for (const buffer of level ? [level.centroids, level.index] : []) this.group.destroy(buffer);
  }

  #layer({ layer }: LookupCall): Layer {
    const made = this.layers[layer];
    if (!made) throw internalError(`layer ${layer} has no clusters`);
    return made;
  }

  /** `gate`: estimates of the coarse entries; clusters of those that are not above the threshold count as not there. */
  #score(call: LookupCall, level: Level, gate?: { sigma: GpuTensor; threshold: number }): GpuTensor {
    const { recorder, tensors } = this.ops;
    const { nHeads, nKvHeads, headDim } = this.shape;
    const { blocks, scale, softcap = 0 } = call;
    const { qLen, blockSize } = blocks;
    const { nEntries } = level;
    const nBlocks = blockCount(blocks);
    const rowQuads = Math.ceil((Math.min(blockSize, qLen) * nHeads) / nKvHeads / 4);
    const step = Math.max(1, Math.min(nBlocks, Math.floor(LOGITS_BYTES / (16 * rowQuads * nEntries))));
    const sigma = tensors.create(nBlocks, nEntries);
    try {
      using logits = tensors.create(step * rowQuads, 4 * nEntries);
      for (let first = 0; first < nBlocks; first += step) {
        const n = Math.min(step, nBlocks - first);
        const countsAt = nKvHeads + 1;
        const shared = [qLen, blockSize, nHeads, nKvHeads, nEntries, rowQuads, first, n];
        const params = new Uint32Array(16);
        params.set([...shared, gate?.sigma.width ?? 0]);
        new Float32Array(params.buffer).set([Math.max(-1, gate?.threshold ?? -1), scale, softcap], 9);
        params.set([countsAt, countsAt + nEntries, countsAt + 3 * nEntries], 12);
        const logitsBindings = {
          0: recorder.params("cluster_logits params", params),
          1: gpuTensor(call.q).buffer,
          2: level.centroids,
          3: level.index,
          4: (gate?.sigma ?? sigma).buffer,
          5: logits.buffer,
        };
        const invocations = n * rowQuads * (nEntries / 4);
        const cost = 16 * headDim * invocations;
        recorder.dispatch(this.kernels.logits, logitsBindings, Math.ceil(invocations / THREADS), cost);
        const words = Uint32Array.of(...shared, countsAt, 0, 0, 0);
        const scoresBindings = {
          0: recorder.params("cluster_scores params", words),
          1: level.index,
          2: logits.buffer,
          3: sigma.buffer,
        };
        recorder.dispatch(this.kernels.scores, scoresBindings, n * nKvHeads, 0);
      }
      return sigma;
    } catch (error) {
      sigma[Symbol.dispose]();
      throw error;
    }
  }
}

async function compile(recorder: Recorder, { headDim }: ClusterShape): Promise<ClusterKernels> {
  const threads = { wg_size: THREADS };
  const [logits, scores, select] = await Promise.all([
    recorder.kernel({
      name: "cluster_logits",
      source: clusterLogits,
      constants: { ...threads, head_dim: headDim },
    }),
    recorder.kernel({ name: "cluster_scores", source: clusterScores, constants: threads }),
    recorder.kernel({ name: "cluster_select", source: clusterSelect, constants: threads }),
  ]);
  return { logits, scores, select };
}

function coarseLevel(heads: LayerClusters, headDim: number): LayerClusters {
  return heads.map((head) => coarseEntries(head, headDim));
}

function centroidBytes(heads: LayerClusters): number {
  return heads.reduce((sum, { centroids }) => sum + centroids.byteLength, 0);
}

/** A level as the shaders read it. `nPages`: clustered ones, whose first entries are listed. */
function packLevel(heads: LayerClusters, headDim: number, nPages: number) {
  const tiles = [0];
  for (const { ends } of heads) tiles.push(tiles.at(-1)! + Math.ceil(ends.length / PAGE_TOKENS));
  const nEntries = tiles.at(-1)! * PAGE_TOKENS;
  const centroids = new Float32Array(nEntries * headDim);
  const counts = new Uint32Array(nEntries);
  const spreads = new Float32Array(nEntries);
  const ends = new Uint32Array(nEntries);
  const parents = new Uint32Array(nEntries).fill(NO_PARENT);
  const firsts = new Uint32Array(heads.length * nPages);
  let coarseTiles = 0;
  for (const [h, head] of heads.entries()) {
    const first = tiles[h]! * PAGE_TOKENS;
    counts.set(entryCounts(head), first);
    spreads.set(head.spreads, first);
    ends.set(head.ends, first);
    for (const [e, end] of head.ends.entries()) {
      const tile = (first + e - (e % PAGE_TOKENS)) * headDim + (e % PAGE_TOKENS);
      for (let c = 0; c < headDim; c++) centroids[tile + c * PAGE_TOKENS] = head.centroids[e * headDim + c]!;
      // Pages that begin in this entry.
      const from = Math.ceil((e === 0 ? 0 : head.ends[e - 1]!) / PAGE_TOKENS);
      for (let page = from; page < nPages && page * PAGE_TOKENS < end; page++)
        firsts[h * nPages + page] = first + e;
    }
    for (const [i, end] of head.coarseEnds.entries())
      parents.fill(
        coarseTiles * PAGE_TOKENS + SINK_ENTRIES + i,
        first + SINK_ENTRIES + (i === 0 ? 0 : head.coarseEnds[i - 1]!),
        first + SINK_ENTRIES + end,
      );
    coarseTiles += Math.ceil((SINK_ENTRIES + head.coarseEnds.length) / PAGE_TOKENS);
  }
  const parts = [Uint32Array.from(tiles), counts, new Uint32Array(spreads.buffer), ends, parents, firsts];
  const words = new Uint32Array(parts.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of parts) {
    words.set(part, at);
    at += part.length;
  }
  return { centroids, words, nEntries };
}
