/**
 * What every writer of weights checks: that as many bytes arrive as the shape needs, and that numbers are finite. The
 * words are those of the WASM backend (src/backend/wasm/wasm-weights.ts), so that a damaged file is reported alike.
 */

import { InlayError } from "../../errors.ts";
import type { TensorInfo } from "../../gguf/tensor-info.ts";
import type { Weight, WeightWriter } from "../backend.ts";

export abstract class CheckedWriter implements WeightWriter {
  #received = 0;

  constructor(protected readonly info: TensorInfo) {}

  write(bytes: Uint8Array): void {
    if (this.#received + bytes.byteLength > this.info.byteLength) throw this.#sizeError(bytes.byteLength);
    this.accept(bytes, this.#received);
    this.#received += bytes.byteLength;
  }

  async finish(): Promise<Weight> {
    if (this.#received !== this.info.byteLength) throw this.#sizeError(0);
    return this.complete();
  }

  /** Takes `bytes`, the first of which is byte `at` of the tensor. */
  protected abstract accept(bytes: Uint8Array, at: number): void;
  /** All bytes were accepted. */
  protected abstract complete(): Promise<Weight>;
  /** Frees what the writer holds on the device, before an error is thrown. */
  protected abstract abandon(): void;

  /** The error for a value or scale that is infinite or NaN. */
  protected nonFinite(where: string): InlayError {
    this.abandon();
    const { name, type } = this.info;
    return new InlayError(
      "invalid-model",
      `tensor ${name} (${type.name}) holds a value that is not finite, in ${where}; the file is damaged, ` +
        "or its quantization overflowed: download or convert it again",
      { tensor: name, type: type.name, where },
    );
  }

  #sizeError(more: number): InlayError {
    this.abandon();
    const { name, byteLength } = this.info;
    return new InlayError(
      "invalid-model",
      `tensor ${name} has ${this.#received + more} bytes of data where its shape needs ${byteLength}`,
      { tensor: name, found: this.#received + more, expected: byteLength },
    );
  }
}
