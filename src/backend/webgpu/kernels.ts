/**
 * The attention kernels, and those that code pages, compiled for one model shape: which variant of each shader fits this device, and
 * how many workgroups a call is cut into.
 */

import attentionDecode from "../../../shaders/attention_decode.wgsl";
import attentionMerge from "../../../shaders/attention_merge.wgsl";
import attentionPages from "../../../shaders/attention_pages.wgsl";
import attentionPrefill from "../../../shaders/attention_prefill.wgsl";
import attentionSample from "../../../shaders/attention_sample.wgsl";
import kvAppend from "../../../shaders/kv_append.wgsl";
import kvDequantize from "../../../shaders/kv_dequantize.wgsl";
import kvQuantize from "../../../shaders/kv_quantize.wgsl";
import pageCodes from "../../../shaders/page_codes.wgsl";
import { internalError } from "../../errors.ts";
import { PAGE_TOKENS } from "../../kv/page.ts";
import { CLIP, CODE_BITS, groupChannels, type QuantizedFormat } from "../../kv/quantize.ts";
import type { GpuDevice } from "./device.ts";
import type { PageCodec, PageStoreShape } from "./page-store.ts";

/** What may be measured and set per device. */
export interface AttentionTuning {
  /** Query rows of a prefill workgroup / 4; its threads / 8. */
  readonly rowGroups: number;
  /** Keep a prefill tile's queries in workgroup memory, where it suffices. */
  readonly stageQueries: boolean;
  /** Threads of a decode workgroup: 64, 128 or 256. */
  readonly decodeThreads: number;
  /** Workgroups that keep the device busy, about 4 per compute unit. */
  readonly targetGroups: number;
  /** A split reads at least this many tokens. */
  readonly minSplitTokens: number;
  /** Splits of every page list, instead of the rule of algorithms.md F.3. */
  readonly nSplits?: number | undefined;
}

/**
 * Where nothing was measured. Software adapters have no workgroup memory to gain from, and few cores: starting a workgroup
 * costs SwiftShader as much as reading a page with it.
 */
export function defaultTuning(device: GpuDevice): AttentionTuning {
  return {
    rowGroups: 8,
    stageQueries: !device.isSoftware,
    decodeThreads: 64,
    targetGroups: device.isSoftware ? 8 : 96,
    minSplitTokens: 256,
  };
}

/** The shape the kernels are compiled for. */
export interface KernelShape extends PageStoreShape {
  readonly nHeads: number;
}

/** Threads of the kernels that do no tiling. */
export const FLAT_THREADS = 64;

const MAT4_BYTES = 64;

export interface AttentionKernels {
  readonly append: GPUComputePipeline;
  readonly prefill: GPUComputePipeline;
  readonly decode: GPUComputePipeline;
  readonly merge: GPUComputePipeline;
  /** Compiled when it is first asked for: few models read prompts by sampling. */
  sample(): Promise<GPUComputePipeline>;
  /** Where old pages are quantized. */
  readonly codec: PageCodec | undefined;
  /** (query, head of the group) rows of one prefill workgroup. */
  readonly prefillRows: number;
  /** Query heads of one decode workgroup. */
  readonly decodeHeads: number;
}

