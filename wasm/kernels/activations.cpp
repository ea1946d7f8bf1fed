#include "activations.h"

#include <cstring>

#include "simd.h"

namespace {

size_t align64(size_t n) { return (n + 63) & ~size_t(63); }

int padded_tokens(int n_tokens) {
  return n_tokens == 1 ? 1 : (n_tokens + kTileTokens - 1) / kTileTokens * kTileTokens;
}

// C's roundf: halves go away from zero. They occur (16.5 exactly), and decide whether tokens are llama.cpp's.
INLAY_INLINE i32x4 round_half_away(f32x4 x) {
  const f32x4 whole = wasm_f32x4_trunc(x);
  const f32x4 rest = wasm_f32x4_abs(wasm_f32x4_sub(x, whole));
  const v128_t up = wasm_f32x4_ge(rest, wasm_f32x4_const_splat(0.5f));  // all ones = -1 where it rounds away
  const i32x4 sign = wasm_v128_or(wasm_i32x4_shr(x, 31), wasm_i32x4_const_splat(1));
  return wasm_i32x4_add(wasm_i32x4_trunc_sat_f32x4(whole), wasm_v128_and(up, sign));
}

// 32 columns of one token -> 16 i16 pairs in 4 vectors, and d and sums.
INLAY_INLINE void quantize_block(const float* x, i16x8 q[4], float* d, float* sum_low, float* sum_high) {
  f32x4 v[8];
  for (int i = 0; i < 8; i++) v[i] = wasm_v128_load(x + 4 * i);
  f32x4 top = wasm_f32x4_abs(v[0]);
  for (int i = 1; i < 8; i++) top = wasm_f32x4_pmax(top, wasm_f32x4_abs(v[i]));
  const float amax = f32x4_max_lane(top);
  const float exact = amax / 127.0f;
  const f32x4 scales = wasm_f32x4_splat(exact > 0 ? 1.0f / exact : 0.0f);
  i32x4 r[8];
  for (int i = 0; i < 8; i++) r[i] = round_half_away(wasm_f32x4_mul(v[i], scales));
  for (int i = 0; i < 4; i++) q[i] = wasm_i16x8_narrow_i32x4(r[2 * i], r[2 * i + 1]);
  const i32x4 low = wasm_i32x4_add(wasm_i32x4_add(r[0], r[1]), wasm_i32x4_add(r[2], r[3]));
  const i32x4 high = wasm_i32x4_add(wasm_i32x4_add(r[4], r[5]), wasm_i32x4_add(r[6], r[7]));
  *d = f16_to_f32(f32_to_f16(exact < 65504.0f ? exact : 65504.0f));
  *sum_low = *d * f32x4_sum(wasm_f32x4_convert_i32x4(low));
  *sum_high = *d * f32x4_sum(wasm_f32x4_convert_i32x4(high));
}

template <int T>
void quantize_tile_of(const Activations& a, const float* x, int t) {
  const int n_blocks = a.n_blocks();
  const int first = t * T;
  const size_t elements = size_t(a.cols) * T;
  for (int lane = 0; lane < T; lane++) {
    const bool present = first + lane < a.n_tokens;
    const float* row = x + size_t(first + lane) * a.cols;
    for (int b = 0; b < n_blocks; b++) {
      i16x8 q[4] = {};
      float d = 0, low = 0, high = 0;
      if (present) quantize_block(row + 32 * b, q, &d, &low, &high);
      a.d[size_t(t) * n_blocks * T + b * T + lane] = d;
      a.sum16[size_t(t) * n_blocks * 2 * T + b * 2 * T + lane] = low;
      a.sum16[size_t(t) * n_blocks * 2 * T + b * 2 * T + T + lane] = high;
      if (a.narrow) {
        int8_t* out = a.narrow + t * elements + size_t(b) * 32 * T + 4 * lane;
        for (int i = 0; i < 2; i++) {
          const v128_t bytes = wasm_i8x16_narrow_i16x8(q[2 * i], q[2 * i + 1]);
          wasm_v128_store32_lane(out + (4 * i + 0) * 4 * T, bytes, 0);
          wasm_v128_store32_lane(out + (4 * i + 1) * 4 * T, bytes, 1);
          wasm_v128_store32_lane(out + (4 * i + 2) * 4 * T, bytes, 2);
          wasm_v128_store32_lane(out + (4 * i + 3) * 4 * T, bytes, 3);
        }
      }
      if (a.wide) {
        int16_t* out = a.wide + t * elements + size_t(b) * 32 * T + 2 * lane;
        for (int i = 0; i < 4; i++) {
          wasm_v128_store32_lane(out + (4 * i + 0) * 2 * T, q[i], 0);
          wasm_v128_store32_lane(out + (4 * i + 1) * 2 * T, q[i], 1);
          wasm_v128_store32_lane(out + (4 * i + 2) * 2 * T, q[i], 2);
          wasm_v128_store32_lane(out + (4 * i + 3) * 2 * T, q[i], 3);
        }
      }
    }
  }
}

}  // namespace

size_t activation_bytes(int n_tokens, int cols, bool narrow, bool wide) {
  const size_t n = size_t(padded_tokens(n_tokens)) * cols;
  return align64(narrow ? n : 0) + align64(wide ? 2 * n : 0) + align64(n / 32 * 4) + align64(n / 16 * 4);
}

Activations plan_activations(int n_tokens, int cols, bool narrow, bool wide, void* scratch) {
  const size_t n = size_t(padded_tokens(n_tokens)) * cols;
  Activations a = {};
  a.n_tokens = n_tokens;
  a.cols = cols;
  a.tile = n_tokens == 1 ? 1 : kTileTokens;
  a.n_tiles = padded_tokens(n_tokens) / a.tile;
  uint8_t* p = static_cast<uint8_t*>(scratch);
  if (narrow) {
    a.narrow = reinterpret_cast<int8_t*>(p);
    p += align64(n);
  }
  if (wide) {
    a.wide = reinterpret_cast<int16_t*>(p);
    p += align64(2 * n);
  }
  a.d = reinterpret_cast<float*>(p);
  p += align64(n / 32 * 4);
  a.sum16 = reinterpret_cast<float*>(p);
  return a;
}

void quantize_tile(const Activations& a, const float* x, int t) {
  if (a.tile == 1) {
    quantize_tile_of<1>(a, x, t);
  } else {
    quantize_tile_of<kTileTokens>(a, x, t);
  }
}
