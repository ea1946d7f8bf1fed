// How each quantized type's packed unit is read. One struct a type, all of the same shape:
//
//   kColumns     columns of a unit (32 or 256), cut into steps of 32 columns
//   kBytes       bytes of a unit: four rows' file blocks
//   kScales      scales per row and step: 1 (per 32 columns) or 2 (per 16)
//   kOffset      weight = scale * (q - kOffset); a power of two, or 0
//   kHasMin      weight = scale * q + min (and kOffset is 0)
//   kMaxQ        q lies in [0, kMaxQ] when unsigned
//   kSigned      q is a signed 8-bit number
//   scales(p, d, m)   d[step * kScales + i], m[...]: f32x4, one row a lane
//   quants(p, step, q)  q[0..7]: 16 bytes each, byte 4 * row + c is column 4 * i + c of the step
//
// Field orders inside a unit are written by pack.cpp; they are chosen so that reading needs the fewest
// instructions. Meaning of scales and mins: ggml's block definitions.
#pragma once

#include "simd.h"
#include "weights.h"

// Bytes of vector i of a nibble plane: low nibbles of the 64 bytes are columns 0..15 of the step, high nibbles 16..31.
INLAY_INLINE void unpack_nibbles(const uint8_t* p, i8x16 q[8]) {
  const v128_t low = simd_constants.low_nibbles;
  for (int i = 0; i < 4; i++) {
    const v128_t bytes = wasm_v128_load(p + 16 * i);
    q[i] = wasm_v128_and(bytes, low);
    q[4 + i] = wasm_v128_and(wasm_u16x8_shr(bytes, 4), low);
  }
}

// Adds bit i of every byte of `plane` to q[i] as 1 << 4.
INLAY_INLINE void add_fifth_bits(v128_t plane, i8x16 q[8]) {
  const v128_t bit4 = wasm_i8x16_const_splat(0x10);
  q[0] = wasm_v128_or(q[0], wasm_v128_and(wasm_i16x8_shl(plane, 4), bit4));
  q[1] = wasm_v128_or(q[1], wasm_v128_and(wasm_i16x8_shl(plane, 3), bit4));
  q[2] = wasm_v128_or(q[2], wasm_v128_and(wasm_i16x8_shl(plane, 2), bit4));
  q[3] = wasm_v128_or(q[3], wasm_v128_and(wasm_i16x8_shl(plane, 1), bit4));
  q[4] = wasm_v128_or(q[4], wasm_v128_and(plane, bit4));
  q[5] = wasm_v128_or(q[5], wasm_v128_and(wasm_u16x8_shr(plane, 1), bit4));
  q[6] = wasm_v128_or(q[6], wasm_v128_and(wasm_u16x8_shr(plane, 2), bit4));
  q[7] = wasm_v128_or(q[7], wasm_v128_and(wasm_u16x8_shr(plane, 3), bit4));
}

// Four bytes as f32x4.
INLAY_INLINE f32x4 load_u8x4(const uint8_t* p) {
  return wasm_f32x4_convert_i32x4(wasm_u32x4_extend_low_u16x8(wasm_u16x8_extend_low_u8x16(wasm_v128_load32_zero(p))));
}
INLAY_INLINE f32x4 load_i8x4(const uint8_t* p) {
  return wasm_f32x4_convert_i32x4(wasm_i32x4_extend_low_i16x8(wasm_i16x8_extend_low_i8x16(wasm_v128_load32_zero(p))));
}

// Q4_0: d * (q - 8).  Unit: d f16[4], nibbles[64].
struct FormatQ4_0 {
  static constexpr uint32_t kType = kQ4_0;
  static constexpr int kColumns = 32, kBytes = 72, kScales = 1, kMaxQ = 15, kOffset = 8;
  static constexpr bool kHasMin = false, kSigned = false;
  INLAY_INLINE void scales(const uint8_t* p, f32x4* d, f32x4*) { d[0] = f32x4_load_f16(p); }
  INLAY_INLINE void quants(const uint8_t* p, int, i8x16 q[8]) { unpack_nibbles(p + 8, q); }
};

