// @ts-check
/**
 * Seeded random weights that keep a network alive: every matrix has the scale that carries unit variance through it,
 * attention scores spread over a few units, and no layer is a bystander. What the model says is nonsense, but
 * different prompts give different, well separated answers, which is what comparisons between backends need.
 */

import { QUANTIZERS, quantize } from "./quantize.mjs";
import { seededRandom, seedFor } from "./random.mjs";

/** @typedef {import("./model.mjs").ModelSpec} ModelSpec */
/** @typedef {import("./model.mjs").PlannedTensor} PlannedTensor */

/** Matrices above this many elements are cut from a pool of quantized blocks instead of drawn one by one. */
const POOL_ABOVE = 1 << 18;
const POOL_ELEMENTS = 1 << 18;

/** Control tokens and stray bytes get embeddings this much smaller, so that greedy decoding does not pick them. */
const QUIET = 1 / 16;

/**
 * Deviation of a matrix times the square root of its inputs. The embedding is small beside what the layers add, or a
 * model with tied embeddings would repeat its last token for ever; the output norm makes up for it in the logits.
 */
const GAINS = /** @type {Record<string, number>} */ ({
  attn_q: 1.5,
  attn_k: 1.5,
  token_embd: 0.7,
  output: 0.7,
});

/** Norm weights that are not around 1: those that spread scores and logits. */
const NORM_MEANS = /** @type {Record<string, number>} */ ({
  attn_q_norm: 1.5,
  attn_k_norm: 1.5,
  output_norm: 4,
});

/**
 * Writes tensors of one model.
 * @param {ModelSpec} spec
 * @param {number} seed
 * @param {(id: number) => boolean} isQuiet
 */
export function weightMaker(spec, seed, isQuiet) {
  /** @type {Map<string, Uint8Array>} */
  const pools = new Map();

  /**
   * The bytes of a tensor, in pieces.
   * @param {PlannedTensor} tensor
   * @returns {Generator<Uint8Array>}
   */
  function* bytesOf(tensor) {
    const { name, dims, type } = tensor;
    const [cols, rows = 1] = dims;
    if (dims.length === 1) {
      yield quantize(type, vectorValues(name, cols));
      return;
    }
    const [part] = name.split(".").slice(-2);
    const deviation = (GAINS[part] ?? 1) / Math.sqrt(cols);
    const isQuietRow = part === "token_embd" || part === "output" ? isQuiet : () => false;
    if (rows * cols <= POOL_ABOVE)
      yield quantize(type, matrixValues(name, cols, rows, deviation, isQuietRow));
    else yield* pooledRows(tensor, deviation, isQuietRow);
  }

  /** @param {string} name @param {number} size */
  function vectorValues(name, size) {
    if (name === "rope_freqs.weight") return ropeFactors(spec, size);
    const random = seededRandom(seedFor(seed, name));
    const [part, kind] = name.split(".").slice(-2);
    // Norms are not all alike; biases matter, but do not rule.
    const [mean, deviation] = kind === "bias" ? [0, 0.3] : [NORM_MEANS[part] ?? 1, 0.1];
    return Float32Array.from({ length: size }, () => mean + deviation * random.gauss());
  }

  /**
   * @param {string} name
   * @param {number} cols
   * @param {number} rows
   * @param {number} deviation
   * @param {(row: number) => boolean} isQuietRow
   */
  function matrixValues(name, cols, rows, deviation, isQuietRow) {
    const values = unevenGaussians(seedFor(seed, name), cols * rows, deviation);
    for (let row = 0; row < rows; row++) {
      if (!isQuietRow(row)) continue;
      for (let i = row * cols; i < (row + 1) * cols; i++) values[i] *= QUIET;
    }
    return values;
  }

  /**
   * Rows cut at random block-aligned places from a pool of the type and scale.
   * @param {PlannedTensor} tensor
   * @param {number} deviation
   * @param {(row: number) => boolean} isQuietRow
   */
  function* pooledRows(tensor, deviation, isQuietRow) {
    const { name, type, dims } = tensor;
    const [cols, rows] = dims;
    const { blockElements, blockBytes } = QUANTIZERS[type];
    const rowBytes = (cols / blockElements) * blockBytes;
    const random = seededRandom(seedFor(seed, name));
    for (let row = 0; row < rows; ) {
      const isQuietRun = isQuietRow(row);
      let end = row + 1;
      while (end < rows && isQuietRow(end) === isQuietRun) end++;
      const pool = poolOf(type, deviation * (isQuietRun ? QUIET : 1));
      for (let left = (end - row) * rowBytes; left > 0; ) {
        // From the first half on, so that every cut is long.
        const from = (random.uint32() % (POOL_ELEMENTS / 2 / blockElements)) * blockBytes;
        const cut = pool.subarray(from, from + left);
        left -= cut.byteLength;
        yield cut;
      }
      row = end;
    }
  }

  /** @param {PlannedTensor["type"]} type @param {number} deviation */
  function poolOf(type, deviation) {
    const key = `${type} ${deviation}`;
    let pool = pools.get(key);
    if (!pool) {
      pool = quantize(type, unevenGaussians(seedFor(seed, key), POOL_ELEMENTS, deviation));
      pools.set(key, pool);
    }
    return pool;
  }

  return { bytesOf };
}

/**
 * Gaussian numbers whose scale changes every 16, by up to 8 to 1, so that the small scales inside a block differ.
 * @param {number} seed
 * @param {number} count
 * @param {number} deviation
 */
function unevenGaussians(seed, count, deviation) {
  const random = seededRandom(seed);
  const values = new Float32Array(count);
  // The mean square of 2^u for u uniform in [-2, 1] is 0.947.
  const unit = deviation / Math.sqrt(0.947);
  let scale = unit;
  for (let i = 0; i < count; i++) {
    if (i % 16 === 0) scale = unit * 2 ** (3 * random.uniform() - 2);
    values[i] = scale * random.gauss();
  }
  return values;
}

/**
 * Divisors of the RoPE frequencies as Llama 3.1 defines them (low_freq_factor 1, high_freq_factor 4, 8192 positions).
 * @param {ModelSpec} spec
 * @param {number} nPairs
 */
function ropeFactors(spec, nPairs) {
  const factor = spec.ropeFactor ?? 1;
  const original = Math.min(8192, spec.contextLength);
  return Float32Array.from({ length: nPairs }, (_, i) => {
    const nTurns = (original * spec.ropeBase ** (-i / nPairs)) / (2 * Math.PI);
    if (nTurns >= 4) return 1;
    if (nTurns <= 1) return factor;
    const kept = (nTurns - 1) / 3;
    return 1 / ((1 - kept) / factor + kept);
  });
}
