/**
 * Attention of the webgpu pair: records into the same pass as GpuOps, so that q, k, v and the attended rows never leave
 * the GPU.
 *
 * Errors of recorded work come late. Keys and values count as cached once the forward call returns, which it may do
 * without reading anything back; so the last layer waits until the device has accepted everything that wrote to pages.
 */

import { blockCount, type SampledMasses, type Selection } from "../../attention/policy.ts";
import type { SqueezedPolicy } from "../../attention/squeezed.ts";
import { internalError } from "../../errors.ts";
import { PAGE_TOKENS, pageCount } from "../../kv/page.ts";
import type { PagedCache } from "../../kv/paged-cache.ts";
import type { AttendCall, AttentionOps, DeviceClusters, Tensor, UnselectedCall } from "../backend.ts";
import { GpuAttention } from "./attention.ts";
import { BufferGroup } from "./buffers.ts";
import { GpuClusters, GpuSelection } from "./gpu-clusters.ts";
import { type GpuOps, gpuTensor } from "./gpu-ops.ts";
import type { KernelShape } from "./kernels.ts";
import { pageMasses } from "./page-masses.ts";

export class GpuPairAttention implements AttentionOps {
  readonly device = "webgpu";
  /** Submits before pages were last prepared; the pass that is being recorded may touch them then. */
  #preparedAt = -1;
  /** Of pinned prompts. */
  readonly #clusters: BufferGroup;

  private constructor(
    private readonly ops: GpuOps,
    private readonly attention: GpuAttention,
  ) {
    this.#clusters = new BufferGroup(ops.recorder.device, "clusters");
    ops.recorder.addClient(attention);
  }

  /** Compiles the kernels for `shape` on the device of `ops`. */
  static async create(ops: GpuOps, shape: KernelShape): Promise<GpuPairAttention> {
    return new GpuPairAttention(ops, await GpuAttention.create(ops.recorder.device, shape));
  }

  /** An empty cache; also on a lost device, whose loss the first call with it reports. */
  createCache(): PagedCache {
    return this.attention.createCache();
  }

  async attend(call: AttendCall): Promise<Tensor> {
    const { recorder, tensors } = this.ops;
    const { nLayers, nHeads, headDim } = this.attention.shape;
    this.#check(call);
    const onDevice = gpuSelection(call);
    // What is recorded since the last submit does not touch pages yet, or pages were prepared for it.
    if (this.#preparedAt !== recorder.nSubmits) await this.attention.prepare();
    recorder.assertLive();
    this.#preparedAt = recorder.nSubmits;
    const out = tensors.create(call.q.nTokens, nHeads * headDim);
    try {
      const [q, k, v] = [call.q, call.k, call.v].map((tensor) => gpuTensor(tensor).buffer);
      this.attention.encode(recorder.pass(), { ...call, onDevice, q: q!, k: k!, v: v!, out: out.buffer });
      recorder.spend(this.#cost({ ...call, onDevice }));
      if (call.layer === nLayers - 1) {
        const nTokens = call.blocks.qStart + call.blocks.qLen;
        await recorder.settle(`a forward call up to token ${nTokens}`, { nTokens, ...this.memory() });
      }
      return out;
    } catch (error) {
      out[Symbol.dispose]();
      throw error;
    }
  }

  async sampleMasses(call: UnselectedCall, rows: Uint32Array): Promise<SampledMasses> {
    const { recorder, tensors } = this.ops;
    const { nHeads, nKvHeads, headDim } = this.attention.shape;
    this.#check(call);
    const kernel = await this.attention.sampleKernel();
    if (this.#preparedAt !== recorder.nSubmits) await this.attention.prepare();
    recorder.assertLive();
    this.#preparedAt = recorder.nSubmits;
    const nPages = pageCount(call.blocks.qStart + call.blocks.qLen);
    using lse = tensors.create(rows.length * nHeads, nPages);
    const [q, k, v] = [call.q, call.k, call.v].map((tensor) => gpuTensor(tensor).buffer);
    const buffers = { q: q!, k: k!, v: v!, out: lse.buffer };
    this.attention.encodeSample(recorder.pass(), { ...call, ...buffers }, kernel, rows);
    recorder.spend(rows.length * nPages * PAGE_TOKENS * nHeads * headDim);
    return pageMasses(await this.ops.read(lse), rows, call.blocks, { nHeads, nKvHeads });
  }

  openClusters(policy: SqueezedPolicy): Promise<DeviceClusters> {
    this.ops.recorder.assertLive();
    return GpuClusters.open(this.ops, this.attention.shape, this.#clusters, policy);
  }

  memory(): { kv: number; scratch: number } {
    const { kv, scratch } = this.attention.memory();
    return { kv, scratch: scratch + this.#clusters.bytes };
  }

  /** Destroys all buffers; the device stays. Idempotent. */
  dispose(): void {
    this.attention.dispose();
    this.#clusters.clear();
  }

  /** Multiply-adds of a call: q·k and p·v over the listed pages. */
  #cost({ blocks, selections, onDevice }: AttendCall & { onDevice?: GpuSelection | undefined }): number {
    const { nHeads, nKvHeads, headDim } = this.attention.shape;
    const queries = Math.ceil(blocks.qLen / blockCount(blocks));
    const pages = ({ page, headShared }: Selection) => page.length / (headShared ? 1 : nKvHeads);
    const nPages = onDevice?.longest ?? selections.reduce((sum, selection) => sum + pages(selection), 0);
    return 2 * queries * nPages * PAGE_TOKENS * nHeads * headDim;
  }

  #check({ q, k, v, blocks, layer }: UnselectedCall): void {
    const { nHeads, nKvHeads, headDim, nLayers } = this.attention.shape;
    const isRow = (t: Tensor, heads: number) => t.nTokens === blocks.qLen && t.width === heads * headDim;
    if (!isRow(q, nHeads) || !isRow(k, nKvHeads) || !isRow(v, nKvHeads) || blockCount(blocks) < 1)
      throw internalError(
        `q, k or v does not fit ${blocks.qLen} tokens of ${nHeads}:${nKvHeads} heads of ${headDim}`,
      );
    if (layer < 0 || layer >= nLayers) throw internalError(`layer ${layer} of ${nLayers}`);
  }
}

function gpuSelection({ onDevice }: AttendCall): GpuSelection | undefined {
  if (onDevice === undefined || onDevice instanceof GpuSelection) return onDevice;
  throw internalError("a selection of another device was passed to the WebGPU backend");
}
