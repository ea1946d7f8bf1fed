/**
 * Weights in GPU buffers: file bytes in, planes out (planes.ts).
 *
 * Bytes are staged by whole rows, packed, and written to the queue a piece at a time, so that the host never holds a
 * second copy of a tensor. A matrix that one buffer cannot hold, such as the embedding of a large vocabulary, is cut
 * into parts of whole rows.
 */

import { internalError } from "../../errors.ts";
import type { TensorInfo } from "../../gguf/tensor-info.ts";
import type { TensorType } from "../../gguf/tensor-types.ts";
import type { Weight, WeightWriter } from "../backend.ts";
import type { BufferGroup } from "./buffers.ts";
import { firstNonFinite, isFloatType, toFloats } from "./file-floats.ts";
import type { Planes } from "./pack-blocks.ts";
import { BLOCK_COLUMNS, findNonFinite, type PlaneLayout, planeLayout, scaleWords } from "./planes.ts";
import { BufferUse } from "./usage.ts";
import { CheckedWriter } from "./weight-writer.ts";

/** Bytes staged before they are packed and uploaded; at least two rows. */
const STAGING_BYTES = 1 << 20;

/** Written bytes after which the queue is told to get on with it, lest the browser stages whole models. */
const FLUSH_BYTES = 16 << 20;

/** Rows that errors name together, as the WASM backend packs them together. */
const REPORTED_ROWS = 4;

/** Planes begin at multiples of this, which every device can bind. */
const ALIGNMENT = 256;

/** Rows [rowAt, rowAt + nRows) of a matrix, in one buffer. */
export interface MatrixPart {
  readonly rowAt: number;
  readonly nRows: number;
  readonly quants: GPUBufferBinding;
  /** Types without further bits have the quants here. */
  readonly highs: GPUBufferBinding;
  /** Floats have the quants here. */
  readonly scales: GPUBufferBinding;
}

/** A matrix, quantized as in the file. */
export class GpuMatrix implements Weight {
  constructor(
    readonly name: string,
    readonly rows: number,
    readonly cols: number,
    readonly type: TensorType,
    readonly parts: readonly MatrixPart[],
  ) {}

  /** Blocks of 32 columns in a row, the last one filled up with zeros. */
  get blocks(): number {
    return blocksOf(this.cols);
  }
}

/** A norm's weights or a bias, in f32. */
export class GpuVector implements Weight {
  readonly rows = 1;

  constructor(
    readonly name: string,
    readonly cols: number,
    readonly buffer: GPUBuffer,
  ) {}
}

/** The GPU vector behind a handle. */
export function gpuVector(weight: Weight): GpuVector {
  if (weight instanceof GpuVector) return weight;
  throw internalError(`${weight.name} is no vector of the WebGPU backend`);
}

/** The GPU matrix behind a handle. */
export function gpuMatrix(weight: Weight): GpuMatrix {
  if (weight instanceof GpuMatrix) return weight;
  throw internalError(`${weight.name} is no matrix of the WebGPU backend`);
}

/**
 * Writer for one tensor, whose buffers belong to `group`. `compile` compiles the kernels that a matrix needs; that is
 * started at once and awaited by `finish`.
 */
export function createGpuWriter(
  group: BufferGroup,
  info: TensorInfo,
  compile: (type: TensorType) => Promise<void>,
): WeightWriter {
  const isVector = info.rows === 1 && isFloatType(info.type);
  return isVector ? new VectorWriter(group, info) : new MatrixWriter(group, info, compile(info.type));
}

function blocksOf(cols: number): number {
  return Math.ceil(cols / BLOCK_COLUMNS);
}

class VectorWriter extends CheckedWriter {
  readonly #halves: Uint16Array<ArrayBuffer>;
  readonly #bytes: Uint8Array;

  constructor(
    private readonly group: BufferGroup,
    info: TensorInfo,
  ) {
    super(info);
    this.#halves = new Uint16Array(info.byteLength / 2);
    this.#bytes = new Uint8Array(this.#halves.buffer);
  }

  protected override accept(bytes: Uint8Array, at: number): void {
    this.#bytes.set(bytes, at);
  }