// Q4_1: d * q + m.  Unit: d f16[4], m f16[4], nibbles[64].
struct FormatQ4_1 {
  static constexpr uint32_t kType = kQ4_1;
  static constexpr int kColumns = 32, kBytes = 80, kScales = 1, kMaxQ = 15, kOffset = 0;
  static constexpr bool kHasMin = true, kSigned = false;
  INLAY_INLINE void scales(const uint8_t* p, f32x4* d, f32x4* m) {
    d[0] = f32x4_load_f16(p);
    m[0] = f32x4_load_f16(p + 8);
  }
  INLAY_INLINE void quants(const uint8_t* p, int, i8x16 q[8]) { unpack_nibbles(p + 16, q); }
};

// Q5_0: d * (q - 16).  Unit: d f16[4], fifth bits[16], nibbles[64].
struct FormatQ5_0 {
  static constexpr uint32_t kType = kQ5_0;
  static constexpr int kColumns = 32, kBytes = 88, kScales = 1, kMaxQ = 31, kOffset = 16;
  static constexpr bool kHasMin = false, kSigned = false;
  INLAY_INLINE void scales(const uint8_t* p, f32x4* d, f32x4*) { d[0] = f32x4_load_f16(p); }
  INLAY_INLINE void quants(const uint8_t* p, int, i8x16 q[8]) {
    unpack_nibbles(p + 24, q);
    add_fifth_bits(wasm_v128_load(p + 8), q);
  }
};

// Q5_1: d * q + m.  Unit: d f16[4], m f16[4], fifth bits[16], nibbles[64].
struct FormatQ5_1 {
  static constexpr uint32_t kType = kQ5_1;
  static constexpr int kColumns = 32, kBytes = 96, kScales = 1, kMaxQ = 31, kOffset = 0;
  static constexpr bool kHasMin = true, kSigned = false;
  INLAY_INLINE void scales(const uint8_t* p, f32x4* d, f32x4* m) {
    d[0] = f32x4_load_f16(p);
    m[0] = f32x4_load_f16(p + 8);
  }
  INLAY_INLINE void quants(const uint8_t* p, int, i8x16 q[8]) {
    unpack_nibbles(p + 32, q);
    add_fifth_bits(wasm_v128_load(p + 16), q);
  }
};

// Q8_0: d * q.  Unit: d f16[4], int8[128].
struct FormatQ8_0 {
  static constexpr uint32_t kType = kQ8_0;
  static constexpr int kColumns = 32, kBytes = 136, kScales = 1, kMaxQ = 127, kOffset = 0;
  static constexpr bool kHasMin = false, kSigned = true;
  INLAY_INLINE void scales(const uint8_t* p, f32x4* d, f32x4*) { d[0] = f32x4_load_f16(p); }
  INLAY_INLINE void quants(const uint8_t* p, int, i8x16 q[8]) {
    for (int i = 0; i < 8; i++) q[i] = wasm_v128_load(p + 8 + 16 * i);
  }
};

// IQ4_NL: d * level[nibble].  Unit as Q4_0.
struct FormatIQ4_NL {
  static constexpr uint32_t kType = kIQ4_NL;
  static constexpr int kColumns = 32, kBytes = 72, kScales = 1, kMaxQ = 127, kOffset = 0;
  static constexpr bool kHasMin = false, kSigned = true;
  INLAY_INLINE void scales(const uint8_t* p, f32x4* d, f32x4*) { d[0] = f32x4_load_f16(p); }
  INLAY_INLINE void quants(const uint8_t* p, int, i8x16 q[8]) {
    const v128_t levels =
        wasm_i8x16_const(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113);
    unpack_nibbles(p + 8, q);
    for (int i = 0; i < 8; i++) q[i] = wasm_i8x16_swizzle(levels, q[i]);
  }
};

