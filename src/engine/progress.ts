/** Progress of loading: one monotonic fraction over all phases, told about every 100 ms. */

import type { LoadProgress } from "../options.ts";

const EVERY_MS = 100;

/** Share of the whole that each phase gets; weights are nearly all of the time. */
const PHASES = {
  header: { from: 0, to: 0.02 },
  weights: { from: 0.02, to: 0.97 },
  "warm-up": { from: 0.97, to: 1 },
} as const;

export class ProgressReporter {
  #lastMs = -Infinity;
  #progress = 0;

  constructor(private readonly report: (progress: LoadProgress) => void) {}

  /** `loaded` of `total` bytes; a phase's first and last report are always told. */
  update(phase: LoadProgress["phase"], loaded: number, total: number | undefined): void {
    const isEdge = loaded === 0 || loaded === total;
    const now = performance.now();
    if (!isEdge && now - this.#lastMs < EVERY_MS) return;
    this.#lastMs = now;
    const { from, to } = PHASES[phase];
    const share = total === undefined || total === 0 ? 0 : Math.min(1, loaded / total);
    this.#progress = Math.max(this.#progress, from + share * (to - from));
    this.report({ phase, loaded, total, progress: this.#progress });
  }

  /** Everything is ready. */
  finish(): void {
    this.#progress = 1;
    this.report({ phase: "warm-up", loaded: 1, total: 1, progress: 1 });
  }
}
