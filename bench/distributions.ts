/** Distributions over a vocabulary. */

export function logSoftmax(logits: Float32Array): Float64Array {
  const max = logits.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY);
  const logSum = Math.log(logits.reduce((sum, x) => sum + Math.exp(x - max), 0));
  return Float64Array.from(logits, (x) => x - max - logSum);
}

/** KL(p || q) in nats, of log-probabilities. */
export function klDivergence(p: Float64Array, q: Float64Array): number {
  return p.reduce((total, logP, i) => total + Math.exp(logP) * (logP - q[i]!), 0);
}
