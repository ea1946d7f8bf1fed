/**
 * The queries of a prompt's last tokens, kept while it is prefilled: its clusters' thresholds are calibrated with them, and
 * tried is what they lose when keys and values are coded.
 */

import type { LayerObservation } from "../attention/observer.ts";
import type { AttentionShape } from "../attention/policy.ts";

/** Tokens at the end of a prompt whose queries are kept: the observation window of arXiv:2411.09688. */
export const CALIBRATION_TOKENS = 100;

export class WindowQueries {
  /** Per layer, (count, nHeads, headDim), after RoPE. */
  readonly layers: readonly Float32Array[];
  readonly #width: number;

  /** Of `count` tokens from position `from` on. */
  constructor(
    { nLayers, nHeads, headDim }: AttentionShape,
    readonly from: number,
    readonly count: number = CALIBRATION_TOKENS,
  ) {
    this.#width = nHeads * headDim;
    this.layers = Array.from({ length: nLayers }, () => new Float32Array(count * this.#width));
  }

  /** An AttentionObserver. A call that is repeated, after a GPU was lost, replaces what it gave. */
  readonly observe = ({ layer, q, blocks }: LayerObservation): void => {
    if (blocks.qStart < this.from) return;
    this.layers[layer]!.set(q, (blocks.qStart - this.from) * this.#width);
  };
}
