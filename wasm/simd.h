// The SIMD vocabulary of the kernels: a few inline functions over wasm_simd128.h.
//
// Lanes are named as in WebAssembly (i8x16, i16x8, i32x4, f32x4). Everything that differs between the plain and
// the relaxed build is here or in matmul_tile.h, so that kernels read the same in both.
#pragma once

#include <wasm_simd128.h>

#include <cstddef>
#include <cstdint>

using i8x16 = v128_t;
using i16x8 = v128_t;
using i32x4 = v128_t;
using f32x4 = v128_t;

#define INLAY_INLINE static inline __attribute__((always_inline))

// Constants of inner loops. V8 makes a constant anew at every use, in three instructions; a value that was loaded before
// the loop stays in its register. They are defined in simd.cpp, so that no compiler can see and fold them.
struct SimdConstants {
  v128_t low_nibbles;  // 0x0f in every byte
  v128_t low_bytes;    // 0x00ff in every 16 bits
  v128_t f16_bits;     // sign, exponent and mantissa of an f16 that was shifted up by 13
  v128_t f16_scale;    // 2^112 in every f32: what the shift leaves of the exponent's bias
};
extern const SimdConstants simd_constants;

INLAY_INLINE f32x4 f32x4_zero() { return wasm_f32x4_const_splat(0.0f); }

INLAY_INLINE f32x4 f32x4_load_splat(const float* p) { return wasm_v128_load32_splat(p); }

// a * b + c; fused in the relaxed build, so the last bit may differ between builds and machines.
INLAY_INLINE f32x4 f32x4_madd(f32x4 a, f32x4 b, f32x4 c) {
#if INLAY_RELAXED
  return wasm_f32x4_relaxed_madd(a, b, c);
#else
  return wasm_f32x4_add(wasm_f32x4_mul(a, b), c);
#endif
}

// Sum of the four lanes, (0 + 2) + (1 + 3).
INLAY_INLINE float f32x4_sum(f32x4 v) {
  v = wasm_f32x4_add(v, wasm_i32x4_shuffle(v, v, 2, 3, 0, 1));
  v = wasm_f32x4_add(v, wasm_i32x4_shuffle(v, v, 1, 0, 3, 2));
  return wasm_f32x4_extract_lane(v, 0);
}

INLAY_INLINE int32_t i32x4_sum(i32x4 v) {
  v = wasm_i32x4_add(v, wasm_i32x4_shuffle(v, v, 2, 3, 0, 1));
  v = wasm_i32x4_add(v, wasm_i32x4_shuffle(v, v, 1, 0, 3, 2));
  return wasm_i32x4_extract_lane(v, 0);
}

INLAY_INLINE float f32x4_max_lane(f32x4 v) {
  v = wasm_f32x4_pmax(v, wasm_i32x4_shuffle(v, v, 2, 3, 0, 1));
  v = wasm_f32x4_pmax(v, wasm_i32x4_shuffle(v, v, 1, 0, 3, 2));
  return wasm_f32x4_extract_lane(v, 0);
}

// Four IEEE f16 values, sign-extended to 32 bits, as f32. Exact for all finite values, subnormals included;
// infinities and NaNs come out as large finite numbers (model files are checked for them when loaded).
INLAY_INLINE f32x4 f32x4_from_f16_bits(i32x4 h) {
  return wasm_f32x4_mul(wasm_v128_and(wasm_i32x4_shl(h, 13), simd_constants.f16_bits), simd_constants.f16_scale);
}

INLAY_INLINE f32x4 f32x4_load_f16(const void* p) { return f32x4_from_f16_bits(wasm_i32x4_load16x4(p)); }

// Four bf16 values as f32.
INLAY_INLINE f32x4 f32x4_load_bf16(const void* p) { return wasm_i32x4_shl(wasm_u32x4_load16x4(p), 16); }

// f32 to f16 bits, round to nearest even, in the low half of each lane; |x| must be below 65520.
INLAY_INLINE i32x4 f16_bits_from_f32x4(f32x4 x) {
  const i32x4 sign = wasm_v128_and(x, wasm_i32x4_const_splat(int32_t(0x80000000)));
  const f32x4 magnitude = wasm_v128_xor(x, sign);
  // Adding 2^(e+13) makes the hardware round the mantissa to 10 bits; below the normal range the step is fixed.
  const f32x4 exponent = wasm_v128_and(magnitude, wasm_i32x4_const_splat(0x7f800000));
  const f32x4 least = wasm_f32x4_const_splat(0x1p-14f);
  const f32x4 step = wasm_f32x4_mul(wasm_f32x4_max(exponent, least), wasm_f32x4_const_splat(0x1p13f));
  const f32x4 rounded = wasm_f32x4_sub(wasm_f32x4_add(magnitude, step), step);
  const i32x4 bits = wasm_f32x4_mul(rounded, wasm_f32x4_const_splat(0x1p-112f));
  return wasm_v128_or(wasm_u32x4_shr(bits, 13), wasm_u32x4_shr(sign, 16));
}

