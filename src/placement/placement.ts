/**
 * `device: "auto"`: where attention runs, decided by measuring it on the user's device.
 *
 * Only `wasm` and `hybrid` are candidates; `webgpu` runs when it is asked for. The linear algebra of the two is the
 * same, so one layer's attention is timed on both: reading a prompt and answering at two context lengths. The result is
 * remembered per adapter, model shape and version, since it is a property of the machine (FlashDecoding++'s heuristic
 * dataflow, Hong et al. 2023, arXiv:2311.01282, sec. 5).
 */

import type { WasmOps } from "../backend/wasm/wasm-ops.ts";
import type { DeviceRequest } from "../engine/device-pair.ts";
import { openGpu } from "../engine/gpu.ts";
import { InlayError } from "../errors.ts";
import type { KvShape } from "../kv/page.ts";
import { type AttentionTimes, measureGpu, measureWasm } from "./measure.ts";
import { readPlacement, writePlacement } from "./remembered.ts";

/** A device, and why. */
export interface Placement {
  readonly device: "wasm" | "hybrid";
  readonly reason: string;
}

/** Changes when the kernels change so much that old measurements mislead. */
const VERSION = 1;

/** Answer tokens of the request that devices are compared for. */
const ANSWER_TOKENS = 128;

/** Longest context that is measured; what is faster there is faster beyond. */
const LONGEST = 4096;

/** Decides for a model of this shape. Never rejects for want of a GPU: then it is WASM, and the reason says why. */
export async function choosePlacement(
  request: DeviceRequest,
  ops: WasmOps,
  shape: KvShape,
): Promise<Placement> {
  let gpu: Awaited<ReturnType<typeof openGpu>>;
  try {
    gpu = await openGpu(request.host);
  } catch (error) {
    if (error instanceof InlayError) return { device: "wasm", reason: `auto: ${error.message}` };
    throw error;
  }
  try {
    if (gpu.isSoftware)
      return {
        device: "wasm",
        reason: `auto: the GPU is software (${gpu.adapterInfo}), which is slower than WASM`,
      };
    const nTokens = Math.min(request.contextLength, LONGEST);
    const key = [VERSION, gpu.adapterInfo, nTokens, ...Object.values(shape)].join("|");
    const known = await readPlacement(key);
    if (known) return { ...known, reason: `${known.reason} (remembered)` };
    const lengths = [Math.ceil(nTokens / 4), nTokens];
    const placement = compare(
      await measureWasm(ops, shape, lengths),
      await measureGpu(gpu, ops, { ...shape, format: "f16" }, lengths),
      shape.nLayers,
    );
    await writePlacement(key, placement);
    return placement;
  } catch (error) {
    // A GPU that fails while it is measured is not used; anything else is a fault of ours.
    if (!(error instanceof InlayError)) throw error;
    return { device: "wasm", reason: `auto: measuring the GPU failed: ${error.message}` };
  } finally {
    gpu.dispose();
  }
}

/** The faster one for a prompt of the longest measured length and an answer of ANSWER_TOKENS. */
function compare(
  wasm: readonly AttentionTimes[],
  gpu: readonly AttentionTimes[],
  nLayers: number,
): Placement {
  const total = (times: readonly AttentionTimes[]) => nLayers * requestMs(times);
  const wasmMs = total(wasm);
  const gpuMs = total(gpu);
  const tokens = wasm.at(-1)!.context;
  return {
    device: gpuMs < wasmMs ? "hybrid" : "wasm",
    reason:
      `auto: attention for a ${tokens}-token prompt and ${ANSWER_TOKENS} answer tokens takes about ` +
      `${wasmMs.toFixed(0)} ms in WASM and ${gpuMs.toFixed(0)} ms on the GPU`,
  };
}

/** One layer's attention for the whole request: prefill cost grows linearly between the measured lengths. */
function requestMs(times: readonly AttentionTimes[]): number {
  const [short, long] = [times[0]!, times.at(-1)!];
  const prefill = (long.context * (short.prefillMsPerToken + long.prefillMsPerToken)) / 2;
  return prefill + ANSWER_TOKENS * long.decodeMs;
}
