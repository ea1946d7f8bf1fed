/**
 * Which tensors a model must have, under GGUF's names and with which shapes, and whether a file has them.
 *
 * Shapes are in GGUF's order, fastest axis first: a weight that maps cols inputs to rows outputs is [cols, rows].
 */

import { InlayError } from "../errors.ts";
import type { TensorInfo } from "../gguf/tensor-info.ts";
import type { ModelConfig } from "./config.ts";

export interface ExpectedTensor {
  readonly name: string;
  readonly dims: readonly number[];
}

/** The tensors of a file that the forward pass uses, and those it does not. */
export interface TensorInventory {
  /** Every expected tensor, by GGUF name, in the order of `expectedTensors`. */
  readonly used: ReadonlyMap<string, TensorInfo>;
  /** Names of tensors that are not used, such as precomputed RoPE tables of old converters. */
  readonly unused: readonly string[];
}

/** Vectors are read element by element, not by blocks. */
const VECTOR_TYPES: readonly string[] = ["F32", "F16", "BF16"];

/** Parts of a layer that change its result; a file that has one we do not compute must not run as if it had not. */
const MEANINGFUL =
  /\.bias$|\.scale$|_norm(_\d)?\.weight$|_exps\.|_shexp\.|attn_sinks|attn_qkv\.weight$|^output|^token_/;

/** All tensors that the forward pass of this model reads, in layer order. */
export function expectedTensors(config: ModelConfig): ExpectedTensor[] {
  const { dModel, dFfn, vocabSize, headDim } = config;
  const dQuery = config.nHeads * headDim;
  const dKv = config.nKvHeads * headDim;
  const expected: ExpectedTensor[] = [{ name: "token_embd.weight", dims: [dModel, vocabSize] }];
  if (config.rope.hasFactors) expected.push({ name: "rope_freqs.weight", dims: [config.rope.nRot / 2] });
  for (let layer = 0; layer < config.nLayers; layer++) {
    const add = (name: string, ...dims: number[]) => expected.push({ name: `blk.${layer}.${name}`, dims });
    add("attn_norm.weight", dModel);
    add("attn_q.weight", dModel, dQuery);
    add("attn_k.weight", dModel, dKv);
    add("attn_v.weight", dModel, dKv);
    if (config.hasQkvBias) {
      add("attn_q.bias", dQuery);
      add("attn_k.bias", dKv);
      add("attn_v.bias", dKv);
    }
    if (config.hasQkNorm) {
      add("attn_q_norm.weight", headDim);
      add("attn_k_norm.weight", headDim);
    }
    add("attn_output.weight", dQuery, dModel);
    add("ffn_norm.weight", dModel);
    add("ffn_gate.weight", dModel, dFfn);
    add("ffn_up.weight", dModel, dFfn);
    add("ffn_down.weight", dFfn, dModel);
  }
  expected.push({ name: "output_norm.weight", dims: [dModel] });
  if (!config.hasTiedEmbeddings) expected.push({ name: "output.weight", dims: [dModel, vocabSize] });
  return expected;
}

/**
 * Finds every expected tensor in the file. Throws `invalid-model` for a missing or wrongly shaped one, and
 * `unsupported-model` for an additional one that would change the result.
 */
export function takeInventory(config: ModelConfig, tensors: readonly TensorInfo[]): TensorInventory {
  const inFile = new Map(tensors.map((t) => [t.name, t]));
  const used = new Map<string, TensorInfo>();
  for (const expected of expectedTensors(config)) {
    used.set(expected.name, checked(expected, inFile.get(expected.name)));
  }
  const unused = [...inFile.keys()].filter((name) => !used.has(name));
  const meaningful = unused.find((name) => MEANINGFUL.test(name) && layerOf(name) < config.nLayers);
  if (meaningful !== undefined) {
    throw new InlayError(
      "unsupported-model",
      `the model has the tensor ${meaningful}, which the ${config.architecture} forward pass does not compute; ` +
        "its output would be wrong without it",
      { tensor: meaningful },
    );
  }
  return { used, unused };
}

function checked(expected: ExpectedTensor, found: TensorInfo | undefined): TensorInfo {
  const { name, dims } = expected;
  if (!found) {
    throw new InlayError("invalid-model", `the tensor ${name} is missing; it must have the shape [${dims}]`, {
      tensor: name,
      expected: dims,
    });
  }
  // Trailing ones are how some converters write vectors.
  const shape = found.dims.slice(0, Math.max(dims.length, found.dims.findLastIndex((d) => d !== 1) + 1));
  if (shape.join() !== dims.join()) {
    throw new InlayError(
      "invalid-model",
      `the tensor ${name} has the shape [${found.dims}]; it must be [${dims}]`,
      {
        tensor: name,
        expected: dims,
        found: found.dims,
      },
    );
  }
  if (dims.length === 1 && !VECTOR_TYPES.includes(found.type.name)) {
    throw new InlayError(
      "unsupported-model",
      `the tensor ${name} is a vector of type ${found.type.name}; vectors can be ${VECTOR_TYPES.join(", ")}`,
      { tensor: name, type: found.type.name },
    );
  }
  return found;
}

/** The layer that a tensor belongs to; -1 for those outside the layers. */
function layerOf(name: string): number {
  const match = /^blk\.(\d+)\./.exec(name);
  return match ? Number(match[1]) : -1;
}
