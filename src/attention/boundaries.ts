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

/** Sums of keys, (nKvHeads * headDim) each: of all tokens, of the HALF newest, and of the HALF before those. */
interface WindowSums {
  readonly total: Float64Array;
  readonly left: Float64Array;
  readonly right: Float64Array;
}

const newSums = (width: number): WindowSums => ({
  total: new Float64Array(width),
  left: new Float64Array(width),
  right: new Float64Array(width),
});

const copySums = ({ total, left, right }: WindowSums): WindowSums => ({
  total: total.slice(),
  left: left.slice(),
  right: right.slice(),
});

export class BoundaryDetector implements ChunkTable {
  readonly ends: number[] = [];
  readonly knownAt: number[] = [];
  /** Keys before RoPE, (nTokens, nKvHeads * headDim): kept so that truncating can start again. */
  #keys = new Float32Array(0);
  #nTokens = 0;
  #sums: WindowSums;
  /** Novelty by position; -1 where there are too few tokens before it. */
  readonly #novelty: number[] = [];
  readonly #isNovel: boolean[] = [];
  #average = 0;
  #marked: { nTokens: number; sums: WindowSums; average: number; nEnds: number };

  /** `granule`: boundaries are moved to the nearest multiple of it. */
  constructor(
    private readonly nKvHeads: number,
    private readonly headDim: number,
    private readonly granule: number,
  ) {
    this.#sums = newSums(nKvHeads * headDim);
    this.#marked = { nTokens: 0, sums: this.#sums, average: 0, nEnds: 0 };
  }

  get nTokens(): number {
    return this.#nTokens;
  }

  get bytes(): number {
    return this.#keys.byteLength;
  }

  /** Takes the next tokens' keys before RoPE, (n, nKvHeads * headDim). */
  append(keys: Float32Array): void {
    const width = this.#sums.total.length;
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

  /** Remembers the present, so that `truncate` can come back to it quickly. */
  mark(): void {
    this.#marked = {
      nTokens: this.#nTokens,
      sums: copySums(this.#sums),
      average: this.#average,
      nEnds: this.ends.length,
    };
  }

  /** Forgets all tokens from `nTokens` on. */
  truncate(nTokens: number): void {
    if (nTokens === this.#nTokens) return;
    const { nTokens: marked, sums, average, nEnds } = this.#marked;
    // What is further back than the mark is computed again from the start: the same sums, to the last bit.
    const from = nTokens === marked ? marked : 0;
    const positions = Math.max(0, from - HALF);
    this.#nTokens = from;
    this.#sums = from > 0 ? copySums(sums) : newSums(this.#sums.total.length);
    this.#average = from > 0 ? average : 0;
    this.#novelty.length = positions;
    this.#isNovel.length = positions;
    this.ends.length = from > 0 ? nEnds : 0;
    this.knownAt.length = this.ends.length;
    while (this.#nTokens < nTokens) this.#step();
  }

  fork(): BoundaryDetector {
    const fork = new BoundaryDetector(this.nKvHeads, this.headDim, this.granule);
    fork.#keys = this.#keys.slice(0, this.#nTokens * this.#sums.total.length);
    fork.#nTokens = this.#nTokens;
    fork.#sums = copySums(this.#sums);
    fork.#average = this.#average;
    for (const end of this.ends) fork.ends.push(end);
    for (const n of this.knownAt) fork.knownAt.push(n);
    for (const g of this.#novelty) fork.#novelty.push(g);
    for (const b of this.#isNovel) fork.#isNovel.push(b);
    fork.mark();
    return fork;
  }

  /** Counts the next token in, and decides the position LOOKAHEAD tokens back. */
  #step(): void {
    this.#addToSums(this.#nTokens++);
    const position = this.#nTokens - 1 - HALF;
    if (position < 0) return;
    const g = position < HALF - 1 ? -1 : this.#noveltyOfSums();
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

  /** Moves the windows on, so that `right` ends with token t. */
  #addToSums(t: number): void {
    const keys = this.#keys;
    const { total, left, right } = this.#sums;
    const width = total.length;
    const at = t * width;
    const back = HALF * width;
    for (let c = 0; c < width; c++) {
      const entering = keys[at + c]!;
      const crossing = t >= HALF ? keys[at - back + c]! : 0;
      const leaving = t >= 2 * HALF ? keys[at - 2 * back + c]! : 0;
      total[c]! += entering;
      right[c]! += entering - crossing;
      left[c]! += crossing - leaving;
    }
  }

  /** Mean over KV heads of 1 - cos(left, right), both centred. */
  #noveltyOfSums(): number {
    const { nKvHeads, headDim } = this;
    const { total, left, right } = this.#sums;
    const centre = HALF / this.#nTokens;
    let sum = 0;
    for (let h = 0; h < nKvHeads; h++) {
      let lr = 0;
      let ll = 0;
      let rr = 0;
      for (let c = h * headDim; c < (h + 1) * headDim; c++) {
        const mean = total[c]! * centre;
        const l = left[c]! - mean;
        const r = right[c]! - mean;
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
