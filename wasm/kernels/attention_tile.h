// The two small matrix products of attention on one page: scores = q · Kᵀ and acc = acc * c + p · V.
#pragma once

#include "attention.h"
#include "simd.h"

constexpr int kTokenVectors = kPageTokens / 4;

// Vectors of 4 tokens computed together for kRows query rows: as many accumulators as fit the 16 registers.
constexpr int token_vectors(int rows) { return rows == 1 ? 8 : rows == 4 ? 2 : 4; }

// Tokens [from, to) of a page that a selection keeps, and what lies between them; multiples of 8.
struct TokenRange {
  int from = 0, to = kPageTokens;
  bool is_whole() const { return to - from == kPageTokens; }
};

// The range of the tokens in a mask that is not 0.
INLAY_INLINE TokenRange range_of(uint32_t mask) {
  return {__builtin_ctz(mask) & ~7, (39 - __builtin_clz(mask)) & ~7};
}

// Scores of kVectors * 4 neighbouring tokens.
template <int kRows, int kVectors>
INLAY_INLINE void score_tokens(const float* q, const float* k, int head_dim, int first, float scores[][kPageTokens]) {
  f32x4 acc[kRows][kVectors];
  for (int r = 0; r < kRows; r++)
    for (int v = 0; v < kVectors; v++) acc[r][v] = f32x4_zero();
  const float* column = k + first;
  const float* queries = q;
  for (int c = 0; c < head_dim; c++, column += kPageTokens, queries += kRows) {
    f32x4 keys[kVectors];
    for (int v = 0; v < kVectors; v++) keys[v] = wasm_v128_load(column + 4 * v);
    for (int r = 0; r < kRows; r++) {
      const f32x4 query = f32x4_load_splat(queries + r);
      for (int v = 0; v < kVectors; v++) acc[r][v] = f32x4_madd(query, keys[v], acc[r][v]);
    }
  }
  for (int r = 0; r < kRows; r++)
    for (int v = 0; v < kVectors; v++) wasm_v128_store(&scores[r][first + 4 * v], acc[r][v]);
}

// scores[r][j] = q_r · k_j for the tokens of the range.  q: (head_dim, kRows);  k: (head_dim, 32).
template <int kRows>
INLAY_INLINE void score_page(const float* q, const float* k, int head_dim, float scores[][kPageTokens],
                             TokenRange range = {}) {
  constexpr int kVectors = token_vectors(kRows);
  if (range.is_whole()) {
    for (int j = 0; j < kPageTokens; j += 4 * kVectors) score_tokens<kRows, kVectors>(q, k, head_dim, j, scores);
    return;
  }
  for (int j = range.from; j < range.to; j += 8) score_tokens<kRows, 2>(q, k, head_dim, j, scores);
}

// kVectors * 4 dims of acc for kRows rows.
template <int kRows, int kVectors>
INLAY_INLINE void weigh_dims(const float p[][kPageTokens], const float* v, int head_dim, const float* correction,
                             TokenRange range, float* acc) {
  f32x4 sums[kRows][kVectors];
  for (int r = 0; r < kRows; r++)
    for (int i = 0; i < kVectors; i++)
      sums[r][i] = wasm_f32x4_mul(wasm_v128_load(acc + r * head_dim + 4 * i), f32x4_load_splat(correction + r));
  v += range.from * head_dim;
  for (int j = range.from; j < range.to; j++, v += head_dim) {
    f32x4 values[kVectors];
    for (int i = 0; i < kVectors; i++) values[i] = wasm_v128_load(v + 4 * i);
    for (int r = 0; r < kRows; r++) {
      const f32x4 weight = f32x4_load_splat(&p[r][j]);
      for (int i = 0; i < kVectors; i++) sums[r][i] = f32x4_madd(weight, values[i], sums[r][i]);
    }
  }
  for (int r = 0; r < kRows; r++)
    for (int i = 0; i < kVectors; i++) wasm_v128_store(acc + r * head_dim + 4 * i, sums[r][i]);
}

