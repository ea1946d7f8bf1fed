// Attention in two passes, in ggml's order of operations.
//
// Softmax over the whole row, then the weighted sum; every product and sum rounded to f32 where llama.cpp (flash
// attention off, SIMD of four f32 lanes) rounds it. The projection after attention rounds its input to 8 bits, so two
// engines whose attention differs in the last bit part ways as soon as one value lies on the edge between two
// integers. With this order a model's tokens are llama.cpp's. It is also the obviously right twin of the flash
// kernel in attention.cpp, which is faster once there are more than a few hundred keys.

#include "attention_exact.h"

#include <cstring>

#include "simd.h"

namespace {

// Visits partial sums in the order that ggml adds them up: four groups, each (l + (l + 8)) + ((l + 4) + (l + 12)).
// `partial(i)` is the i-th of 16 partial sums.
template <class F>
INLAY_INLINE f32x4 sum_partials(const F& partial) {
  f32x4 total = f32x4_zero();
  for (int l = 0; l < 4; l++) {
    const f32x4 a = wasm_f32x4_add(partial(l), partial(l + 8));
    const f32x4 b = wasm_f32x4_add(partial(l + 4), partial(l + 12));
    const f32x4 group = wasm_f32x4_add(a, b);
    total = l == 0 ? group : wasm_f32x4_add(total, group);
  }
  return total;
}

// q · k of four neighbouring tokens.  k: (head_dim, 32), from the first of the four.
INLAY_INLINE f32x4 dot_four_tokens(const float* q, const float* k, int head_dim) {
  const int even = head_dim & ~15;
  f32x4 sum = f32x4_zero();
  if (even > 0) {
    sum = sum_partials([&](int i) {
      f32x4 partial = f32x4_zero();
      for (int c = i; c < even; c += 16)
        partial = wasm_f32x4_add(partial, wasm_f32x4_mul(f32x4_load_splat(q + c), wasm_v128_load(k + c * kPageTokens)));
      return partial;
    });
  }
  for (int c = even; c < head_dim; c++)
    sum = wasm_f32x4_add(sum, wasm_f32x4_mul(f32x4_load_splat(q + c), wasm_v128_load(k + c * kPageTokens)));
  return sum;
}

// Scores -> probabilities in place; keys whose score is -infinity get 0.
void softmax(float* x, int n) {
  f32x4 top = wasm_v128_load(x);
  for (int j = 4; j < n; j += 4) top = wasm_f32x4_max(top, wasm_v128_load(x + j));
  float max = wasm_f32x4_extract_lane(top, 0);
  const float lanes[] = {wasm_f32x4_extract_lane(top, 1), wasm_f32x4_extract_lane(top, 2), wasm_f32x4_extract_lane(top, 3)};
  for (float lane : lanes) max = lane <= max ? max : lane;
  double sum = 0;
  for (int j = 0; j < n; j += 4) {
    const f32x4 score = wasm_v128_load(x + j);
    const f32x4 masked = wasm_f32x4_eq(score, wasm_f32x4_const_splat(-__builtin_inff()));
    const f32x4 e = wasm_v128_andnot(f32x4_exp_exact(wasm_f32x4_sub(score, wasm_f32x4_splat(max))), masked);
    wasm_v128_store(x + j, e);
    for (int i = 0; i < 4; i++) sum += double(x[j + i]);
  }
  const f32x4 scale = wasm_f32x4_splat(float(1.0 / sum));
  for (int j = 0; j < n; j += 4) wasm_v128_store(x + j, wasm_f32x4_mul(wasm_v128_load(x + j), scale));
}

}  // namespace

void attend_row_exact(const ExactRow& row, float* scores, float* out) {
  const int head_dim = row.head_dim;
  for (int i = 0; i < row.n_pages; i++) {
    float* page_scores = scores + i * kPageTokens;
    for (int v = 0; v < kPageTokens; v += 4) {
      const f32x4 x = wasm_f32x4_mul(dot_four_tokens(row.q, row.k[i] + v, head_dim), wasm_f32x4_splat(row.scale));
      wasm_v128_store(page_scores + v, x);
    }
    if (row.softcap > 0)
      for (int j = 0; j < kPageTokens; j++) page_scores[j] = row.softcap * tanhf(page_scores[j] / row.softcap);
    for (int j = 0; j < kPageTokens; j++)
      if ((row.keep[i] >> j & 1) == 0) page_scores[j] = -__builtin_inff();
  }
  const int n_keys = row.n_pages * kPageTokens;
  softmax(scores, n_keys);
  for (int c = 0; c < head_dim; c += 4) {
    const f32x4 sum = sum_partials([&](int i) {
      f32x4 partial = f32x4_zero();
      for (int j = i; j < n_keys; j += 16) {
        const float* value = row.v[j / kPageTokens] + (j % kPageTokens) * head_dim + c;
        partial = wasm_f32x4_add(partial, wasm_f32x4_mul(f32x4_load_splat(scores + j), wasm_v128_load(value)));
      }
      return partial;
    });
    wasm_v128_store(out + c, sum);
  }
}
