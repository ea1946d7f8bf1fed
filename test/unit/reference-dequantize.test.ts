/**
 * The dequantization reference against blocks worked out by hand. Each block sets a few fields and names the elements
 * that they must show up in; all other elements of the block are checked against `elsewhere`. Constants of f16:
 * 1 = 0x3c00, 2 = 0x4000, 0.5 = 0x3800, -1 = 0xbc00, 0.25 = 0x3400.
 */

import assert from "node:assert/strict";
import { test } from "node:test";
import { QUANTIZERS, quantize, seededRandom, type TypeName } from "../../tools/gguf/model.mjs";
import { dequantize } from "../reference/dequantize.ts";
import { bf16, f16 } from "../reference/half.ts";

const ONE = [0x00, 0x3c];
const TWO = [0x00, 0x40];
const HALF = [0x00, 0x38];
const MINUS_ONE = [0x00, 0xbc];

/** A block of `size` bytes, all `fill`, with runs of bytes at some offsets. */
function block(size: number, runs: Record<number, number[]>, fill = 0): Uint8Array {
  const bytes = new Uint8Array(size).fill(fill);
  for (const [at, run] of Object.entries(runs)) bytes.set(run, Number(at));
  return bytes;
}

const GOLDEN: {
  name: string;
  typeId: number;
  bytes: Uint8Array;
  expected: Record<number, number>;
  elsewhere?: number;
}[] = [
  { name: "F32", typeId: 0, bytes: Uint8Array.of(0, 0, 0x20, 0xc1), expected: { 0: -10 } },
  { name: "F16", typeId: 1, bytes: Uint8Array.of(0x00, 0xc0, 0x01, 0x00), expected: { 0: -2, 1: 2 ** -24 } },
  { name: "BF16", typeId: 30, bytes: Uint8Array.of(0x49, 0xc0), expected: { 0: -3.140625 } },
  {
    // Byte 0 = 0xf0: element 0 is (0 - 8) / 2, element 16 is (15 - 8) / 2. Byte 15 = 0x9a: element 15 is (10 - 8) / 2,
    // element 31 is (9 - 8) / 2. All other nibbles are 8.
    name: "Q4_0",
    typeId: 2,
    bytes: block(18, { 0: HALF, 2: [0xf0], 17: [0x9a] }, 0x88),
    expected: { 0: -4, 16: 3.5, 15: 1, 31: 0.5 },
  },
  {
    // d = 2, m = -1. Byte 3 = 0x5f: element 3 is 15 * 2 - 1, element 19 is 5 * 2 - 1. Nibbles 0 elsewhere: -1.
    name: "Q4_1",
    typeId: 3,
    bytes: block(20, { 0: TWO, 2: MINUS_ONE, 7: [0x5f] }),
    expected: { 3: 29, 19: 9 },
    elsewhere: -1,
  },
  {
    // d = 1; fifth bits 0x80010001 (bits 0, 16, 31). Nibble byte 0 = 0x21: element 0 is 1 + 16 - 16, element 16 is
    // 2 + 16 - 16. Nibble byte 15 = 0xf0: element 15 is 0 - 16, element 31 is 15 + 16 - 16. Elsewhere 0 - 16.
    name: "Q5_0",
    typeId: 6,
    bytes: block(22, { 0: ONE, 2: [0x01, 0x00, 0x01, 0x80], 6: [0x21], 21: [0xf0] }),
    expected: { 0: 1, 16: 2, 31: 15 },
    elsewhere: -16,
  },
  {
    // d = 0.5, m = 2; fifth bits 0x00000300 (bits 8, 9). Nibble byte 8 = 0x04: element 8 is (4 + 16) / 2 + 2,
    // element 9 is 16 / 2 + 2, element 24 is 2 as elsewhere.
    name: "Q5_1",
    typeId: 7,
    bytes: block(24, { 0: HALF, 2: TWO, 4: [0x00, 0x03, 0x00, 0x00], 16: [0x04] }),
    expected: { 8: 12, 9: 10 },
    elsewhere: 2,
  },
  {
    name: "Q8_0",
    typeId: 8,
    bytes: block(34, { 0: HALF, 2: [127, 0x80], 33: [0xff] }),
    expected: { 0: 63.5, 1: -64, 31: -0.5 },
  },
  {
    // d = 1, dmin = 0.5. Scale bytes: sub-block 0 = 0x23 (scale 3, min 2), sub-block 9 = 0x1f (scale 15, min 1).
    // Level bytes: byte 0 = 0b00000011: quarter 0, l 0: element 0 has level 3. Byte 32 (second half) = 0b00001000:
    // quarter 1 has level 2 at element 128 + 32 + 0 = 160, in sub-block 10, whose scale is 0. Byte 48 = 0b00000001:
    // element 128 + 16 = 144, sub-block 9, level 1.
    name: "Q2_K",
    typeId: 10,
    bytes: block(84, {
      0: [0x23],
      9: [0x1f],
      16: [0b00000011],
      48: [0b00001000],
      64: [0b00000001],
      80: ONE,
      82: HALF,
    }),
    expected: {
      0: 3 * 3 - 0.5 * 2,
      // The rest of sub-block 0: level 0, so only the minimum.
      ...Object.fromEntries(Array.from({ length: 15 }, (_, i) => [i + 1, -1])),
      144: 15 * 1 - 0.5,
      ...Object.fromEntries(Array.from({ length: 15 }, (_, i) => [145 + i, -0.5])),
    },
  },
  {
    // d = 1. Scales, 12 bytes at 96: byte 0 = 0x10 gives sub-block 0 low bits 0 and sub-block 8 low bits 1; byte 8
    // (at 104) = 0b10000011: sub-block 0 (j%4 = 0, pair 0) high bits 3, sub-block 4 pair 1 = 0, sub-block 8 pair 2 = 0,
    // sub-block 12 pair 3 = 2. So scale 0 = 48 - 32 = 16, scale 8 = 1 - 32 = -31, scale 12 = 32 - 32 = 0, others -32.
    // Third bits: all set but element 0's (byte 0 = 0xfe). Level pairs are 0, but element 128's is 1 (byte 32 + 32).
    // So levels are 4 - 4 = 0 but element 0: 0 - 4 = -4, element 128: 1.
    name: "Q3_K",
    typeId: 11,
    bytes: block(110, {
      0: [0xfe, ...new Array(31).fill(0xff)],
      64: [0b00000001],
      96: [0x10],
      104: [0b10000011],
      108: ONE,
    }),
    expected: { 0: -64, 128: -31 },
  },
  {
    // d = 1, dmin = 0.5. Bytes of scales: 0: scale 0 = 5; 4: min 0 = 2. Sub-block 5: byte 9 = 0xad: low nibbles scale 13,
    // min 10; top bits of byte 1 = 0b10 -> scale 13 + 32 = 45; top bits of byte 5 = 0b01 -> min 10 + 16 = 26.
    // Nibbles: byte 0 = 0x07: element 0 has 7. Byte 64 (third group of 64) = 0xf0: element 128 + 32 = 160, sub-block 5, 15.
    name: "Q4_K",
    typeId: 12,
    bytes: block(144, { 0: ONE, 2: HALF, 4: [5, 0x80], 8: [2, 0x40], 13: [0xad], 16: [0x07], 80: [0xf0] }),
    expected: {
      0: 5 * 7 - 0.5 * 2,
      ...Object.fromEntries(Array.from({ length: 31 }, (_, i) => [i + 1, -1])),
      160: 45 * 15 - 0.5 * 26,
      ...Object.fromEntries(Array.from({ length: 31 }, (_, i) => [161 + i, -13])),
    },
  },
  {
    // d = 2, dmin = 1. Scale 7: byte 11 = 0x31 (scale 1, min 3), top bits of bytes 3 and 7 are 0b11 and 0: scale 49.
    // Fifth bits: byte 4 = 0x80: element 32 * 7 + 4 = 228. Nibbles: byte 96 + 4 = 0x20: the last group's second half,
    // element 192 + 32 + 4 = 228 has 2. Value 2 * 49 * (2 + 16) - 3.
    name: "Q5_K",
    typeId: 13,
    bytes: block(176, { 0: TWO, 2: ONE, 7: [0xc0], 15: [0x31], 20: [0x80], 148: [0x20] }),
    expected: {
      ...Object.fromEntries(Array.from({ length: 32 }, (_, i) => [224 + i, -3])),
      228: 2 * 49 * 18 - 3,
    },
  },
  {
    // d = 0.5; scales at 192: sub-block 0 = 2, sub-block 15 = -1 (0xff), others 0. Level 0 - 32 everywhere but:
    // element 1: low nibble of byte 1 = 5, pair 0 of byte 129 = 3: 5 + 48 - 32 = 21. Element 255 (half 1, quarter 3,
    // l 31): high nibble of byte 64 + 32 + 31 = 127 is 9, pair 3 of byte 128 + 32 + 31 = 191 is 2: 9 + 32 - 32 = 9.
    name: "Q6_K",
    typeId: 14,
    bytes: block(210, {
      1: [0x05],
      127: [0x90],
      129: [0b00000011],
      191: [0b10000000],
      192: [2],
      207: [0xff],
      208: HALF,
    }),
    expected: {
      ...Object.fromEntries(Array.from({ length: 16 }, (_, i) => [i, -32])),
      1: 21,
      ...Object.fromEntries(Array.from({ length: 16 }, (_, i) => [240 + i, 16])),
      255: -4.5,
    },
  },
  {
    // Levels 0 = -127, 15 = 113, 8 = 1. Byte 0 = 0xf0: element 0 is -127 / 2, element 16 is 113 / 2. Elsewhere 8: 0.5.
    name: "IQ4_NL",
    typeId: 20,
    bytes: block(18, { 0: HALF, 2: [0xf0] }, 0x88),
    expected: { 0: -63.5, 16: 56.5 },
    elsewhere: 0.5,
  },
];