// The 6-bit scales and mins of Q4_K and Q5_K, one byte each: scale[8][4], min[8][4] (step, row), packed as
// low nibbles of 32 scales [16], of 32 mins [16], and two high bits of all 64 [16]. In the last, byte i holds
// scale i (bits 0-1), scale 16 + i (2-3), min i (4-5), min 16 + i (6-7).
INLAY_INLINE void unpack_k_scales(const uint8_t* p, f32x4 d_all, f32x4 dmin_all, f32x4* d, f32x4* m) {
  const v128_t low = wasm_i8x16_const_splat(0x0f), two = wasm_i8x16_const_splat(0x30);
  const v128_t s = wasm_v128_load(p), n = wasm_v128_load(p + 16), high = wasm_v128_load(p + 32);
  alignas(16) uint8_t bytes[64];
  wasm_v128_store(bytes, wasm_v128_or(wasm_v128_and(s, low), wasm_v128_and(wasm_i16x8_shl(high, 4), two)));
  wasm_v128_store(bytes + 16, wasm_v128_or(wasm_v128_and(wasm_u16x8_shr(s, 4), low),
                                           wasm_v128_and(wasm_i16x8_shl(high, 2), two)));
  wasm_v128_store(bytes + 32, wasm_v128_or(wasm_v128_and(n, low), wasm_v128_and(high, two)));
  wasm_v128_store(bytes + 48, wasm_v128_or(wasm_v128_and(wasm_u16x8_shr(n, 4), low),
                                           wasm_v128_and(wasm_u16x8_shr(high, 2), two)));
  const f32x4 minus_dmin = wasm_f32x4_neg(dmin_all);
  for (int step = 0; step < 8; step++) {
    d[step] = wasm_f32x4_mul(d_all, load_u8x4(bytes + 4 * step));
    m[step] = wasm_f32x4_mul(minus_dmin, load_u8x4(bytes + 32 + 4 * step));
  }
}

// Q4_K: d * scale * q - dmin * min, scales per 32.  Unit: d f16[4], dmin f16[4], scales[48], 8 x nibbles[64].
struct FormatQ4_K {
  static constexpr uint32_t kType = kQ4_K;
  static constexpr int kColumns = 256, kBytes = 576, kScales = 1, kMaxQ = 15, kOffset = 0;
  static constexpr bool kHasMin = true, kSigned = false;
  INLAY_INLINE void scales(const uint8_t* p, f32x4* d, f32x4* m) {
    unpack_k_scales(p + 16, f32x4_load_f16(p), f32x4_load_f16(p + 8), d, m);
  }
  INLAY_INLINE void quants(const uint8_t* p, int step, i8x16 q[8]) { unpack_nibbles(p + 64 + 64 * step, q); }
};

// Q5_K: as Q4_K with a fifth bit.  Unit: d, dmin, scales[48], 8 x (fifth bits[16], nibbles[64]).
struct FormatQ5_K {
  static constexpr uint32_t kType = kQ5_K;
  static constexpr int kColumns = 256, kBytes = 704, kScales = 1, kMaxQ = 31, kOffset = 0;
  static constexpr bool kHasMin = true, kSigned = false;
  INLAY_INLINE void scales(const uint8_t* p, f32x4* d, f32x4* m) {
    unpack_k_scales(p + 16, f32x4_load_f16(p), f32x4_load_f16(p + 8), d, m);
  }
  INLAY_INLINE void quants(const uint8_t* p, int step, i8x16 q[8]) {
    unpack_nibbles(p + 64 + 80 * step + 16, q);
    add_fifth_bits(wasm_v128_load(p + 64 + 80 * step), q);
  }
};