/** Compiles the variants for `shape`. Throws `internal` for shapes that the kernels do not cover. */
export async function compileKernels(
  device: GpuDevice,
  shape: KernelShape,
  tuning: AttentionTuning,
): Promise<AttentionKernels> {
  const { headDim, nHeads, nKvHeads } = shape;
  if (headDim % 8 !== 0 || headDim < 8 || headDim > 256 || nHeads % nKvHeads !== 0)
    throw internalError(
      `attention with headDim ${headDim}, ${nHeads} heads and ${nKvHeads} KV heads has no kernel`,
    );
  const page = { head_dim: headDim, page_f16: shape.format === "f16" ? 1 : 0 };
  const decodeHeads = chooseDecodeHeads(device, shape, tuning);
  const cold = shape.cold && { cold_bits: CODE_BITS[shape.cold], range_channels: groupChannels(headDim) };
  const prefillConstants = {
    ...page,
    ...cold,
    row_groups: tuning.rowGroups,
    stage_q:
      tuning.stageQueries && prefillBytes(shape, tuning.rowGroups, true) <= workgroupBytes(device) ? 1 : 0,
  };
  const [append, prefill, decode, merge, codec] = await Promise.all([
    device.pipeline({ name: "kv_append", source: kvAppend, constants: { ...page, wg_size: FLAT_THREADS } }),
    device.pipeline({
      name: "attention_prefill",
      source: joined(pageCodes, attentionPages, attentionPrefill),
      constants: prefillConstants,
    }),
    device.pipeline({
      name: "attention_decode",
      source: joined(pageCodes, attentionPages, attentionDecode),
      constants: { ...page, ...cold, heads: decodeHeads, wg_size: tuning.decodeThreads },
    }),
    device.pipeline({
      name: "attention_merge",
      source: attentionMerge,
      constants: { head_dim: headDim, wg_size: FLAT_THREADS },
    }),
    shape.cold && compileCodec(device, shape.cold, { ...page, ...cold, wg_size: FLAT_THREADS }),
  ]);
  let sample: Promise<GPUComputePipeline> | undefined;
  return {
    ...{ append, prefill, decode, merge, codec },
    prefillRows: 4 * tuning.rowGroups,
    decodeHeads,
    sample: () => {
      sample ??= device.pipeline({
        name: "attention_sample",
        source: joined(pageCodes, attentionPages, attentionSample),
        constants: { ...page, ...cold },
      });
      return sample;
    },
  };
}

/** One module of several files: WGSL has no imports, and its declarations may stand in any order. */
function joined(...sources: readonly string[]): string {
  return sources.join("\n");
}

async function compileCodec(
  device: GpuDevice,
  format: QuantizedFormat,
  constants: Readonly<Record<string, number>>,
): Promise<PageCodec> {
  const [quantize, dequantize] = await Promise.all([
    device.pipeline({
      name: "kv_quantize",
      source: kvQuantize,
      constants: { ...constants, clip: CLIP[format] },
    }),
    device.pipeline({ name: "kv_dequantize", source: joined(pageCodes, kvDequantize), constants }),
  ]);
  return { quantize, dequantize, dequantizeThreads: FLAT_THREADS };
}

/**
 * Splits of each page list, algorithms.md F.3: enough workgroups to keep the device busy, as long as every split
 * has enough to read. `nGroups` workgroups are there without splitting, `rowPages` is the longest list.
 */
export function splitCount(tuning: AttentionTuning, nGroups: number, rowPages: number): number {
  if (tuning.nSplits !== undefined) return tuning.nSplits;
  const most = Math.ceil((rowPages * PAGE_TOKENS) / tuning.minSplitTokens);
  return Math.max(1, Math.min(Math.ceil(tuning.targetGroups / nGroups), most));
}

/** 1, 4 or 8 query heads per workgroup: all of the group if they fit, since pages are read once per workgroup. */
function chooseDecodeHeads(device: GpuDevice, shape: KernelShape, tuning: AttentionTuning): number {
  const group = shape.nHeads / shape.nKvHeads;
  if (group === 1) return 1;
  if (group <= 4) return 4;
  return decodeBytes(shape, tuning.decodeThreads, 8) <= workgroupBytes(device) ? 8 : 4;
}

/** Workgroup memory of attention_prefill. */
function prefillBytes(shape: KernelShape, rowGroups: number, stagesQueries: boolean): number {
  const queries = stagesQueries ? (rowGroups * shape.headDim) / 4 : 1;
  return (queries + 8 * rowGroups) * MAT4_BYTES + 8 * rowGroups * 16;
}

/** Workgroup memory of attention_decode. */
function decodeBytes(shape: KernelShape, threads: number, heads: number): number {
  const headQuads = Math.ceil(heads / 4);
  const matrices = headQuads * (shape.headDim / 4 + threads);
  return matrices * MAT4_BYTES + threads * 1.125 * 32 + (threads / 8) * 4;
}

/** Half of what the device has, at least the 16 KiB that all have, so that two workgroups fit a compute unit. */
function workgroupBytes(device: GpuDevice): number {
  return Math.max(16384, device.limits.maxComputeWorkgroupStorageSize / 2);
}
