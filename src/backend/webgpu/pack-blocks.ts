/**
 * Packing of the types whose file blocks are blocks of 32 columns. File blocks are addressed in units of 16 bits: all
 * their fields begin at even bytes. Layouts of the planes: planes.ts.
 */

/** Destination of a pack: words of some whole rows. */
export interface Planes {
  readonly quants: Uint32Array<ArrayBuffer>;
  readonly highs: Uint32Array<ArrayBuffer>;
  readonly scales: Uint32Array<ArrayBuffer>;
}

/** The word at `i`, which need not be aligned. */
export function word(file: Uint16Array, i: number): number {
  return file[i]! | (file[i + 1]! << 16);
}

/** f16 d; 16 bytes of nibbles, whose order already is that of the plane. */
export function packQ4_0(file: Uint16Array, nBlocks: number, { quants, scales }: Planes): void {
  const d = halvesOf(scales);
  for (let b = 0, at = 0; b < nBlocks; b++, at += 9) {
    d[b] = file[at]!;
    for (let i = 0; i < 4; i++) quants[4 * b + i] = word(file, at + 1 + 2 * i);
  }
}

/** f16 d, f16 m; nibbles. */
export function packQ4_1(file: Uint16Array, nBlocks: number, { quants, scales }: Planes): void {
  for (let b = 0, at = 0; b < nBlocks; b++, at += 10) {
    scales[b] = word(file, at);
    for (let i = 0; i < 4; i++) quants[4 * b + i] = word(file, at + 2 + 2 * i);
  }
}

/** f16 d; a word of fifth bits, bit i for column i; nibbles. */
export function packQ5_0(file: Uint16Array, nBlocks: number, { quants, highs, scales }: Planes): void {
  const d = halvesOf(scales);
  for (let b = 0, at = 0; b < nBlocks; b++, at += 11) {
    d[b] = file[at]!;
    highs[b] = bitsByQuad(word(file, at + 1));
    for (let i = 0; i < 4; i++) quants[4 * b + i] = word(file, at + 3 + 2 * i);
  }
}

/** f16 d, f16 m; a word of fifth bits; nibbles. */
export function packQ5_1(file: Uint16Array, nBlocks: number, { quants, highs, scales }: Planes): void {
  for (let b = 0, at = 0; b < nBlocks; b++, at += 12) {
    scales[b] = word(file, at);
    highs[b] = bitsByQuad(word(file, at + 2));
    for (let i = 0; i < 4; i++) quants[4 * b + i] = word(file, at + 4 + 2 * i);
  }
}

/** f16 d; 32 signed bytes, which become unsigned levels 128 higher. */
export function packQ8_0(file: Uint16Array, nBlocks: number, { quants, scales }: Planes): void {
  const d = halvesOf(scales);
  for (let b = 0, at = 0; b < nBlocks; b++, at += 17) {
    d[b] = file[at]!;
    for (let i = 0; i < 8; i++) quants[8 * b + i] = word(file, at + 1 + 2 * i) ^ 0x80808080;
  }
}

/** For a byte of bits of 8 columns: bit i of each quad at bit 8i, the second quad one higher. */
const SPREAD = Uint32Array.from({ length: 256 }, (_, byte) => {
  let spread = 0;
  for (let i = 0; i < 4; i++) spread |= (((byte >> i) & 1) | (((byte >> (i + 4)) & 1) << 1)) << (8 * i);
  return spread;
});

/** From bit c for column c to bit k of byte i for column i of quad k. */
function bitsByQuad(bits: number): number {
  return (
    SPREAD[bits & 255]! |
    (SPREAD[(bits >>> 8) & 255]! << 2) |
    (SPREAD[(bits >>> 16) & 255]! << 4) |
    (SPREAD[bits >>> 24]! << 6)
  );
}

function halvesOf(words: Uint32Array<ArrayBuffer>): Uint16Array {
  return new Uint16Array(words.buffer, words.byteOffset, words.length * 2);
}
