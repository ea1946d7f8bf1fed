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

// N vectors of four values, computed together: they share the broadcast operand and hide each other's latency.
template <int N>
struct Vectors {
  f32x4 v[N];
};

template <int N>
INLAY_INLINE Vectors<N> zero() {
  Vectors<N> sum;
  for (int i = 0; i < N; i++) sum.v[i] = f32x4_zero();
  return sum;
}

template <int N>
INLAY_INLINE Vectors<N> add(const Vectors<N>& a, const Vectors<N>& b) {
  Vectors<N> sum;
  for (int i = 0; i < N; i++) sum.v[i] = wasm_f32x4_add(a.v[i], b.v[i]);
  return sum;
}

// sum += x * (the N vectors at p), unfused.
template <int N>
INLAY_INLINE void add_product(Vectors<N>& sum, const float* x, const float* p) {
  const f32x4 factor = f32x4_load_splat(x);
  for (int i = 0; i < N; i++)
    sum.v[i] = wasm_f32x4_add(sum.v[i], wasm_f32x4_mul(factor, wasm_v128_load(p + 4 * i)));
}

// Visits partial sums in the order that ggml adds them up: four groups, each (l + (l + 8)) + ((l + 4) + (l + 12)).
// `partial(i)` is the i-th of 16 partial sums.
template <int N, class F>
INLAY_INLINE Vectors<N> sum_partials(const F& partial) {
  Vectors<N> total;
  for (int l = 0; l < 4; l++) {
    const Vectors<N> a = add(partial(l), partial(l + 8));
    const Vectors<N> b = add(partial(l + 4), partial(l + 12));
    total = l == 0 ? add(a, b) : add(total, add(a, b));
  }
  return total;
}

// q · k of 4 N neighbouring tokens.  k: (head_dim, 32), from the first of them.
template <int N>
INLAY_INLINE Vectors<N> dot_tokens(const float* q, const float* k, int head_dim) {
  const int even = head_dim & ~15;
  Vectors<N> sum = zero<N>();
  if (even > 0) {
    sum = sum_partials<N>([&](int i) {
      Vectors<N> partial = zero<N>();
      for (int c = i; c < even; c += 16) add_product(partial, q + c, k + c * kPageTokens);
      return partial;
    });
  }
  for (int c = even; c < head_dim; c++) add_product(sum, q + c, k + c * kPageTokens);
  return sum;
}

// Dimensions [c, c + 4 N) of sum_j p_j v_j.
template <int N>
INLAY_INLINE void weigh(const ExactRow& row, const float* scores, int c, float* out) {
  const int n_keys = row.n_pages * kPageTokens;
  const Vectors<N> sum = sum_partials<N>([&](int i) {
    Vectors<N> partial = zero<N>();
    for (int j = i; j < n_keys; j += 16)
      add_product(partial, scores + j, row.v[j / kPageTokens] + (j % kPageTokens) * row.head_dim + c);
    return partial;
  });
  for (int i = 0; i < N; i++) wasm_v128_store(out + c + 4 * i, sum.v[i]);
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
    for (int token = 0; token < kPageTokens; token += 16) {
      const Vectors<4> x = dot_tokens<4>(row.q, row.k[i] + token, head_dim);
      for (int v = 0; v < 4; v++)
        wasm_v128_store(page_scores + token + 4 * v, wasm_f32x4_mul(x.v[v], wasm_f32x4_splat(row.scale)));
    }
    if (row.softcap > 0)
      for (int j = 0; j < kPageTokens; j++) page_scores[j] = row.softcap * tanhf(page_scores[j] / row.softcap);
    for (int j = 0; j < kPageTokens; j++)
      if ((row.keep[i] >> j & 1) == 0) page_scores[j] = -__builtin_inff();
  }
  softmax(scores, row.n_pages * kPageTokens);
  int c = 0;
  for (; c + 16 <= head_dim; c += 16) weigh<4>(row, scores, c, out);
  for (; c < head_dim; c += 8) weigh<2>(row, scores, c, out);
}