// Bits 2i..2i+1 of the 32 bytes of `p` are columns 8i..8i+7 of the step: vectors 2i and 2i + 1.
INLAY_INLINE void unpack_pairs(const uint8_t* p, i8x16 q[8]) {
  const v128_t three = wasm_i8x16_const_splat(3);
  for (int half = 0; half < 2; half++) {
    const v128_t bytes = wasm_v128_load(p + 16 * half);
    q[half] = wasm_v128_and(bytes, three);
    q[2 + half] = wasm_v128_and(wasm_u16x8_shr(bytes, 2), three);
    q[4 + half] = wasm_v128_and(wasm_u16x8_shr(bytes, 4), three);
    q[6 + half] = wasm_v128_and(wasm_u16x8_shr(bytes, 6), three);
  }
}

// Q2_K: d * scale * q - dmin * min, 4-bit scales per 16.
// Unit: d f16[4], dmin f16[4], (scale | min << 4)[16 sub-blocks][4 rows], 8 x pairs[32].
struct FormatQ2_K {
  static constexpr uint32_t kType = kQ2_K;
  static constexpr int kColumns = 256, kBytes = 336, kScales = 2, kMaxQ = 3, kOffset = 0;
  static constexpr bool kHasMin = true, kSigned = false;
  INLAY_INLINE void scales(const uint8_t* p, f32x4* d, f32x4* m) {
    const f32x4 d_all = f32x4_load_f16(p), minus_dmin = wasm_f32x4_neg(f32x4_load_f16(p + 8));
    alignas(16) uint8_t low[64], high[64];
    for (int i = 0; i < 4; i++) {
      const v128_t bytes = wasm_v128_load(p + 16 + 16 * i);
      wasm_v128_store(low + 16 * i, wasm_v128_and(bytes, wasm_i8x16_const_splat(0x0f)));
      wasm_v128_store(high + 16 * i, wasm_u8x16_shr(bytes, 4));
    }
    for (int i = 0; i < 16; i++) {
      d[i] = wasm_f32x4_mul(d_all, load_u8x4(low + 4 * i));
      m[i] = wasm_f32x4_mul(minus_dmin, load_u8x4(high + 4 * i));
    }
  }
  INLAY_INLINE void quants(const uint8_t* p, int step, i8x16 q[8]) { unpack_pairs(p + 80 + 32 * step, q); }
};

// Q3_K: d * (scale - 32) * (q - 4), 6-bit scales per 16.
// Unit: d f16[4], low nibbles of scales[32], two high bits[16], 8 x (third bits[16], pairs[32]).
struct FormatQ3_K {
  static constexpr uint32_t kType = kQ3_K;
  static constexpr int kColumns = 256, kBytes = 440, kScales = 2, kMaxQ = 7, kOffset = 4;
  static constexpr bool kHasMin = false, kSigned = false;
  INLAY_INLINE void scales(const uint8_t* p, f32x4* d, f32x4*) {
    const f32x4 d_all = f32x4_load_f16(p);
    const v128_t low = wasm_i8x16_const_splat(0x0f), two = wasm_i8x16_const_splat(0x30);
    const v128_t a = wasm_v128_load(p + 8), b = wasm_v128_load(p + 24), high = wasm_v128_load(p + 40);
    const v128_t offset = wasm_i8x16_const_splat(32);
    alignas(16) uint8_t bytes[64];  // (sub-block, row)
    const v128_t parts[4] = {
        wasm_v128_or(wasm_v128_and(a, low), wasm_v128_and(wasm_i16x8_shl(high, 4), two)),
        wasm_v128_or(wasm_v128_and(wasm_u16x8_shr(a, 4), low), wasm_v128_and(wasm_i16x8_shl(high, 2), two)),
        wasm_v128_or(wasm_v128_and(b, low), wasm_v128_and(high, two)),
        wasm_v128_or(wasm_v128_and(wasm_u16x8_shr(b, 4), low), wasm_v128_and(wasm_u16x8_shr(high, 2), two)),
    };
    for (int i = 0; i < 4; i++) wasm_v128_store(bytes + 16 * i, wasm_i8x16_sub(parts[i], offset));
    for (int i = 0; i < 16; i++) {
      d[i] = wasm_f32x4_mul(d_all, load_i8x4(bytes + 4 * i));
    }
  }
  INLAY_INLINE void quants(const uint8_t* p, int step, i8x16 q[8]) {
    const v128_t third = wasm_v128_load(p + 56 + 48 * step), four = wasm_i8x16_const_splat(4);
    unpack_pairs(p + 56 + 48 * step + 16, q);
    q[0] = wasm_v128_or(q[0], wasm_v128_and(wasm_i16x8_shl(third, 2), four));
    q[1] = wasm_v128_or(q[1], wasm_v128_and(wasm_i16x8_shl(third, 1), four));
    q[2] = wasm_v128_or(q[2], wasm_v128_and(third, four));
    q[3] = wasm_v128_or(q[3], wasm_v128_and(wasm_u16x8_shr(third, 1), four));
    q[4] = wasm_v128_or(q[4], wasm_v128_and(wasm_u16x8_shr(third, 2), four));
    q[5] = wasm_v128_or(q[5], wasm_v128_and(wasm_u16x8_shr(third, 3), four));
    q[6] = wasm_v128_or(q[6], wasm_v128_and(wasm_u16x8_shr(third, 4), four));
    q[7] = wasm_v128_or(q[7], wasm_v128_and(wasm_u16x8_shr(third, 5), four));
  }
};

