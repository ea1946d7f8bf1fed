/**
 * The value of every ggml tensor type, element by element, straight from the definition of its block
 * (ggml-common.h and ggml-quants.c of ggml-org/ggml). Shares no code with src/ or with the generator.
 *
 * Each function below answers: what number is element i of the block that these bytes are? Nothing is faster than
 * obvious; a multi-byte field is read where it is used.
 */

import { bf16, f16 } from "./half.ts";

/** One block's bytes, addressed from its start. */
class Block {
  /** Where the block begins in the tensor. */
  start = 0;

  constructor(private readonly tensor: DataView) {}

  u8(at: number): number {
    return this.tensor.getUint8(this.start + at);
  }

  i8(at: number): number {
    return this.tensor.getInt8(this.start + at);
  }

  u16(at: number): number {
    return this.tensor.getUint16(this.start + at, true);
  }

  u32(at: number): number {
    return this.tensor.getUint32(this.start + at, true);
  }

  f32(at: number): number {
    return this.tensor.getFloat32(this.start + at, true);
  }
}

interface Format {
  readonly blockElements: number;
  readonly blockBytes: number;
  /** Element `i` of the block. */
  readonly value: (block: Block, i: number) => number;
}

/** Bits [from, from + count) of a number. */
const bits = (x: number, from: number, count: number) => (x >>> from) & (2 ** count - 1);

/** Element i of 32 stored in nibbles: bytes hold elements j (low) and j + 16 (high). */
const nibble32 = (b: Block, at: number, i: number) => bits(b.u8(at + (i % 16)), i < 16 ? 0 : 4, 4);

/** Elements per 32-run: i = 128 half + 32 quarter + l. */
const place = (i: number) => ({ half: Math.floor(i / 128), quarter: Math.floor(i / 32) % 4, l: i % 32 });

/** Two low bits of element i in Q2_K and Q3_K: each half has 32 bytes, each quarter its bit pair. */
const pair256 = (b: Block, at: number, i: number) => {
  const { half, quarter, l } = place(i);
  return bits(b.u8(at + 32 * half + l), 2 * quarter, 2);
};

/** Nibble of element i in Q4_K and Q5_K: 32 bytes for each 64 elements, first 32 low, next 32 high. */
const nibble256 = (b: Block, at: number, i: number) =>
  bits(b.u8(at + 32 * Math.floor(i / 64) + (i % 32)), i % 64 < 32 ? 0 : 4, 4);

/** Scale and minimum j (0..7) of Q4_K and Q5_K, six bits each, from 12 bytes. */
function sixBitPair(b: Block, at: number, j: number): { scale: number; min: number } {
  if (j < 4) return { scale: bits(b.u8(at + j), 0, 6), min: bits(b.u8(at + 4 + j), 0, 6) };
  const low = b.u8(at + 4 + j);
  return {
    scale: bits(low, 0, 4) + 16 * bits(b.u8(at + j - 4), 6, 2),
    min: bits(low, 4, 4) + 16 * bits(b.u8(at + j), 6, 2),
  };
}

/** Scale j (0..15) of Q3_K, six bits minus 32, from 12 bytes. */
function q3Scale(b: Block, at: number, j: number): number {
  const low = j < 8 ? bits(b.u8(at + j), 0, 4) : bits(b.u8(at + j - 8), 4, 4);
  const high = bits(b.u8(at + 8 + (j % 4)), 2 * Math.floor(j / 4), 2);
  return low + 16 * high - 32;
}

