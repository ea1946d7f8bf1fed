/**
 * Where chunks of a text end, seen by the keys of one layer: the training-free boundary detector of algorithms.md A.9,
 * in streaming form.
 *
 * The novelty of position i compares the mean key of the `HALF` tokens up to i with that of the `HALF` tokens after
 * it: g_i = mean over KV heads of 1 - cos(left, right), both centred by the running mean of all keys so far, since
 * keys carry big constant channels. A chunk ends at i where g_i lies above its exponential average (half-life 512
 * tokens; that is z_i > 0) and is the largest within NMS_RADIUS, which is what greedy suppression by descending score
 * would surely keep. Everything is decided from tokens before a fixed distance after i, so the boundaries of a prompt
 * that comes in parts are those of the whole.
 */

/** Tokens on each side of a position that are compared. */
const HALF = 8;
/** Two detected boundaries are further apart than this. */
const NMS_RADIUS = 8;
/** On average a chunk has at least this many tokens. */
const MIN_MEAN_CHUNK = 16;
/** Longer chunks are cut: mean pooling under RoPE loses what is longer (algorithms.md A.10). */
export const MAX_CHUNK = 64;
/** A boundary before position b is known once b + LOOKAHEAD tokens are. */
export const LOOKAHEAD = HALF + NMS_RADIUS;
const ADAPTATION = 1 - 2 ** (-1 / 512);

/** Chunks that have ended. Chunk c is tokens [ends[c-1], ends[c]). */
export interface ChunkTable {
  readonly ends: readonly number[];
  /** Tokens that were there when chunk c's end was decided; non-decreasing. */
  readonly knownAt: readonly number[];
}

export class BoundaryDetector implements ChunkTable {
  readonly ends: number[] = [];
  readonly knownAt: number[] = [];
  /** Keys before RoPE, (nTokens, nKvHeads * headDim): kept so that truncating can start again. */
  #keys = new Float32Array(0);
  #nTokens = 0;
  #total: Float64Array;
  /** Novelty by position; -1 where there are too few tokens before it. */
  readonly #novelty: number[] = [];
  readonly #isNovel: boolean[] = [];
  #average = 0;

  /** `granule`: boundaries are moved to the nearest multiple of it. */
  constructor(
    private readonly nKvHeads: number,
    private readonly headDim: number,
    private readonly granule: number,
  ) {
    this.#total = new Float64Array(nKvHeads * headDim);
  }

  get nTokens(): number {
    return this.#nTokens;
  }

  get bytes(): number {
    return this.#keys.byteLength;
  }