for (const { name, typeId, bytes, expected, elsewhere = 0 } of GOLDEN) {
  test(`dequantize ${name}: a block by hand`, () => {
    const values = dequantize(typeId, bytes);
    for (const [i, value] of values.entries()) {
      // + 0 makes no difference of -0 and 0.
      assert.equal(value + 0, (expected[i] ?? elsewhere) + 0, `element ${i}`);
    }
    assert.ok(Object.keys(expected).every((i) => Number(i) < values.length));
  });

  test(`dequantize ${name}: block after block`, () => {
    const twice = new Uint8Array([...bytes, ...bytes]);
    const once = dequantize(typeId, bytes);
    assert.deepEqual(dequantize(typeId, twice), Float64Array.of(...once, ...once));
    // A view that does not start at its buffer's beginning.
    assert.deepEqual(dequantize(typeId, twice.subarray(bytes.byteLength)), once);
  });
}

test("half floats by hand", () => {
  assert.deepEqual([0x3c00, 0xc000, 0x7bff, 0x0001, 0x03ff, 0x0400, 0x8000].map(f16), [
    1,
    -2,
    65504,
    2 ** -24,
    1023 * 2 ** -24,
    2 ** -14,
    -0,
  ]);
  assert.deepEqual([0x7c00, 0xfc00, 0x7e00].map(f16), [Infinity, -Infinity, NaN]);
  assert.deepEqual([0x3f80, 0xc049, 0x0000].map(bf16), [1, -3.140625, 0]);
});

