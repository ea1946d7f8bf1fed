/**
 * Packing of the K types, whose file blocks are groups of eight blocks of 32 columns. ggml deals the levels of 128 or 64
 * columns out over the bit fields of the same bytes; here every block gets its levels together.
 *
 * File blocks are addressed in units of 16 bits; their fields are those of ggml-common.h in ggml-org/ggml.
 */

import { type Planes, word } from "./pack-blocks.ts";

/** scales and minima (16 bytes of two nibbles), levels (64 bytes of bit pairs), f16 d, f16 dmin. */
export function packQ2K(file: Uint16Array, nGroups: number, { quants, scales }: Planes): void {
  for (let g = 0, at = 0; g < nGroups; g++, at += 42) {
    scales[5 * g] = word(file, at + 40);
    for (let i = 0; i < 4; i++) scales[5 * g + 1 + i] = word(file, at + 2 * i);
    packPairs(file, at + 8, quants, 16 * g);
  }
}

/** third bits (32 bytes), levels (64 bytes of bit pairs), 16 scales of six bits (12 bytes), f16 d. */
export function packQ3K(file: Uint16Array, nGroups: number, { quants, highs, scales }: Planes): void {
  for (let g = 0, at = 0; g < nGroups; g++, at += 55) {
    packBits(file, at, highs, 8 * g);
    packPairs(file, at + 16, quants, 16 * g);
    // Low nibbles: of scales 0..7 in the low halves of 8 bytes, of 8..15 in the high ones. Upper pairs: byte j % 4.
    const to = 7 * (g >> 1) + 3 * (g & 1);
    const low = [word(file, at + 48), word(file, at + 50)];
    const upper = word(file, at + 52);
    scales.fill(0, to, to + 3);
    for (let j = 0; j < 16; j++) {
      const byte = low[(j & 7) >> 2]! >>> (8 * (j & 3));
      scales[to + (j >> 3)]! |= ((byte >>> (j < 8 ? 0 : 4)) & 15) << (4 * (j & 7));
      scales[to + 2]! |= ((upper >>> (8 * (j & 3) + 2 * (j >> 2))) & 3) << (2 * j);
    }
    putHalf(scales, 7 * (g >> 1) + 6, g & 1, file[at + 54]!);
  }
}

/** f16 d, f16 dmin, 8 scales and minima of six bits (12 bytes), levels (128 bytes of nibbles). */
export function packQ4K(file: Uint16Array, nGroups: number, { quants, scales }: Planes): void {
  for (let g = 0, at = 0; g < nGroups; g++, at += 72) {
    packSixBits(file, at, scales, 4 * g);
    for (let s = 0; s < 8; s++)
      packNibbles(file, at + 8 + 16 * (s >> 1), 4 * (s & 1), quants, 4 * (8 * g + s));
  }
}

/** As Q4_K, with fifth bits (32 bytes) before the levels. */
export function packQ5K(file: Uint16Array, nGroups: number, { quants, highs, scales }: Planes): void {
  for (let g = 0, at = 0; g < nGroups; g++, at += 88) {
    packSixBits(file, at, scales, 4 * g);
    packBits(file, at + 8, highs, 8 * g);
    for (let s = 0; s < 8; s++)
      packNibbles(file, at + 24 + 16 * (s >> 1), 4 * (s & 1), quants, 4 * (8 * g + s));
  }
}

/** levels' nibbles (128 bytes), their upper pairs (64 bytes), 16 scales of int8, f16 d. */
export function packQ6K(file: Uint16Array, nGroups: number, { quants, highs, scales }: Planes): void {
  for (let g = 0, at = 0; g < nGroups; g++, at += 105) {
    // Of 128 columns, blocks 0 and 2 share 32 bytes, and 1 and 3.
    for (let s = 0; s < 8; s++) {
      const from = at + 32 * (s >> 2) + 16 * (s & 1);
      packNibbles(file, from, s & 2 ? 4 : 0, quants, 4 * (8 * g + s));
    }
    packPairs(file, at + 64, highs, 16 * g);
    const to = 9 * (g >> 1) + 4 * (g & 1);
    for (let i = 0; i < 4; i++) scales[to + i] = word(file, at + 96 + 2 * i);
    putHalf(scales, 9 * (g >> 1) + 8, g & 1, file[at + 104]!);
  }
}

/** The levels of a block stand in bits shift .. shift + 3 of 32 bytes, one after the other. */
function packNibbles(file: Uint16Array, from: number, shift: number, to: Uint32Array, at: number): void {
  for (let i = 0; i < 4; i++) {
    const low = (word(file, from + 2 * i) >>> shift) & 0x0f0f0f0f;
    const high = (word(file, from + 8 + 2 * i) >>> shift) & 0x0f0f0f0f;
    to[at + i] = low | (high << 4);
  }
}

/** Bit pairs of a group: blocks 0..3 stand in the four pairs of 32 bytes, blocks 4..7 in those of the next 32. */
function packPairs(file: Uint16Array, from: number, to: Uint32Array, at: number): void {
  for (let s = 0; s < 8; s++) {
    for (let i = 0; i < 2; i++) {
      let packed = 0;
      for (let k = 0; k < 4; k++) {
        const quad = word(file, from + 16 * (s >> 2) + 2 * (4 * i + k));
        packed |= ((quad >>> (2 * (s & 3))) & 0x03030303) << (2 * k);
      }
      to[at + 2 * s + i] = packed;
    }
  }
}

/** Single bits of a group: block s stands in bit s of 32 bytes. */
function packBits(file: Uint16Array, from: number, to: Uint32Array, at: number): void {
  for (let s = 0; s < 8; s++) {
    let packed = 0;
    for (let k = 0; k < 8; k++) packed |= ((word(file, from + 2 * k) >>> s) & 0x01010101) << k;
    to[at + s] = packed;
  }
}

/**
 * d, dmin and 12 bytes with 8 scales and 8 minima of six bits. Numbers 0..3 are the low six bits of bytes 0..3 (scales)
 * and 4..7 (minima); 4..7 have their low nibbles in bytes 8..11 and their upper pairs above numbers 0..3.
 */
function packSixBits(file: Uint16Array, at: number, scales: Uint32Array, to: number): void {
  const a = word(file, at + 2);
  const b = word(file, at + 4);
  const c = word(file, at + 6);
  let low = 0;
  let lowMin = 0;
  let upper = 0;
  for (let j = 0; j < 4; j++) {
    const shift = 8 * j;
    low |= (((a >>> shift) & 15) << (4 * j)) | (((c >>> shift) & 15) << (4 * j + 16));
    lowMin |= (((b >>> shift) & 15) << (4 * j)) | (((c >>> (shift + 4)) & 15) << (4 * j + 16));
    upper |= (((a >>> (shift + 4)) & 3) << (2 * j)) | (((a >>> (shift + 6)) & 3) << (2 * j + 8));
    upper |= (((b >>> (shift + 4)) & 3) << (2 * j + 16)) | (((b >>> (shift + 6)) & 3) << (2 * j + 24));
  }
  scales[to] = word(file, at);
  scales[to + 1] = low;
  scales[to + 2] = lowMin;
  scales[to + 3] = upper;
}

/** Writes one half of a word; half 0 comes first and clears the other. */
function putHalf(words: Uint32Array, at: number, half: number, bits: number): void {
  words[at] = half === 0 ? bits : words[at]! | (bits << 16);
}
