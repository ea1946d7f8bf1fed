/**
 * Where chunks of a text end, seen by the keys of one layer, in streaming form.
 *
 * A score says how much a position looks like the end of a chunk: the training-free one (key-novelty.ts), or a learned
 * one (learned-boundaries.ts). A chunk ends where the score makes a candidate and is the largest within NMS_RADIUS, which
 * is what greedy suppression by descending score would surely keep. Everything is decided from tokens before a fixed
 * distance after the position, so the boundaries of a prompt that comes in parts are those of the whole.
 */

/** What is known of a position. */
export interface ScoredPosition {
  /** -Infinity where there are too few tokens before it. */
  readonly score: number;
  readonly isCandidate: boolean;
}

/** Scores positions one after the other, from the keys of one layer before RoPE. */
export interface BoundaryScore {
  /** Tokens after a position that its score needs. */
  readonly half: number;
  /** Counts token t in: `keys`, (at least t + 1, nKvHeads * headDim), has it and all before it. What position t - half has. */
  step(keys: Float32Array, t: number): ScoredPosition;
  /** The same state, apart. */
  clone(): BoundaryScore;
}

/** Two detected boundaries are further apart than this. */
const NMS_RADIUS = 8;
/** On average a chunk has at least this many tokens. */
const MIN_MEAN_CHUNK = 16;
/** Longer chunks are cut: mean pooling under RoPE loses what is longer (algorithms.md A.10). */
export const MAX_CHUNK = 64;

/** Chunks that have ended. Chunk c is tokens [ends[c-1], ends[c]). */
export interface ChunkTable {
  readonly ends: readonly number[];
  /** Tokens that were there when chunk c's end was decided; non-decreasing. */
  readonly knownAt: readonly number[];
}

/** Scores positions when its chunks are asked for: where nothing reads them, as after a restored prompt, that is never. */
export class BoundaryDetector implements ChunkTable {
  readonly #ends: number[] = [];
  readonly #knownAt: number[] = [];
  /** Keys before RoPE, (nTokens, width): kept so that truncating can start again. */
  #keys = new Float32Array(0);
  #nTokens = 0;
  /** Tokens counted in by `#score`, and those of them at which `#marked` is to be. */
  #nCounted = 0;
  #markAt = 0;
  #score: BoundaryScore;
  /** By position, as far as they are known. */
  readonly #scored: ScoredPosition[] = [];
  #marked: { nTokens: number; score: BoundaryScore; nEnds: number };

  /** `width`: nKvHeads * headDim. `granule`: boundaries are moved to the nearest multiple of it. `start`: as before token 0. */
  constructor(
    private readonly width: number,
    private readonly granule: number,
    private readonly start: BoundaryScore,
  ) {
    this.#score = start.clone();
    this.#marked = { nTokens: 0, score: start, nEnds: 0 };
  }

  get nTokens(): number {
    return this.#nTokens;
  }

  get bytes(): number {
    return this.#keys.byteLength;
  }

  /** A boundary before position b is known once b + lookahead tokens are. */
  get lookahead(): number {
    return this.start.half + NMS_RADIUS;
  }

  get ends(): readonly number[] {
    this.#countAll();
    return this.#ends;
  }

  get knownAt(): readonly number[] {
    this.#countAll();
    return this.#knownAt;
  }

  /** Takes the next tokens' keys before RoPE, (n, width). */
  append(keys: Float32Array): void {
    const { width } = this;
    const n = keys.length / width;
    const needed = (this.#nTokens + n) * width;
    if (needed > this.#keys.length) {
      const grown = new Float32Array(Math.max(needed, this.#keys.length * 1.5, 64 * width));
      grown.set(this.#keys.subarray(0, this.#nTokens * width));
      this.#keys = grown;
    }
    this.#keys.set(keys, this.#nTokens * width);
    this.#nTokens += n;
  }

  /** Remembers the present, so that `truncate` can come back to it quickly. */
  mark(): void {
    this.#markAt = this.#nTokens;
    if (this.#nCounted === this.#markAt) this.#markNow();
  }

  #markNow(): void {
    this.#marked = { nTokens: this.#nCounted, score: this.#score.clone(), nEnds: this.#ends.length };
  }

  /** Forgets all tokens from `nTokens` on. */
  truncate(nTokens: number): void {
    this.#nTokens = nTokens;
    this.#markAt = Math.min(this.#markAt, nTokens);
    if (nTokens >= this.#nCounted) return;
    // What is further back than the mark is computed again from the start: the same scores, to the last bit.
    const isMarked = nTokens === this.#marked.nTokens;
    const {
      nTokens: from,
      score,
      nEnds,
    } = isMarked ? this.#marked : { nTokens: 0, score: this.start, nEnds: 0 };
    this.#nCounted = from;
    this.#score = score.clone();
    this.#scored.length = Math.max(0, from - this.start.half);
    this.#ends.length = nEnds;
    this.#knownAt.length = nEnds;
  }

  fork(): BoundaryDetector {
    const fork = new BoundaryDetector(this.width, this.granule, this.start);
    fork.#keys = this.#keys.slice(0, this.#nTokens * this.width);
    fork.#nTokens = this.#nTokens;
    fork.#nCounted = this.#nCounted;
    fork.#score = this.#score.clone();
    for (const end of this.#ends) fork.#ends.push(end);
    for (const n of this.#knownAt) fork.#knownAt.push(n);
    for (const scored of this.#scored) fork.#scored.push(scored);
    fork.mark();
    return fork;
  }

  #countAll(): void {
    while (this.#nCounted < this.#nTokens) {
      this.#step();
      if (this.#nCounted === this.#markAt) this.#markNow();
    }
  }

  /** Counts the next token in, and decides the position `lookahead` tokens back. */
  #step(): void {
    const t = this.#nCounted++;
    const scored = this.#score.step(this.#keys, t);
    if (t < this.start.half) return;
    this.#scored.push(scored);
    const decided = t - this.start.half - NMS_RADIUS;
    if (decided >= 0) this.#decide(decided + 1, this.#isPeak(decided));
  }

  /** A candidate, and the largest within NMS_RADIUS; of equals the first. */
  #isPeak(position: number): boolean {
    const { score, isCandidate } = this.#scored[position]!;
    if (!isCandidate) return false;
    for (let i = Math.max(0, position - NMS_RADIUS); i < position; i++)
      if (this.#scored[i]!.score >= score) return false;
    for (let i = position + 1; i <= position + NMS_RADIUS; i++)
      if (this.#scored[i]!.score > score) return false;
    return true;
  }

  /** All is known about a boundary before token `b`. */
  #decide(b: number, isPeak: boolean): void {
    const last = this.#ends.at(-1) ?? 0;
    const snap = (position: number) => Math.round(position / this.granule) * this.granule;
    if (isPeak && this.#ends.length < Math.ceil(b / MIN_MEAN_CHUNK)) {
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
    this.#ends.push(end);
    this.#knownAt.push(Math.max(end, b + this.lookahead));
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
