/**
 * Squeezed Attention's lookup and K-means in f64, one number at a time: algorithms.md B.2. Written for reading; shares no
 * code with src/.
 */

export interface ScoreInput {
  /** (nTokens, nHeads, headDim). */
  readonly q: ArrayLike<number>;
  /** Per KV head, (nEntries, headDim). */
  readonly centroids: readonly ArrayLike<number>[];
  /** Per KV head, variance of each entry's keys. */
  readonly spreads: readonly ArrayLike<number>[];
  /** Per KV head, keys of each entry; 0: it is not there. */
  readonly counts: readonly ArrayLike<number>[];
  readonly nHeads: number;
  readonly headDim: number;
  readonly blockSize: number;
  readonly scale: number;
  readonly softcap?: number | undefined;
}

/** sigma[block][kvHead][entry]: estimated probability of one key of an entry, mean over the block's queries and the group's heads. */
export function clusterScores(input: ScoreInput): number[][][] {
  const { q, centroids, spreads, counts, nHeads, headDim, blockSize, scale, softcap } = input;
  const nTokens = q.length / (nHeads * headDim);
  const group = nHeads / centroids.length;
  return Array.from({ length: Math.ceil(nTokens / blockSize) }, (_, b) =>
    centroids.map((entries, h) => {
      const nEntries = counts[h]!.length;
      const mean = new Array<number>(nEntries).fill(0);
      const tokens = range(b * blockSize, Math.min(nTokens, (b + 1) * blockSize));
      for (const token of tokens)
        for (const head of range(h * group, (h + 1) * group)) {
          const x = range(0, nEntries).map((e) => {
            if (counts[h]![e] === 0) return -Infinity;
            let [dot, square] = [0, 0];
            for (let c = 0; c < headDim; c++) {
              const qc = q[(token * nHeads + head) * headDim + c]!;
              dot += qc * entries[e * headDim + c]!;
              square += qc * qc;
            }
            const logit = dot * scale + 0.25 * scale ** 2 * square * spreads[h]![e]!;
            return softcap ? softcap * Math.tanh(logit / softcap) : logit;
          });
          const max = Math.max(...x);
          const total = x.reduce((sum, xe, e) => sum + counts[h]![e]! * Math.exp(xe - max), 0);
          for (const [e, xe] of x.entries()) mean[e]! += Math.exp(xe - max) / total / (tokens.length * group);
        }
      return mean;
    }),
  );
}

/** Mean cosine of each key, (n, dim), to the mean of the normalised keys of its cluster: what spherical K-means maximises. */
export function meanCosine(keys: ArrayLike<number>, dim: number, labels: ArrayLike<number>): number {
  const n = keys.length / dim;
  const unit = (x: number[]) => {
    const norm = Math.hypot(...x);
    return norm === 0 ? x : x.map((v) => v / norm);
  };
  const directions = range(0, n).map((i) => unit(range(0, dim).map((c) => keys[i * dim + c]!)));
  const sums = new Map<number, number[]>();
  for (const i of range(0, n)) {
    const sum = sums.get(labels[i]!) ?? new Array<number>(dim).fill(0);
    sums.set(labels[i]!, sum);
    for (let c = 0; c < dim; c++) sum[c]! += directions[i]![c]!;
  }
  let total = 0;
  for (const i of range(0, n)) {
    const centre = unit(sums.get(labels[i]!)!);
    total += directions[i]!.reduce((dot, v, c) => dot + v * centre[c]!, 0);
  }
  return total / n;
}

/** Flat spherical K-means from every (n / k)-th key: labels. */
export function sphericalKMeans(keys: ArrayLike<number>, dim: number, k: number, passes: number): number[] {
  const n = keys.length / dim;
  const unit = (x: number[]) => {
    const norm = Math.hypot(...x);
    return norm === 0 ? x : x.map((v) => v / norm);
  };
  const directions = range(0, n).map((i) => unit(range(0, dim).map((c) => keys[i * dim + c]!)));
  let centres = range(0, k).map((i) => directions[Math.floor(((i + 0.5) * n) / k)]!);
  let labels: number[] = [];
  for (let pass = 0; pass < passes; pass++) {
    labels = directions.map((x) => {
      const scores = centres.map((centre) => x.reduce((dot, v, c) => dot + v * centre[c]!, 0));
      return scores.indexOf(Math.max(...scores));
    });
    centres = centres.map((old, i) => {
      const members = directions.filter((_, j) => labels[j] === i);
      if (members.length === 0) return old;
      return unit(range(0, dim).map((c) => members.reduce((sum, x) => sum + x[c]!, 0)));
    });
  }
  return labels;
}

function range(from: number, to: number): number[] {
  return Array.from({ length: to - from }, (_, i) => from + i);
}
