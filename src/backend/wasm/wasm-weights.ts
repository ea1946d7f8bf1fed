/**
 * Weights in the WASM heap: file bytes in, the kernels' layout out.
 *
 * Quantized matrices are repacked four rows at a time (wasm/kernels/weights.h) as their bytes arrive, so that a
 * weight needs its final place and a small staging block, never a second copy. Vectors become f32.
 */

import { InlayError } from "../../errors.ts";
import type { TensorInfo } from "../../gguf/tensor-info.ts";
import type { Weight, WeightWriter } from "../backend.ts";
import type { WasmModule } from "./module.ts";

/** Bytes staged before they are packed; at least four rows. */
const STAGING_BYTES = 1 << 20;

/** Rows that one packed group interleaves. */
const GROUP_ROWS = 4;

export class WasmWeight implements Weight {
  constructor(
    readonly name: string,
    readonly rows: number,
    readonly cols: number,
    /** ggml's number of the type that the kernels see. */
    readonly typeId: number,
    readonly ptr: number,
    readonly byteLength: number,
  ) {}
}

const FLOAT_TYPES: readonly string[] = ["F32", "F16", "BF16"];

/** Writer for one tensor. `onAllocate` counts bytes. */
export function createWasmWriter(
  wasm: WasmModule,
  info: TensorInfo,
  onAllocate: (byteLength: number) => void,
): WeightWriter {
  if (info.rows === 1 && FLOAT_TYPES.includes(info.type.name))
    return new VectorWriter(wasm, info, onAllocate);
  if (FLOAT_TYPES.includes(info.type.name)) return new FloatWriter(wasm, info, onAllocate);
  return new PackedWriter(wasm, info, onAllocate);
}

abstract class Writer implements WeightWriter {
  #received = 0;

  constructor(
    protected readonly wasm: WasmModule,
    protected readonly info: TensorInfo,
  ) {}