// Q6_K: d * scale * (q - 32), signed 8-bit scales per 16.
// Unit: d f16[4], scales int8[16 sub-blocks][4 rows], 8 x (nibbles[64], high pairs[32]).
struct FormatQ6_K {
  static constexpr uint32_t kType = kQ6_K;
  static constexpr int kColumns = 256, kBytes = 840, kScales = 2, kMaxQ = 63, kOffset = 32;
  static constexpr bool kHasMin = false, kSigned = false;
  INLAY_INLINE void scales(const uint8_t* p, f32x4* d, f32x4*) {
    const f32x4 d_all = f32x4_load_f16(p);
    for (int i = 0; i < 16; i++) {
      d[i] = wasm_f32x4_mul(d_all, load_i8x4(p + 8 + 4 * i));
    }
  }
  INLAY_INLINE void quants(const uint8_t* p, int step, i8x16 q[8]) {
    const uint8_t* base = p + 72 + 96 * step;
    i8x16 high[8];
    unpack_nibbles(base, q);
    unpack_pairs(base + 64, high);
    for (int i = 0; i < 8; i++) q[i] = wasm_v128_or(q[i], wasm_i16x8_shl(high[i], 4));
  }
};

// Calls `f.template operator()<Format>()` for the quantized `type`. Returns false for float and unknown types.
template <class F>
inline bool with_format(uint32_t type, F f) {
  switch (type) {
    case kQ4_0: f.template operator()<FormatQ4_0>(); return true;
    case kQ4_1: f.template operator()<FormatQ4_1>(); return true;
    case kQ5_0: f.template operator()<FormatQ5_0>(); return true;
    case kQ5_1: f.template operator()<FormatQ5_1>(); return true;
    case kQ8_0: f.template operator()<FormatQ8_0>(); return true;
    case kQ2_K: f.template operator()<FormatQ2_K>(); return true;
    case kQ3_K: f.template operator()<FormatQ3_K>(); return true;
    case kQ4_K: f.template operator()<FormatQ4_K>(); return true;
    case kQ5_K: f.template operator()<FormatQ5_K>(); return true;
    case kQ6_K: f.template operator()<FormatQ6_K>(); return true;
    case kIQ4_NL: f.template operator()<FormatIQ4_NL>(); return true;
    default: return false;
  }
}
