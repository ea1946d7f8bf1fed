/**
 * Reads the boundary predictor of sparse attention (src/attention/learned-boundaries.ts): a GGUF file of architecture
 * "inlay-boundaries" with f32 tensors, as tools/boundary-predictor writes it. GGUF, and no other container, because its
 * reader here is strict and tested against damaged files already.
 */

import { LearnedBoundaries, type PredictorWeights } from "../attention/learned-boundaries.ts";
import { InlayError } from "../errors.ts";
import { openModelFile, type TensorBytes } from "../gguf/model-file.ts";
import type { ByteSource } from "../gguf/source.ts";
import type { ModelConfig } from "./config.ts";

const ARCHITECTURE = "inlay-boundaries";
/** More is no small file. */
const MAX_HALF = 64;
const MAX_HIDDEN = 1 << 16;

/**
 * The predictor for keys of `config`'s heads. Rejects as model files do, and with `invalid-model` for a file that is
 * something else, lacks something, has numbers that are not finite, or was made for other keys.
 */
export async function readBoundaryPredictor(
  sources: readonly ByteSource[],
  config: Pick<ModelConfig, "nKvHeads" | "headDim">,
  signal?: AbortSignal,
): Promise<LearnedBoundaries> {
  const file = await openModelFile(sources, signal);
  try {
    const { metadata } = file;
    const name = sources[0]!.name;
    const fail = (what: string, details: Record<string, string | number> = {}): never => {
      throw new InlayError("invalid-model", `the boundary predictor ${name} ${what}`, {
        file: name,
        ...details,
      });
    };
    const architecture = metadata.get("general.architecture")?.value;
    if (architecture !== ARCHITECTURE)
      fail(`has architecture ${JSON.stringify(architecture)}; ${JSON.stringify(ARCHITECTURE)} is expected`);
    const number = (key: string, isGood: (x: number) => boolean): number => {
      const value = metadata.get(`${ARCHITECTURE}.${key}`)?.value;
      if (typeof value === "number" && isGood(value)) return value;
      return fail(`has ${ARCHITECTURE}.${key} = ${value}`);
    };
    const isCount = (most: number) => (x: number) => Number.isInteger(x) && x >= 1 && x <= most;
    const channels = config.nKvHeads * config.headDim;
    const made = number("channels", isCount(2 ** 20));
    if (made !== channels)
      fail(
        `was made for keys of ${made} channels; this model has ${config.nKvHeads} KV heads of ${config.headDim}, ${channels} in all`,
        { channels: made, nKvHeads: config.nKvHeads, headDim: config.headDim },
      );
    const half = number("half_width", isCount(MAX_HALF));
    const heads = number("heads", (x) => isCount(channels)(x) && channels % x === 0);
    const threshold = number("threshold", Number.isFinite);
    const hidden = number("hidden", isCount(MAX_HIDDEN));
    const shapes = {
      "attention.in.weight": [channels, 3 * channels],
      "attention.in.bias": [3 * channels],
      "attention.out.weight": [channels, channels],
      "attention.out.bias": [channels],
      "norm.weight": [channels],
      "norm.bias": [channels],
      "hidden.weight": [4 * channels + 1, hidden],
      "hidden.bias": [hidden],
      "logit.weight": [hidden],
      "logit.bias": [1],
    };
    const tensors = new Map<string, Float32Array>();
    for await (const part of file.readTensors(({ name }) => name in shapes)) {
      const { name: tensor, dims, type } = part.tensor;
      const expected = shapes[tensor as keyof typeof shapes];
      const size = expected.reduce((n, x) => n * x, 1);
      if (type.name !== "F32" || dims.join() !== expected.join())
        fail(`has ${tensor} as ${type.name} [${dims.join(", ")}]; F32 [${expected.join(", ")}] is expected`);
      tensors.set(tensor, await floats(part, size));
    }
    const get = (tensor: keyof typeof shapes): Float32Array => {
      const values = tensors.get(tensor) ?? fail(`has no tensor ${tensor}`);
      const bad = values.findIndex((x) => !Number.isFinite(x));
      return bad < 0 ? values : fail(`has ${values[bad]} in ${tensor}, element ${bad}`);
    };
    const weights: PredictorWeights = {
      ...{ channels, half, heads, threshold },
      inWeight: get("attention.in.weight"),
      inBias: get("attention.in.bias"),
      outWeight: get("attention.out.weight"),
      outBias: get("attention.out.bias"),
      normWeight: get("norm.weight"),
      normBias: get("norm.bias"),
      hiddenWeight: get("hidden.weight"),
      hiddenBias: get("hidden.bias"),
      logitWeight: get("logit.weight"),
      logitBias: get("logit.bias"),
    };
    return new LearnedBoundaries(weights);
  } finally {
    await file.close();
  }
}

async function floats({ chunks }: TensorBytes, length: number): Promise<Float32Array> {
  const values = new Float32Array(length);
  const bytes = new Uint8Array(values.buffer);
  let at = 0;
  for await (const chunk of chunks) {
    bytes.set(chunk, at);
    at += chunk.byteLength;
  }
  return values;
}