  write(bytes: Uint8Array): void {
    if (this.#received + bytes.byteLength > this.info.byteLength) throw this.sizeError(bytes.byteLength);
    this.accept(bytes, this.#received);
    this.#received += bytes.byteLength;
  }

  finish(): Weight {
    if (this.#received !== this.info.byteLength) throw this.sizeError(0);
    return this.complete();
  }

  /** Takes `bytes`, the first of which is byte `at` of the tensor. */
  protected abstract accept(bytes: Uint8Array, at: number): void;
  protected abstract complete(): Weight;

  private sizeError(more: number): InlayError {
    const { name, byteLength } = this.info;
    return new InlayError(
      "invalid-model",
      `tensor ${name} has ${this.#received + more} bytes of data where its shape needs ${byteLength}`,
      { tensor: name, found: this.#received + more, expected: byteLength },
    );
  }

  /** The error for a value or scale that is infinite or NaN. */
  protected nonFinite(where: string): InlayError {
    const { name, type } = this.info;
    return new InlayError(
      "invalid-model",
      `tensor ${name} (${type.name}) holds a value that is not finite, in ${where}; the file is damaged, ` +
        "or its quantization overflowed: download or convert it again",
      { tensor: name, type: type.name, where },
    );
  }
}

/** F32, F16, BF16 matrices: copied as they are. */
class FloatWriter extends Writer {
  readonly #ptr: number;

  constructor(wasm: WasmModule, info: TensorInfo, onAllocate: (byteLength: number) => void) {
    super(wasm, info);
    this.#ptr = wasm.alloc(info.byteLength, `weight ${info.name}`);
    onAllocate(info.byteLength);
  }

  protected override accept(bytes: Uint8Array, at: number): void {
    this.wasm.u8.set(bytes, this.#ptr + at);
  }

  protected override complete(): Weight {
    const { name, rows, cols, type, byteLength } = this.info;
    const bad = this.wasm.call("weight_first_non_finite", type.id, this.#ptr, rows * cols);
    if (bad >= 0) throw this.nonFinite(`row ${Math.floor(bad / cols)}, column ${bad % cols}`);
    return new WasmWeight(name, rows, cols, type.id, this.#ptr, byteLength);
  }
}

/** Vectors (norms, biases): f32, padded with zeros to a multiple of four elements. */
class VectorWriter extends Writer {
  readonly #bytes: Uint8Array;

  constructor(
    wasm: WasmModule,
    info: TensorInfo,
    private readonly onAllocate: (byteLength: number) => void,
  ) {
    super(wasm, info);
    this.#bytes = new Uint8Array(info.byteLength);
  }

  protected override accept(bytes: Uint8Array, at: number): void {
    this.#bytes.set(bytes, at);
  }

  protected override complete(): Weight {
    const { name, cols, type } = this.info;
    const { wasm } = this;
    const source = wasm.alloc(this.#bytes.byteLength, `weight ${name}`);
    wasm.u8.set(this.#bytes, source);
    const bad = wasm.call("weight_first_non_finite", type.id, source, cols);
    if (bad >= 0) {
      wasm.free(source);
      throw this.nonFinite(`element ${bad}`);
    }
    const byteLength = Math.ceil(cols / 4) * 16;
    const ptr = wasm.alloc(byteLength, `weight ${name}`);
    this.onAllocate(byteLength);
    wasm.f32(ptr, byteLength / 4).fill(0);
    // "Row 0" of the vector, converted to f32.
    const zero = wasm.alloc(4, "an index");
    wasm.u32(zero, 1)[0] = 0;
    wasm.call("embed_rows", type.id, source, cols, zero, 1, ptr);
    wasm.free(zero);
    wasm.free(source);
    return new WasmWeight(name, 1, cols, 0, ptr, byteLength);
  }
}

/** Quantized matrices: staged by whole groups of rows, packed into place. */
class PackedWriter extends Writer {
  readonly #rowBytes: number;
  readonly #stagingRows: number;
  readonly #ptr: number;
  readonly #byteLength: number;
  #staging: number;
  #staged = 0;
  #packedRows = 0;

  constructor(wasm: WasmModule, info: TensorInfo, onAllocate: (byteLength: number) => void) {
    super(wasm, info);
    const { type, rows, cols, name } = info;
    this.#rowBytes = info.byteLength / rows;
    const groups = Math.max(1, Math.floor(STAGING_BYTES / (GROUP_ROWS * this.#rowBytes)));
    this.#stagingRows = Math.min(groups * GROUP_ROWS, Math.ceil(rows / GROUP_ROWS) * GROUP_ROWS);
    this.#byteLength = wasm.call("weight_packed_bytes", type.id, rows, cols) >>> 0;
    this.#ptr = wasm.alloc(this.#byteLength, `weight ${name}`);
    onAllocate(this.#byteLength);
    this.#staging = wasm.alloc(this.#stagingRows * this.#rowBytes, "the loading buffer");
  }

  protected override accept(bytes: Uint8Array): void {
    const capacity = this.#stagingRows * this.#rowBytes;
    for (let from = 0; from < bytes.byteLength; ) {
      const n = Math.min(capacity - this.#staged, bytes.byteLength - from);
      this.wasm.u8.set(bytes.subarray(from, from + n), this.#staging + this.#staged);
      this.#staged += n;
      from += n;
      if (this.#staged === capacity) this.#pack();
    }
  }

  #pack(): void {
    const { type, cols } = this.info;
    const rows = this.#staged / this.#rowBytes;
    const target = this.#ptr + this.#packedRows * this.#rowBytes;
    const status = this.wasm.call("weight_pack", type.id, this.#staging, rows, cols, target);
    if (status < 0) {
      const block = -status - 1;
      const perRow = cols / type.blockElements;
      const group = Math.floor(block / perRow);
      const first = this.#packedRows + GROUP_ROWS * group;
      const column = (block % perRow) * type.blockElements;
      this.#free();
      throw this.nonFinite(`a scale of rows ${first}–${first + GROUP_ROWS - 1}, columns from ${column}`);
    }
    this.#packedRows += rows;
    this.#staged = 0;
  }

  protected override complete(): Weight {
    if (this.#staged > 0) this.#pack();
    this.#free();
    const { name, rows, cols, type } = this.info;
    return new WasmWeight(name, rows, cols, type.id, this.#ptr, this.#byteLength);
  }

  #free(): void {
    if (this.#staging !== 0) this.wasm.free(this.#staging);
    this.#staging = 0;
  }
}
