/**
 * How weights lie on the GPU: the bytes of the model file, dealt out into planes of 32-bit words that threads can read
 * aligned and side by side. Nothing is re-quantized, and the planes are as large as the file's blocks.
 *
 * The unit is a block of 32 columns (K types' blocks of 256 are groups of eight). The planes of a block:
 *
 *     quants   the levels' low bits; floats as they are
 *     highs    the levels' further bits, where a type has any
 *     scales   half floats and small integers
 *
 * shaders/matmul.wgsl says what stands where, and reads it. Levels are grouped by quads of 4 neighbouring columns, one
 * byte of a word for each: a word of nibbles holds quad k below and quad k + 4 above, a word of bit pairs four quads.
 */

import type { TensorType, TensorTypeName } from "../../gguf/tensor-types.ts";
import { type Planes, packQ4_0, packQ4_1, packQ5_0, packQ5_1, packQ8_0 } from "./pack-blocks.ts";
import { packQ2K, packQ3K, packQ4K, packQ5K, packQ6K } from "./pack-groups.ts";

/** Columns of a block. */
export const BLOCK_COLUMNS = 32;

/** Reads `nBlocks` of the file's blocks from `file`, 16 bits at a time, into the beginning of `planes`. */
export type Pack = (file: Uint16Array, nBlocks: number, planes: Planes) => void;

/** Layout of one type. */
export interface PlaneLayout {
  /** Words of the quants of a block. */
  readonly quantWords: number;
  /** Words of the further bits of a block. */
  readonly highWords: number;
  /** The scales of `of` blocks take `words` words; 2 rows always have whole multiples of these blocks. */
  readonly scales: { readonly words: number; readonly of: number };
  /** Absent for floats, whose rows are only filled up. */
  readonly pack?: Pack;
  /** Where in a file's block the half floats stand that must be finite, in units of 16 bits. */
  readonly halves: readonly number[];
}

const NO_SCALES = { words: 0, of: 1 };

const LAYOUTS: Readonly<Record<TensorTypeName, PlaneLayout>> = {
  F32: { quantWords: 32, highWords: 0, scales: NO_SCALES, halves: [] },
  F16: { quantWords: 16, highWords: 0, scales: NO_SCALES, halves: [] },
  BF16: { quantWords: 16, highWords: 0, scales: NO_SCALES, halves: [] },
  Q4_0: { quantWords: 4, highWords: 0, scales: { words: 1, of: 2 }, pack: packQ4_0, halves: [0] },
  IQ4_NL: { quantWords: 4, highWords: 0, scales: { words: 1, of: 2 }, pack: packQ4_0, halves: [0] },
  Q4_1: { quantWords: 4, highWords: 0, scales: { words: 1, of: 1 }, pack: packQ4_1, halves: [0, 1] },
  Q5_0: { quantWords: 4, highWords: 1, scales: { words: 1, of: 2 }, pack: packQ5_0, halves: [0] },
  Q5_1: { quantWords: 4, highWords: 1, scales: { words: 1, of: 1 }, pack: packQ5_1, halves: [0, 1] },
  Q8_0: { quantWords: 8, highWords: 0, scales: { words: 1, of: 2 }, pack: packQ8_0, halves: [0] },
  Q2_K: { quantWords: 2, highWords: 0, scales: { words: 5, of: 8 }, pack: packQ2K, halves: [40, 41] },
  Q3_K: { quantWords: 2, highWords: 1, scales: { words: 7, of: 16 }, pack: packQ3K, halves: [54] },
  Q4_K: { quantWords: 4, highWords: 0, scales: { words: 4, of: 8 }, pack: packQ4K, halves: [0, 1] },
  Q5_K: { quantWords: 4, highWords: 1, scales: { words: 4, of: 8 }, pack: packQ5K, halves: [0, 1] },
  Q6_K: { quantWords: 4, highWords: 2, scales: { words: 9, of: 16 }, pack: packQ6K, halves: [104] },
};

/** The layout of a type. */
export function planeLayout(type: TensorType): PlaneLayout {
  return LAYOUTS[type.name];
}

/** Words of the scales of `nBlocks` blocks. */
export function scaleWords(layout: PlaneLayout, nBlocks: number): number {
  return Math.ceil(nBlocks / layout.scales.of) * layout.scales.words;
}

/** Index of the first of `nBlocks` file blocks with an infinite or NaN scale; -1 if there is none. */
export function findNonFinite(layout: PlaneLayout, type: TensorType, file: Uint16Array, nBlocks: number) {
  const stride = type.blockBytes / 2;
  for (let b = 0; b < nBlocks; b++)
    for (const at of layout.halves) if ((file[b * stride + at]! & 0x7c00) === 0x7c00) return b;
  return -1;
}