  /** Takes the next tokens' keys before RoPE, (n, nKvHeads * headDim). */
  append(keys: Float32Array): void {
    const width = this.#total.length;
    const n = keys.length / width;
    const needed = (this.#nTokens + n) * width;
    if (needed > this.#keys.length) {
      const grown = new Float32Array(Math.max(needed, this.#keys.length * 1.5, 64 * width));
      grown.set(this.#keys.subarray(0, this.#nTokens * width));
      this.#keys = grown;
    }
    this.#keys.set(keys, this.#nTokens * width);
    for (let i = 0; i < n; i++) this.#step();
  }

  /** Forgets all tokens from `nTokens` on. */
  truncate(nTokens: number): void {
    if (nTokens === this.#nTokens) return;
    const keys = this.#keys.subarray(0, nTokens * this.#total.length);
    this.#nTokens = 0;
    this.#total.fill(0);
    this.#average = 0;
    for (const list of [this.ends, this.knownAt, this.#novelty, this.#isNovel]) list.length = 0;
    this.append(keys);
  }

  fork(): BoundaryDetector {
    const fork = new BoundaryDetector(this.nKvHeads, this.headDim, this.granule);
    fork.#keys = this.#keys.slice(0, this.#nTokens * this.#total.length);
    fork.#nTokens = this.#nTokens;
    fork.#total = this.#total.slice();
    fork.#average = this.#average;
    fork.ends.push(...this.ends);
    fork.knownAt.push(...this.knownAt);
    for (const g of this.#novelty) fork.#novelty.push(g);
    for (const b of this.#isNovel) fork.#isNovel.push(b);
    return fork;
  }

  /** Counts the next token in, and decides the position LOOKAHEAD tokens back. */
  #step(): void {
    const width = this.#total.length;
    const at = this.#nTokens * width;
    for (let c = 0; c < width; c++) this.#total[c]! += this.#keys[at + c]!;
    this.#nTokens++;
    const position = this.#nTokens - 1 - HALF;
    if (position < 0) return;
    const g = position < HALF - 1 ? -1 : this.#noveltyAt(position);
    this.#novelty.push(g);
    if (g >= 0) {
      // Plain averages until there are enough positions for the exponential one.
      const count = position - HALF + 2;
      this.#average += Math.max(ADAPTATION, 1 / count) * (g - this.#average);
    }
    this.#isNovel.push(g > this.#average);
    const decided = position - NMS_RADIUS;
    if (decided >= 0) this.#decide(decided + 1, this.#isPeak(decided));
  }

  /** Mean over KV heads of 1 - cos(mean of the HALF keys up to `position`, mean of those after it). */
  #noveltyAt(position: number): number {
    const { nKvHeads, headDim } = this;
    const keys = this.#keys;
    const width = nKvHeads * headDim;
    const centre = HALF / this.#nTokens;
    let sum = 0;
    for (let h = 0; h < nKvHeads; h++) {
      let lr = 0;
      let ll = 0;
      let rr = 0;
      for (let c = h * headDim; c < (h + 1) * headDim; c++) {
        const mean = this.#total[c]! * centre;
        let l = -mean;
        let r = -mean;
        let at = (position - HALF + 1) * width + c;
        for (let j = 0; j < HALF; j++, at += width) l += keys[at]!;
        for (let j = 0; j < HALF; j++, at += width) r += keys[at]!;
        lr += l * r;
        ll += l * l;
        rr += r * r;
      }
      sum += 1 - lr / Math.max(Math.sqrt(ll * rr), 1e-6);
    }
    return sum / nKvHeads;
  }

  /** Above average, and the largest within NMS_RADIUS; of equals the first. */
  #isPeak(position: number): boolean {
    const g = this.#novelty[position]!;
    if (g < 0 || !this.#isNovel[position]) return false;
    for (let i = Math.max(0, position - NMS_RADIUS); i < position; i++)
      if (this.#novelty[i]! >= g) return false;
    for (let i = position + 1; i <= position + NMS_RADIUS; i++) if (this.#novelty[i]! > g) return false;
    return true;
  }

  /** All is known about a boundary before token `b`. */
  #decide(b: number, isPeak: boolean): void {
    const last = this.ends.at(-1) ?? 0;
    const snap = (position: number) => Math.round(position / this.granule) * this.granule;
    if (isPeak && this.ends.length < Math.ceil(b / MIN_MEAN_CHUNK)) {
      const end = snap(b);
      if (end <= last) return;
      if (end - last > MAX_CHUNK) this.#push(last + snap((end - last) / 2), b);
      this.#push(end, b);
    } else if (b - last >= MAX_CHUNK + NMS_RADIUS) {
      // No boundary that comes now can be too near to this one.
      this.#push(last + MAX_CHUNK, b);
    }
  }

  #push(end: number, b: number): void {
    this.ends.push(end);
    this.knownAt.push(Math.max(end, b + LOOKAHEAD));
  }
}

/** Chunks of equal length. */
export class FixedChunks implements ChunkTable {
  readonly ends: number[] = [];

  constructor(private readonly length: number) {}

  get knownAt(): readonly number[] {
    return this.ends;
  }

  /** The chunks that `nTokens` tokens fill. */
  setTokens(nTokens: number): void {
    const n = Math.floor(nTokens / this.length);
    this.ends.length = Math.min(this.ends.length, n);
    while (this.ends.length < n) this.ends.push((this.ends.length + 1) * this.length);
  }
}
