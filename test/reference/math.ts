/** The small operations of a transformer in f64. Vectors are plain arrays; nothing is done in place. */

export type Vector = Float64Array;

/** x / sqrt(mean(x²) + eps) * weight (Zhang & Sennrich 2019, arXiv:1910.07467). */
export function rmsNorm(x: Vector, weight: Vector, eps: number): Vector {
  const meanSquare = x.reduce((sum, v) => sum + v * v, 0) / x.length;
  return x.map((v, i) => (v / Math.sqrt(meanSquare + eps)) * weight[i]!);
}

/** weight · x. weight: (rows, cols), row-major; x: (cols); result: (rows). */
export function matVec(weight: Vector, x: Vector): Vector {
  const cols = x.length;
  const out = new Float64Array(weight.length / cols);
  for (let row = 0; row < out.length; row++) {
    let sum = 0;
    for (let col = 0; col < cols; col++) sum += weight[row * cols + col]! * x[col]!;
    out[row] = sum;
  }
  return out;
}

export function add(a: Vector, b: Vector): Vector {
  return a.map((v, i) => v + b[i]!);
}

export function multiply(a: Vector, b: Vector): Vector {
  return a.map((v, i) => v * b[i]!);
}

/** x * sigmoid(x). */
export function silu(x: number): number {
  return x / (1 + Math.exp(-x));
}

/** GELU in its tanh form, the one ggml computes (Hendrycks & Gimpel 2016, arXiv:1606.08415). */
export function gelu(x: number): number {
  return 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)));
}

/** ln Σ exp(x), without overflow; -Infinity for an empty or fully masked list. */
export function logSumExp(x: ArrayLike<number>): number {
  let max = -Infinity;
  for (let i = 0; i < x.length; i++) max = Math.max(max, x[i]!);
  if (max === -Infinity) return -Infinity;
  let sum = 0;
  for (let i = 0; i < x.length; i++) sum += Math.exp(x[i]! - max);
  return max + Math.log(sum);
}

export function softmax(x: Vector): Vector {
  const lse = logSumExp(x);
  return x.map((v) => Math.exp(v - lse));
}

export function logSoftmax(x: Vector): Vector {
  const lse = logSumExp(x);
  return x.map((v) => v - lse);
}

/** Index of the largest value; the lowest of equals. */
export function argmax(x: ArrayLike<number>): number {
  let best = 0;
  for (let i = 1; i < x.length; i++) if (x[i]! > x[best]!) best = i;
  return best;
}
