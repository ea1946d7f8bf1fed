/**
 * Weights once more from where they came: a lost GPU takes them with it, and the host keeps no copy.
 *
 * That needs sources that can be read again. URLs, files and Blobs can; a stream cannot, nor can an ArrayBuffer once
 * it was streamed into the worker.
 */

import type { Ops } from "../backend/backend.ts";
import { InlayError } from "../errors.ts";
import { openModelFile } from "../gguf/model-file.ts";
import type { ByteSource } from "../gguf/source.ts";
import type { TensorInfo } from "../gguf/tensor-info.ts";
import type { ModelConfig } from "../model/config.ts";
import type { TensorInventory } from "../model/tensor-names.ts";
import { loadWeights, type ModelWeights } from "../model/weights.ts";

/** Puts the weights of a loaded model into `ops`. */
export type ReloadWeights = (ops: Ops, signal: AbortSignal) => Promise<ModelWeights>;

/**
 * How to load the weights of a model that was loaded from `sources`. The function rejects with `device-lost` if they
 * cannot be read again or have changed, and with the signal's reason.
 */
export function weightReloader(
  sources: readonly ByteSource[],
  inventory: TensorInventory,
  config: ModelConfig,
): ReloadWeights {
  const once = sources.find((source) => !source.isRestartable);
  if (once) {
    // Nothing else is kept: the source may hold the whole model.
    const { name } = once;
    return async () => {
      throw new InlayError(
        "device-lost",
        `the GPU device was lost, and the weights with it; the model came from ${name}, which cannot be read twice: ` +
          "load the model again",
        { source: name },
      );
    };
  }
  return async (ops, signal) => {
    const file = await openModelFile(sources, signal);
    try {
      const changed = changedTensor(inventory, file.tensors);
      if (changed !== undefined)
        throw new InlayError(
          "device-lost",
          `the GPU device was lost, and ${sources[0]!.name} is not the file any more that its weights came from ` +
            `(tensor ${changed} is another): load the model again`,
          { source: sources[0]!.name, tensor: changed },
        );
      const { weights } = await loadWeights(file, inventory, config, ops, () => {});
      return weights;
    } finally {
      await file.close();
    }
  };
}

/** The name of a used tensor that is not in `tensors` as it was. */
function changedTensor(inventory: TensorInventory, tensors: readonly TensorInfo[]): string | undefined {
  const now = new Map(tensors.map((tensor) => [tensor.name, tensor]));
  for (const before of inventory.used.values()) {
    const after = now.get(before.name);
    const isSame =
      after?.type === before.type &&
      after.dims.join() === before.dims.join() &&
      after.offset === before.offset &&
      after.shard === before.shard;
    if (!isSame) return before.name;
  }
  return undefined;
}