INLAY_INLINE float f16_to_f32(uint16_t h) {
  return wasm_f32x4_extract_lane(f32x4_from_f16_bits(wasm_i32x4_splat(int16_t(h))), 0);
}

INLAY_INLINE uint16_t f32_to_f16(float x) {
  return uint16_t(wasm_i32x4_extract_lane(f16_bits_from_f32x4(wasm_f32x4_splat(x)), 0));
}

// True when the f16 bits are neither infinite nor NaN.
INLAY_INLINE bool f16_is_finite(uint16_t h) { return (h & 0x7c00) != 0x7c00; }

// e^x, relative error below 2^-23. Results below 2^-126 are 0; x above 88.7 counts as 88.7; NaN stays NaN.
// x = n ln2 + r, |r| <= ln2/2; e^r by its Taylor polynomial of degree 7 (remainder (ln2/2)^8/8! = 5e-9).
INLAY_INLINE f32x4 f32x4_exp(f32x4 x) {
  x = wasm_f32x4_pmin(x, wasm_f32x4_const_splat(88.7f));  // pmin(a, b) = b < a ? b : a keeps a NaN in a
  const f32x4 n = wasm_f32x4_nearest(wasm_f32x4_mul(x, wasm_f32x4_const_splat(1.44269504f)));
  // ln 2 in two parts, the first with trailing zeros, so that n * part is exact.
  f32x4 r = wasm_f32x4_sub(x, wasm_f32x4_mul(n, wasm_f32x4_const_splat(0.693359375f)));
  r = wasm_f32x4_add(r, wasm_f32x4_mul(n, wasm_f32x4_const_splat(2.12194440e-4f)));
  f32x4 p = wasm_f32x4_const_splat(1.0f / 5040);
  p = f32x4_madd(p, r, wasm_f32x4_const_splat(1.0f / 720));
  p = f32x4_madd(p, r, wasm_f32x4_const_splat(1.0f / 120));
  p = f32x4_madd(p, r, wasm_f32x4_const_splat(1.0f / 24));
  p = f32x4_madd(p, r, wasm_f32x4_const_splat(1.0f / 6));
  p = f32x4_madd(p, r, wasm_f32x4_const_splat(0.5f));
  p = f32x4_madd(p, r, wasm_f32x4_const_splat(1.0f));
  p = f32x4_madd(p, r, wasm_f32x4_const_splat(1.0f));
  const i32x4 exponent = wasm_i32x4_shl(wasm_i32x4_trunc_sat_f32x4(n), 23);
  const f32x4 scaled = wasm_i32x4_add(p, exponent);
  const v128_t underflow = wasm_f32x4_lt(n, wasm_f32x4_const_splat(-126.0f));
  return wasm_v128_andnot(scaled, underflow);
}

// e^x for two f64, relative error below 2^-31: rounded to f32 it is the correctly rounded e^x all but always.
// |x| must be below 700.
INLAY_INLINE v128_t f64x2_exp(v128_t x) {
  const v128_t n = wasm_f64x2_nearest(wasm_f64x2_mul(x, wasm_f64x2_const_splat(1.4426950408889634)));
  const v128_t r = wasm_f64x2_sub(x, wasm_f64x2_mul(n, wasm_f64x2_const_splat(0.6931471805599453)));
  v128_t p = wasm_f64x2_const_splat(1.0 / 40320);
  const double terms[] = {1.0 / 5040, 1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 0.5, 1.0, 1.0};
  for (double term : terms) p = wasm_f64x2_add(wasm_f64x2_mul(p, r), wasm_f64x2_splat(term));
  // 2^n through the exponent bits: n + 1023 in the upper 12 bits of each lane.
  const i32x4 exponents = wasm_i32x4_trunc_sat_f64x2_zero(n);
  const v128_t scale = wasm_i64x2_shl(wasm_i64x2_add(wasm_i64x2_extend_low_i32x4(exponents), wasm_i64x2_const_splat(1023)), 52);
  return wasm_f64x2_mul(p, scale);
}

// e^x, correctly rounded all but always; slower than f32x4_exp. |x| is cut at 88.7; NaN stays NaN.
INLAY_INLINE f32x4 f32x4_exp_exact(f32x4 x) {
  x = wasm_f32x4_pmax(wasm_f32x4_pmin(x, wasm_f32x4_const_splat(88.7f)), wasm_f32x4_const_splat(-104.0f));
  const f32x4 low = wasm_f32x4_demote_f64x2_zero(f64x2_exp(wasm_f64x2_promote_low_f32x4(x)));
  const f32x4 upper = wasm_i64x2_shuffle(x, x, 1, 1);
  const f32x4 high = wasm_f32x4_demote_f64x2_zero(f64x2_exp(wasm_f64x2_promote_low_f32x4(upper)));
  return wasm_i64x2_shuffle(low, high, 0, 2);
}