// acc_r = acc_r * correction_r + sum_j p[r][j] * v_j over the range's tokens.  v: (32, head_dim);  acc: (kRows, head_dim).
template <int kRows>
INLAY_INLINE void weigh_page(const float p[][kPageTokens], const float* v, int head_dim, const float* correction,
                             TokenRange range, float* acc) {
  constexpr int kVectors = kRows == 4 ? 2 : 4;
  int dim = 0;
  for (; dim + 4 * kVectors <= head_dim; dim += 4 * kVectors)
    weigh_dims<kRows, kVectors>(p, v + dim, head_dim, correction, range, acc + dim);
  if constexpr (kVectors > 2) {
    if (dim < head_dim) weigh_dims<kRows, 2>(p, v + dim, head_dim, correction, range, acc + dim);
  }
}

// Four scores times `scale`; -inf for those of the first four bits of `keep` that are 0.
INLAY_INLINE f32x4 kept_scores(const float* scores, float scale, uint32_t keep) {
  const f32x4 x = wasm_f32x4_mul(wasm_v128_load(scores), wasm_f32x4_splat(scale));
  if (keep == 0xffffffffu) return x;
  const i32x4 bits = wasm_v128_and(wasm_i32x4_splat(int32_t(keep)), wasm_i32x4_const(1, 2, 4, 8));
  const f32x4 minus_infinity = wasm_f32x4_const_splat(-__builtin_inff());
  return wasm_v128_bitselect(minus_infinity, x, wasm_i32x4_eq(bits, wasm_i32x4_const_splat(0)));
}

// Online softmax of one row's 32 scores times `scale`, in place: scores become weights e^(x - max).
// `keep`: bit j keeps token j; none outside the range. Updates the running max and sum; returns what the old acc must be
// multiplied by.
INLAY_INLINE float softmax_row(float* scores, float scale, uint32_t keep, TokenRange range, float* row_max, float* row_sum) {
  f32x4 x[kTokenVectors];
  f32x4 top;
  if (range.is_whole()) {
    if (keep == 0xffffffffu)
      for (int v = 0; v < kTokenVectors; v++) x[v] = kept_scores(scores + 4 * v, scale, 0xffffffffu);
    else
      for (int v = 0; v < kTokenVectors; v++) x[v] = kept_scores(scores + 4 * v, scale, keep >> (4 * v) & 15);
    top = x[0];
    for (int v = 1; v < kTokenVectors; v++) top = wasm_f32x4_pmax(top, x[v]);
  } else {
    top = wasm_f32x4_const_splat(-__builtin_inff());
    for (int j = range.from; j < range.to; j += 4) {
      const f32x4 kept = kept_scores(scores + j, scale, keep >> j & 15);
      wasm_v128_store(scores + j, kept);
      top = wasm_f32x4_pmax(top, kept);
    }
  }
  const float page_max = f32x4_max_lane(top);
  // Written so that a NaN score becomes the maximum and reaches the output, where it is seen.
  const float new_max = page_max <= *row_max ? *row_max : page_max;
  if (new_max == -__builtin_inff()) {
    for (int v = 0; v < kTokenVectors; v++) wasm_v128_store(scores + 4 * v, f32x4_zero());
    return 1.0f;
  }
  const f32x4 shift = wasm_f32x4_splat(new_max);
  f32x4 sum = f32x4_zero();
  if (range.is_whole()) {
    for (int v = 0; v < kTokenVectors; v++) {
      x[v] = f32x4_exp(wasm_f32x4_sub(x[v], shift));
      sum = wasm_f32x4_add(sum, x[v]);
      wasm_v128_store(scores + 4 * v, x[v]);
    }
  } else {
    for (int j = range.from; j < range.to; j += 4) {
      const f32x4 weight = f32x4_exp(wasm_f32x4_sub(wasm_v128_load(scores + j), shift));
      sum = wasm_f32x4_add(sum, weight);
      wasm_v128_store(scores + j, weight);
    }
  }
  const float correction =
      *row_max == -__builtin_inff()
          ? 0.0f
          : wasm_f32x4_extract_lane(f32x4_exp(wasm_f32x4_splat(*row_max - new_max)), 0);
  *row_max = new_max;
  *row_sum = *row_sum * correction + f32x4_sum(sum);
  return correction;
}
