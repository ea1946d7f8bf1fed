/** Queries, keys and values with the structure of text, for measuring attention without a model. */

import type { AttentionShape } from "../attention/policy.ts";
import type { WasmOps } from "../backend/wasm/wasm-ops.ts";
import type { WasmTensor } from "../backend/wasm/wasm-tensor.ts";

/** Queries, keys and values of some tokens. */
export interface Rows extends Disposable {
  readonly q: WasmTensor;
  readonly k: WasmTensor;
  readonly v: WasmTensor;
}

/** Topics of some dozens of tokens: keys share a topic's direction and a constant; queries look for earlier topics. */
export class MadeUpText {
  #state = 1;
  #left = 0;
  readonly #topics: Float32Array[] = [];
  #wanted: Float32Array = new Float32Array(0);

  constructor(private readonly shape: AttentionShape) {}

  next(ops: WasmOps, nTokens: number): Rows {
    const { nHeads, nKvHeads, headDim } = this.shape;
    const q = ops.heap.create(nTokens, nHeads * headDim);
    const k = ops.heap.create(nTokens, nKvHeads * headDim);
    const v = ops.heap.create(nTokens, nKvHeads * headDim);
    for (const { view } of [q, k, v]) for (let i = 0; i < view.length; i++) view[i] = this.#uniform() - 0.5;
    const queries = q.view;
    const keys = k.view;
    const group = nHeads / nKvHeads;
    const width = nKvHeads * headDim;
    for (let t = 0; t < nTokens; t++) {
      if (this.#left-- === 0) {
        this.#left = 16 + Math.floor(48 * this.#uniform());
        this.#topics.push(Float32Array.from({ length: width }, () => 2 * this.#uniform() - 1));
        this.#wanted = this.#topics[Math.floor(this.#uniform() * this.#topics.length)]!;
      }
      const topic = this.#topics.at(-1)!;
      for (let c = 0; c < width; c++) keys[t * width + c]! += topic[c]! + 1;
      for (let h = 0; h < nHeads; h++)
        for (let c = 0; c < headDim; c++)
          queries[(t * nHeads + h) * headDim + c]! += this.#wanted[Math.floor(h / group) * headDim + c]!;
    }
    return {
      q,
      k,
      v,
      [Symbol.dispose]() {
        for (const tensor of [q, k, v]) tensor[Symbol.dispose]();
      },
    };
  }

  /** Uniform numbers in [0, 1) (a linear congruential generator: quick, and good enough for noise). */
  #uniform(): number {
    this.#state = (Math.imul(this.#state, 1664525) + 1013904223) >>> 0;
    return this.#state / 2 ** 32;
  }
}
