#include "activations.h"

#include <cstring>

#include "simd.h"

namespace {

size_t align64(size_t n) { return (n + 63) & ~size_t(63); }

// Tokens, or copies of the only one.
size_t stored_tokens(int n_tokens) { return size_t(n_tokens + kTileTokens - 1) / kTileTokens * kTileTokens; }

// C's roundf: halves go away from zero. They occur (16.5 exactly), and decide whether tokens are llama.cpp's.
INLAY_INLINE i32x4 round_half_away(f32x4 x) {
  const f32x4 whole = wasm_f32x4_trunc(x);
  const f32x4 rest = wasm_f32x4_abs(wasm_f32x4_sub(x, whole));
  const v128_t up = wasm_f32x4_ge(rest, wasm_f32x4_const_splat(0.5f));  // all ones = -1 where it rounds away
  const i32x4 sign = wasm_v128_or(wasm_i32x4_shr(x, 31), wasm_i32x4_const_splat(1));
  return wasm_i32x4_add(wasm_i32x4_trunc_sat_f32x4(whole), wasm_v128_and(up, sign));
}

// 32 columns of one token -> 4 vectors of 8 columns, d, and the sums of the two halves.
INLAY_INLINE void quantize_block(const float* x, i16x8 q[4], float* d, int32_t sums[2]) {
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
  sums[0] = i32x4_sum(low);
  sums[1] = i32x4_sum(high);
}

// Writes the four groups of 4 bytes of `v` 4 * kTileTokens bytes apart; for one token, four times each.
template <int T>
INLAY_INLINE void store_groups(int8_t* out, v128_t v) {
  static_assert(kCopies == kTileTokens && (T == 1 || T == kTileTokens));
  if constexpr (T == 1) {
    wasm_v128_store(out, wasm_i32x4_shuffle(v, v, 0, 0, 0, 0));
    wasm_v128_store(out + 16, wasm_i32x4_shuffle(v, v, 1, 1, 1, 1));
    wasm_v128_store(out + 32, wasm_i32x4_shuffle(v, v, 2, 2, 2, 2));
    wasm_v128_store(out + 48, wasm_i32x4_shuffle(v, v, 3, 3, 3, 3));
  } else {
    wasm_v128_store32_lane(out, v, 0);
    wasm_v128_store32_lane(out + 4 * T, v, 1);
    wasm_v128_store32_lane(out + 8 * T, v, 2);
    wasm_v128_store32_lane(out + 12 * T, v, 3);
  }
}

template <int T>
void quantize_tile_of(const Activations& a, const float* x, int t) {
  const int n_blocks = a.n_blocks();
  const int first = t * T;
  for (int lane = 0; lane < T; lane++) {
    const bool present = first + lane < a.n_tokens;
    const float* row = x + size_t(first + lane) * a.cols;
    for (int b = 0; b < n_blocks; b++) {
      i16x8 q[4] = {};
      float d = 0;
      int32_t sums[2] = {};
      if (present) quantize_block(row + 32 * b, q, &d, sums);
      a.d[(size_t(t) * n_blocks + b) * T + lane] = d;
      int32_t* out_sums = a.sums + (size_t(t) * n_blocks + b) * 3 * T + lane;
      out_sums[0] = sums[0];
      out_sums[T] = sums[1];
      out_sums[2 * T] = sums[0] + sums[1];
      // Bytes of all copies of 32 columns: for one token as many as for a tile of four.
      const size_t at = (size_t(t) * n_blocks + b) * 32 * kTileTokens;
      if (a.narrow) {
        int8_t* out = a.narrow + at + 4 * lane;
        for (int i = 0; i < 2; i++) store_groups<T>(out + 16 * i * kTileTokens, wasm_i8x16_narrow_i16x8(q[2 * i], q[2 * i + 1]));
      }
      if (a.wide) {
        int8_t* out = reinterpret_cast<int8_t*>(a.wide + at) + 4 * lane;
        for (int i = 0; i < 4; i++)
          store_groups<T>(out + 16 * i * kTileTokens, wasm_i16x8_shuffle(q[i], q[i], 0, 2, 1, 3, 4, 6, 5, 7));
      }
    }
  }
}

}  // namespace

size_t activation_bytes(int n_tokens, int cols, bool narrow, bool wide) {
  const size_t n = stored_tokens(n_tokens) * cols;
  return align64(narrow ? n : 0) + align64(wide ? 2 * n : 0) + align64(n / 32 * 4) + align64(n / 32 * 12);
}

Activations plan_activations(int n_tokens, int cols, bool narrow, bool wide, void* scratch) {
  const size_t n = stored_tokens(n_tokens) * cols;
  Activations a = {};
  a.n_tokens = n_tokens;
  a.cols = cols;
  a.tile = n_tokens == 1 ? 1 : kTileTokens;
  a.n_tiles = (n_tokens + a.tile - 1) / a.tile;
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
  a.sums = reinterpret_cast<int32_t*>(p);
  return a;
}

void quantize_tile(const Activations& a, const float* x, int t) {
  if (a.tile == 1) {
    quantize_tile_of<1>(a, x, t);
  } else {
    quantize_tile_of<kTileTokens>(a, x, t);
  }
}