const IQ4_LEVELS = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/** By ggml's type number. */
const FORMATS: Readonly<Record<number, Format>> = {
  // F32
  0: { blockElements: 1, blockBytes: 4, value: (b) => b.f32(0) },
  // F16
  1: { blockElements: 1, blockBytes: 2, value: (b) => f16(b.u16(0)) },
  // BF16
  30: { blockElements: 1, blockBytes: 2, value: (b) => bf16(b.u16(0)) },
  // Q4_0: f16 d, 16 bytes of nibbles
  2: { blockElements: 32, blockBytes: 18, value: (b, i) => f16(b.u16(0)) * (nibble32(b, 2, i) - 8) },
  // Q4_1: f16 d, f16 m, 16 bytes of nibbles
  3: {
    blockElements: 32,
    blockBytes: 20,
    value: (b, i) => f16(b.u16(0)) * nibble32(b, 4, i) + f16(b.u16(2)),
  },
  // Q5_0: f16 d, u32 of fifth bits, 16 bytes of nibbles
  6: {
    blockElements: 32,
    blockBytes: 22,
    value: (b, i) => f16(b.u16(0)) * (nibble32(b, 6, i) + 16 * bits(b.u32(2), i, 1) - 16),
  },
  // Q5_1: f16 d, f16 m, u32 of fifth bits, 16 bytes of nibbles
  7: {
    blockElements: 32,
    blockBytes: 24,
    value: (b, i) => f16(b.u16(0)) * (nibble32(b, 8, i) + 16 * bits(b.u32(4), i, 1)) + f16(b.u16(2)),
  },
  // Q8_0: f16 d, 32 int8
  8: { blockElements: 32, blockBytes: 34, value: (b, i) => f16(b.u16(0)) * b.i8(2 + i) },
  // Q2_K: 16 × (scale nibble, min nibble), 64 bytes of bit pairs, f16 d, f16 dmin
  10: {
    blockElements: 256,
    blockBytes: 84,
    value(b, i) {
      const scales = b.u8(Math.floor(i / 16));
      return f16(b.u16(80)) * bits(scales, 0, 4) * pair256(b, 16, i) - f16(b.u16(82)) * bits(scales, 4, 4);
    },
  },
  // Q3_K: 32 bytes of third bits, 64 bytes of bit pairs, 12 bytes of scales, f16 d; a clear third bit means minus 4
  11: {
    blockElements: 256,
    blockBytes: 110,
    value(b, i) {
      const third = bits(b.u8(i % 32), Math.floor(i / 32), 1);
      const level = pair256(b, 32, i) + 4 * third - 4;
      return f16(b.u16(108)) * q3Scale(b, 96, Math.floor(i / 16)) * level;
    },
  },
  // Q4_K: f16 d, f16 dmin, 12 bytes of scales and minima, 128 bytes of nibbles
  12: {
    blockElements: 256,
    blockBytes: 144,
    value(b, i) {
      const { scale, min } = sixBitPair(b, 4, Math.floor(i / 32));
      return f16(b.u16(0)) * scale * nibble256(b, 16, i) - f16(b.u16(2)) * min;
    },
  },
  // Q5_K: as Q4_K, with 32 bytes of fifth bits before the nibbles
  13: {
    blockElements: 256,
    blockBytes: 176,
    value(b, i) {
      const { scale, min } = sixBitPair(b, 4, Math.floor(i / 32));
      const fifth = bits(b.u8(16 + (i % 32)), Math.floor(i / 32), 1);
      return f16(b.u16(0)) * scale * (nibble256(b, 48, i) + 16 * fifth) - f16(b.u16(2)) * min;
    },
  },
  // Q6_K: 128 bytes of low nibbles, 64 bytes of high pairs, 16 int8 scales, f16 d
  14: {
    blockElements: 256,
    blockBytes: 210,
    value(b, i) {
      const { half, quarter, l } = place(i);
      const low = bits(b.u8(64 * half + 32 * (quarter % 2) + l), quarter < 2 ? 0 : 4, 4);
      const high = bits(b.u8(128 + 32 * half + l), 2 * quarter, 2);
      return f16(b.u16(208)) * b.i8(192 + Math.floor(i / 16)) * (low + 16 * high - 32);
    },
  },
  // IQ4_NL: f16 d, 16 bytes of nibbles that index the levels
  20: { blockElements: 32, blockBytes: 18, value: (b, i) => f16(b.u16(0)) * IQ4_LEVELS[nibble32(b, 2, i)]! },
};

function formatOf(typeId: number): Format {
  const format = FORMATS[typeId];
  if (!format) throw new Error(`no reference for ggml type ${typeId}`);
  return format;
}

/** Bytes of a tensor of this shape. */
export function tensorByteLength(typeId: number, dims: readonly number[]): number {
  const { blockElements, blockBytes } = formatOf(typeId);
  return (dims.reduce((product, dim) => product * dim, 1) / blockElements) * blockBytes;
}

/** All elements of a tensor of ggml type `typeId`. */
export function dequantize(typeId: number, bytes: Uint8Array): Float64Array {
  const { blockElements, blockBytes, value } = formatOf(typeId);
  const nBlocks = bytes.byteLength / blockBytes;
  if (!Number.isInteger(nBlocks))
    throw new Error(`${bytes.byteLength} bytes are no whole blocks of ${blockBytes}`);
  const block = new Block(new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength));
  const out = new Float64Array(nBlocks * blockElements);
  for (let n = 0; n < nBlocks; n++) {
    block.start = n * blockBytes;
    for (let i = 0; i < blockElements; i++) out[n * blockElements + i] = value(block, i);
  }
  return out;
}
