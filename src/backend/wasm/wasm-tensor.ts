/** Activations in the WASM heap: a block from malloc, freed on dispose. */

import { internalError } from "../../errors.ts";
import type { RopeAngles, Tensor } from "../backend.ts";
import type { HostTensors } from "../webgpu/hybrid-attention.ts";
import type { WasmModule } from "./module.ts";

export class WasmTensor implements Tensor, RopeAngles {
  #ptr: number;

  constructor(
    private readonly heap: TensorHeap,
    readonly nTokens: number,
    readonly width: number,
  ) {
    this.#ptr = heap.allocate(this.byteLength);
  }

  get byteLength(): number {
    return this.nTokens * this.width * 4;
  }

  /** Address of the first element. */
  get ptr(): number {
    if (this.#ptr === 0) throw internalError(`tensor (${this.nTokens}, ${this.width}) used after dispose`);
    return this.#ptr;
  }

  /** The elements, (nTokens * width). Invalid after the next allocation. */
  get view(): Float32Array<ArrayBuffer> {
    return this.heap.wasm.f32(this.ptr, this.nTokens * this.width);
  }

  [Symbol.dispose](): void {
    if (this.#ptr === 0) return;
    this.heap.release(this.#ptr, this.byteLength);
    this.#ptr = 0;
  }
}

/** Allocates tensors and counts their bytes; lets the hybrid pair's GPU side see them. */
export class TensorHeap implements HostTensors {
  #bytes = 0;

  constructor(readonly wasm: WasmModule) {}

  /** Bytes of all live tensors. */
  get bytes(): number {
    return this.#bytes;
  }

  create(nTokens: number, width: number): WasmTensor {
    return new WasmTensor(this, nTokens, width);
  }

  /** The elements of a tensor, in place. Invalid after the next allocation. */
  view(tensor: Tensor): Float32Array {
    return wasmTensor(tensor).view;
  }

  allocate(byteLength: number): number {
    const ptr = this.wasm.alloc(byteLength, "activations");
    this.#bytes += byteLength;
    return ptr;
  }

  release(ptr: number, byteLength: number): void {
    this.wasm.free(ptr);
    this.#bytes -= byteLength;
  }
}

/** The WASM tensor behind a handle. */
export function wasmTensor(tensor: Tensor | RopeAngles): WasmTensor {
  if (tensor instanceof WasmTensor) return tensor;
  throw internalError("a tensor of another device was passed to the WASM backend");
}
