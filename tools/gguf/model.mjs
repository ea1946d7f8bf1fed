// @ts-check
/**
 * Random GGUF models in memory or as a stream of pieces: the one place that tools, tests and browser pages use.
 * Needs nothing but JavaScript; tools/make-gguf.mjs is the command around it.
 */

import { layoutModel, tensorBytes } from "./layout.mjs";
import { PRESETS } from "./presets.mjs";
import { QUANTIZERS } from "./quantize.mjs";
import { weightMaker } from "./weights.mjs";
import { writeHeader } from "./writer.mjs";

export { FILE_TYPE_NAMES } from "./layout.mjs";
export { PRESETS } from "./presets.mjs";
export { QUANTIZERS, quantize } from "./quantize.mjs";
export { seededRandom } from "./random.mjs";
export { makeVocabulary } from "./vocabulary.mjs";
export { writeHeader } from "./writer.mjs";

/** @typedef {import("./model.mjs").ModelSpec} ModelSpec */
/** @typedef {import("./model.mjs").PlannedTensor} PlannedTensor */
/** @typedef {import("./model.mjs").PresetName} PresetName */
/** @typedef {import("./model.mjs").ModelOptions} ModelOptions */
/** @typedef {import("./model.mjs").PlannedFile} PlannedFile */
/** @typedef {import("./model.mjs").KeyValue} KeyValue */

/**
 * Lays out a model file; weights are made when `pieces` is run.
 * @param {PresetName | ModelSpec} model
 * @param {ModelOptions} [options]
 * @returns {PlannedFile}
 */
export function planGguf(model, options = {}) {
  return planShards(model, 1, options)[0];
}

/**
 * A whole model file.
 * @param {PresetName | ModelSpec} model
 * @param {ModelOptions} [options]
 * @returns {Uint8Array}
 */
export function makeGguf(model, options = {}) {
  return assemble(planGguf(model, options));
}

/**
 * A model split into `nShards` files, in order, with the same weights as the whole.
 * @param {PresetName | ModelSpec} model
 * @param {number} nShards
 * @param {ModelOptions} [options]
 * @returns {Uint8Array[]}
 */
export function makeGgufShards(model, nShards, options = {}) {
  return planShards(model, nShards, options).map(assemble);
}

/**
 * @param {PresetName | ModelSpec} model
 * @param {number} nShards
 * @param {ModelOptions} options
 * @returns {PlannedFile[]}
 */
function planShards(
  model,
  nShards,
  { type = "F32", seed = 1, name, metadata = [], editTensors, ...headerOptions },
) {
  const spec = typeof model === "string" ? PRESETS[model] : model;
  const title =
    name ?? `${typeof model === "string" ? model : spec.architecture} (random weights, seed ${seed})`;
  const layout = layoutModel(spec, type, title);
  const tensors = editTensors ? editTensors(layout.tensors) : layout.tensors;
  const { bytesOf } = weightMaker(spec, seed, layout.isQuiet);
  const replaced = new Set(metadata.map(([key]) => key));
  const allMetadata = [...layout.metadata.filter(([key]) => !replaced.has(key)), ...metadata];

  return Array.from({ length: nShards }, (_, shard) => {
    const own = tensors.slice(
      Math.floor((shard * tensors.length) / nShards),
      Math.floor(((shard + 1) * tensors.length) / nShards),
    );
    /** @type {KeyValue[]} */
    const split = [
      ["split.no", "u16", shard],
      ["split.count", "u16", nShards],
      ["split.tensors.count", "i32", tensors.length],
    ];
    const header = writeHeader(
      [...(shard === 0 ? allMetadata : []), ...(nShards > 1 ? split : [])],
      own.map((t) => ({
        name: t.name,
        dims: t.dims,
        typeId: QUANTIZERS[t.type].id,
        byteLength: tensorBytes(t),
      })),
      headerOptions,
    );
    return {
      header,
      tensors: own,
      byteLength: header.bytes.byteLength + header.dataBytes,
      pieces: () => filePieces(header, own, bytesOf),
    };
  });
}

/**
 * @param {import("./model.mjs").Header} header
 * @param {PlannedTensor[]} tensors
 * @param {(tensor: PlannedTensor) => Generator<Uint8Array>} bytesOf
 * @returns {Generator<Uint8Array>}
 */
function* filePieces(header, tensors, bytesOf) {
  yield header.bytes;
  for (const [i, tensor] of tensors.entries()) {
    yield* bytesOf(tensor);
    const end = header.offsets[i] + tensorBytes(tensor);
    const next = header.offsets[i + 1] ?? header.dataBytes;
    if (next > end) yield new Uint8Array(next - end);
  }
}

/** @param {PlannedFile} file */
function assemble(file) {
  const out = new Uint8Array(file.byteLength);
  let at = 0;
  for (const piece of file.pieces()) {
    out.set(piece, at);
    at += piece.byteLength;
  }
  return out;
}