/** Relative error that each type must reach on numbers whose scale changes every 16; about twice what is measured. */
const ACCURACY: Record<TypeName, number> = {
  F32: 0,
  F16: 5e-4,
  BF16: 4e-3,
  Q8_0: 0.012,
  Q6_K: 0.035,
  Q5_0: 0.09,
  Q5_1: 0.08,
  Q5_K: 0.08,
  Q4_0: 0.18,
  Q4_1: 0.17,
  Q4_K: 0.17,
  IQ4_NL: 0.17,
  Q3_K: 0.28,
  Q2_K: 0.5,
};

/** Bytes with the exponent of an f16 scale, where that is not just byte 1. */
const HIGH_BYTES: Partial<Record<TypeName, number[]>> = {
  F32: [2, 3],
  BF16: [1],
  Q4_1: [1, 3],
  Q5_1: [1, 3],
  Q2_K: [81, 83],
  Q3_K: [109],
  Q4_K: [1, 3],
  Q5_K: [1, 3],
  Q6_K: [209],
};

for (const [name, limit] of Object.entries(ACCURACY) as [TypeName, number][]) {
  test(`${name}: what the generator writes reads back to within ${limit}`, () => {
    const random = seededRandom(11);
    let scale = 1;
    const x = Float32Array.from({ length: 256 * 40 }, (_, i) => {
      if (i % 16 === 0) scale = 2 ** (3 * random.uniform() - 2);
      return scale * random.gauss();
    });
    // Whole blocks of zeros and of one value must survive, too.
    x.fill(0, 256, 512).fill(-0.75, 512, 768);
    const y = dequantize(QUANTIZERS[name].id, quantize(name, x));
    let error = 0;
    let size = 0;
    for (const [i, value] of x.entries()) {
      error += (value - y[i]!) ** 2;
      size += value ** 2;
    }
    assert.ok(Math.sqrt(error / size) <= limit, `relative error ${Math.sqrt(error / size)}`);
    assert.ok(y.subarray(256, 512).every((v) => Math.abs(v) === 0));
  });

  test(`${name}: the generator uses every bit of the blocks`, () => {
    const random = seededRandom(12);
    const x = Float32Array.from({ length: 256 * 400 }, () => random.gauss() * 2 ** (4 * random.uniform()));
    const { blockBytes } = QUANTIZERS[name];
    const bytes = quantize(name, x);
    const everSet = new Uint8Array(blockBytes);
    const everClear = new Uint8Array(blockBytes);
    for (const [i, byte] of bytes.entries()) {
      everSet[i % blockBytes]! |= byte;
      everClear[i % blockBytes]! |= ~byte;
    }
    // The exponents of scales move in a narrow range: of the f16 and bf16 fields only the low byte is asked for.
    const isHigh = HIGH_BYTES[name] ?? [1];
    for (let at = 0; at < blockBytes; at++) {
      if (isHigh.includes(at)) continue;
      assert.equal(
        everSet[at]! & everClear[at]!,
        255,
        `byte ${at}: set ${everSet[at]}, clear ${everClear[at]}`,
      );
    }
  });
}