  protected override async complete(): Promise<Weight> {
    const { name, cols, type } = this.info;
    const bad = firstNonFinite(type, this.#halves, cols);
    if (bad >= 0) throw this.nonFinite(`element ${bad}`);
    const { device } = this.group;
    const buffer = await device.guarded(`uploading ${name}`, { tensor: name, byteLength: cols * 4 }, () => {
      const made = this.group.create(name, cols * 4, BufferUse.storage);
      device.handle.queue.writeBuffer(made, 0, toFloats(type, this.#halves));
      return made;
    });
    return new GpuVector(name, cols, buffer);
  }

  protected override abandon(): void {}
}

class MatrixWriter extends CheckedWriter {
  readonly #layout: PlaneLayout;
  readonly #rowBytes: number;
  readonly #batchRows: number;
  readonly #parts: readonly MatrixPart[];
  readonly #buffers: GPUBuffer[] = [];
  /** Buffers and kernels are there. */
  readonly #ready: Promise<unknown>;
  readonly #staging: Staging;
  #stagedBytes = 0;
  #rowsDone = 0;
  #unflushedBytes = 0;

  constructor(
    private readonly group: BufferGroup,
    info: TensorInfo,
    compiled: Promise<void>,
  ) {
    super(info);
    const { rows, cols, type, name } = info;
    this.#layout = planeLayout(type);
    this.#rowBytes = info.byteLength / rows;
    const partRows = rowsThatFit(group, this.#layout, blocksOf(cols));
    // An even number of rows: a batch must not end inside a word of scales.
    const batchRows = Math.max(2, 2 * Math.floor(STAGING_BYTES / this.#rowBytes / 2));
    this.#batchRows = Math.min(batchRows, partRows, rows + (rows % 2));
    const rowsPerPart = partRows - (partRows % this.#batchRows);
    this.#staging = new Staging(this.#layout, this.#batchRows, this.#rowBytes, blocksOf(cols));
    const parts: MatrixPart[] = [];
    const allocated = group.device.guarded(
      `uploading ${name}`,
      { tensor: name, byteLength: info.byteLength },
      () => {
        for (let rowAt = 0; rowAt < rows; rowAt += rowsPerPart) {
          const nRows = Math.min(rowsPerPart, rows - rowAt);
          parts.push(this.#createPart(rowAt, nRows, parts.length));
        }
      },
    );
    this.#ready = Promise.all([allocated, compiled]);
    this.#ready.catch(() => {}); // reported by `complete`, if it comes to that
    this.#parts = parts;
  }

  protected override accept(bytes: Uint8Array): void {
    const capacity = this.#batchRows * this.#rowBytes;
    for (let from = 0; from < bytes.byteLength; ) {
      const n = Math.min(capacity - this.#stagedBytes, bytes.byteLength - from);
      this.#staging.bytes.set(bytes.subarray(from, from + n), this.#stagedBytes);
      this.#stagedBytes += n;
      from += n;
      if (this.#stagedBytes === capacity) this.#upload();
    }
  }

  protected override async complete(): Promise<Weight> {
    if (this.#stagedBytes > 0) this.#upload();
    try {
      await this.#ready;
    } catch (error) {
      this.abandon();
      throw error;
    }
    const { name, rows, cols, type } = this.info;
    return new GpuMatrix(name, rows, cols, type, this.#parts);
  }

  protected override abandon(): void {
    for (const buffer of this.#buffers) this.group.destroy(buffer);
  }

  /** Packs the staged rows and writes them to their part. */
  #upload(): void {
    const { cols, type } = this.info;
    const nRows = this.#stagedBytes / this.#rowBytes;
    this.#checkFinite(nRows);
    const planes = this.#staging.pack(type, cols, nRows);
    const part = this.#parts.find(({ rowAt, nRows: n }) => this.#rowsDone < rowAt + n);
    if (part) {
      const blockAt = (this.#rowsDone - part.rowAt) * blocksOf(cols);
      const nBlocks = nRows * blocksOf(cols);
      const { quantWords, highWords } = this.#layout;
      this.#write(part.quants, blockAt * quantWords, planes.quants, nBlocks * quantWords);
      this.#write(part.highs, blockAt * highWords, planes.highs, nBlocks * highWords);
      const scalesAt = scaleWords(this.#layout, blockAt); // exact: an even number of rows lies before
      this.#write(part.scales, scalesAt, planes.scales, scaleWords(this.#layout, nBlocks));
    }
    this.#rowsDone += nRows;
    this.#stagedBytes = 0;
  }

  #write(to: GPUBufferBinding, at: number, words: Uint32Array<ArrayBuffer>, nWords: number): void {
    if (nWords === 0) return;
    const { queue } = this.group.device.handle;
    queue.writeBuffer(to.buffer, (to.offset ?? 0) + at * 4, words, 0, nWords);
    this.#unflushedBytes += nWords * 4;
    if (this.#unflushedBytes < FLUSH_BYTES) return;
    this.#unflushedBytes = 0;
    queue.submit([]);
  }

  #checkFinite(nRows: number): void {
    const { cols, type } = this.info;
    const { halves } = this.#staging;
    if (isFloatType(type)) {
      const bad = firstNonFinite(type, halves, nRows * cols);
      if (bad < 0) return;
      throw this.nonFinite(`row ${this.#rowsDone + Math.floor(bad / cols)}, column ${bad % cols}`);
    }
    const perRow = cols / type.blockElements;
    const bad = findNonFinite(this.#layout, type, halves, nRows * perRow);
    if (bad < 0) return;
    const row = this.#rowsDone + Math.floor(bad / perRow);
    const first = row - (row % REPORTED_ROWS);
    const column = (bad % perRow) * type.blockElements;
    throw this.nonFinite(`a scale of rows ${first}–${first + REPORTED_ROWS - 1}, columns from ${column}`);
  }

  #createPart(rowAt: number, nRows: number, index: number): MatrixPart {
    const nBlocks = nRows * blocksOf(this.info.cols);
    const { quants, highs, scales, total } = planeBytes(this.#layout, nBlocks);
    const label = index === 0 ? this.info.name : `${this.info.name} part ${index}`;
    const buffer = this.group.create(label, total, BufferUse.storage);
    this.#buffers.push(buffer);
    const plane = (offset: number, size: number) =>
      size > 0 ? { buffer, offset, size } : { buffer, offset: 0, size: quants };
    const highsAt = align(quants);
    const scalesAt = highsAt + align(highs);
    return {
      rowAt,
      nRows,
      quants: plane(0, quants),
      highs: plane(highsAt, highs),
      scales: plane(scalesAt, scales),
    };
  }
}

/** Rows as they came, and packed. */
class Staging {
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly halves: Uint16Array<ArrayBuffer>;
  readonly #planes: Planes;

  constructor(
    private readonly layout: PlaneLayout,
    nRows: number,
    rowBytes: number,
    private readonly blocks: number,
  ) {
    this.halves = new Uint16Array((nRows * rowBytes) / 2);
    this.bytes = new Uint8Array(this.halves.buffer);
    const nBlocks = nRows * blocks;
    this.#planes = {
      quants: new Uint32Array(nBlocks * layout.quantWords),
      highs: new Uint32Array(nBlocks * layout.highWords),
      scales: new Uint32Array(scaleWords(layout, nBlocks)),
    };
  }

  /** Packs the first `nRows` rows. */
  pack(type: TensorType, cols: number, nRows: number): Planes {
    const { layout, blocks, halves } = this;
    const planes = this.#planes;
    if (layout.pack) {
      layout.pack(halves, (nRows * cols) / type.blockElements, planes);
      return planes;
    }
    const to = new Uint16Array(planes.quants.buffer);
    const rowHalves = (cols * type.blockBytes) / 2;
    for (let row = 0; row < nRows; row++)
      to.set(halves.subarray(row * rowHalves, (row + 1) * rowHalves), row * blocks * layout.quantWords * 2);
    return planes;
  }
}

/** Bytes of the planes of `nBlocks` blocks, and of a buffer for all of them. */
function planeBytes(layout: PlaneLayout, nBlocks: number) {
  const quants = 16 * Math.ceil((nBlocks * layout.quantWords) / 4);
  const highs = 4 * nBlocks * layout.highWords;
  const scales = 4 * scaleWords(layout, nBlocks);
  return { quants, highs, scales, total: align(quants) + align(highs) + align(scales) };
}

/** The largest even number of rows whose planes one buffer holds, at least 2. */
function rowsThatFit({ device }: BufferGroup, layout: PlaneLayout, blocks: number): number {
  const { maxBufferSize, maxStorageBufferBindingSize } = device.limits;
  const words = blocks * (layout.quantWords + layout.highWords + layout.scales.words / layout.scales.of);
  const room = Math.min(maxBufferSize, maxStorageBufferBindingSize) - 4 * ALIGNMENT;
  return Math.max(2, 2 * Math.floor(room / words / 8));
}

function align(byteLength: number): number {
  return ALIGNMENT * Math.ceil(byteLength / ALIGNMENT);
}
