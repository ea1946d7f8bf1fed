#include "score.h"

#include <cmath>
#include <cstdlib>
#include <cstring>

#include "bridge.h"
#include "kernels/attention_tile.h"
#include "parallel.h"

namespace {

constexpr float kMinusInfinity = -__builtin_inff();
constexpr int kRows = 4;

bool is_empty(const float* counts) {
  v128_t any = wasm_v128_load(counts);
  for (int i = 4; i < kPageTokens; i += 4) any = wasm_v128_or(any, wasm_v128_load(counts + i));
  return !wasm_v128_any_true(any);
}

// Logits of n query rows, (head_dim, n), against a KV head's tiles; -inf for what is not there. widths: (n), what a row's logits
// gain for an entry of spread 1. logits: (n, n_entries).
template <int n>
void logits_of(const ScoreCall& call, const float* q, const float* widths, const float* tile, const float* counts,
               const float* spreads, int n_entries, float* logits) {
  const f32x4 minus_infinity = wasm_f32x4_splat(kMinusInfinity);
  for (int first = 0; first < n_entries; first += kPageTokens, tile += size_t(kPageTokens) * call.head_dim) {
    alignas(16) float scores[n][kPageTokens];
    const bool skip = is_empty(counts + first);
    if (!skip) score_page<n>(q, tile, call.head_dim, scores);
    for (int r = 0; r < n; r++)
      for (int i = 0; i < kPageTokens; i += 4) {
        float* const out = logits + size_t(r) * n_entries + first + i;
        if (skip) {
          wasm_v128_store(out, minus_infinity);
          continue;
        }
        f32x4 x = wasm_f32x4_mul(wasm_v128_load(&scores[r][i]), wasm_f32x4_splat(call.scale));
        x = f32x4_madd(wasm_f32x4_splat(widths[r]), wasm_v128_load(spreads + first + i), x);
        if (call.softcap > 0) {
          wasm_v128_store(&scores[r][i], x);
          for (int j = i; j < i + 4; j++) scores[r][j] = call.softcap * tanhf(scores[r][j] / call.softcap);
          x = wasm_v128_load(&scores[r][i]);
        }
        const v128_t there = wasm_f32x4_gt(wasm_v128_load(counts + first + i), f32x4_zero());
        wasm_v128_store(out, wasm_v128_bitselect(x, minus_infinity, there));
      }
  }
}

// sigma += weight * the row's probabilities. Leaves it as it is where nothing is there.
void add_row(float* logits, const float* counts, int n_entries, float weight, float* sigma) {
  // A NaN in the first entries, as queries with one make it in all, stays the maximum and reaches sigma, where it is seen.
  f32x4 top = wasm_v128_load(logits);
  for (int i = 4; i < n_entries; i += 4) top = wasm_f32x4_pmax(top, wasm_v128_load(logits + i));
  const float most = f32x4_max_lane(top);
  if (most == kMinusInfinity) return;
  const f32x4 shift = wasm_f32x4_splat(most);
  f32x4 sum = f32x4_zero();
  for (int i = 0; i < n_entries; i += 4) {
    const f32x4 e = f32x4_exp(wasm_f32x4_sub(wasm_v128_load(logits + i), shift));
    sum = wasm_f32x4_add(sum, wasm_f32x4_mul(e, wasm_v128_load(counts + i)));
    wasm_v128_store(logits + i, e);
  }
  const f32x4 factor = wasm_f32x4_splat(weight / f32x4_sum(sum));
  for (int i = 0; i < n_entries; i += 4)
    wasm_v128_store(sigma + i, f32x4_madd(factor, wasm_v128_load(logits + i), wasm_v128_load(sigma + i)));
}

}  // namespace

int score_clusters(const ScoreCall& call) {
  const int dim = call.head_dim, n_kv_heads = call.n_kv_heads;
  if (dim < 8 || dim > kMaxHeadDim || dim % 8 != 0 || n_kv_heads < 1 || call.n_heads % n_kv_heads != 0 || call.n_tokens < 1 ||
      call.block_size < 1)
    return kBadArgument;
  const int group = call.n_heads / n_kv_heads;
  const int n_blocks = (call.n_tokens + call.block_size - 1) / call.block_size;
  const size_t stride = size_t(call.tiles[n_kv_heads]) * kPageTokens;
  size_t longest = 0;
  for (int h = 0; h < n_kv_heads; h++) {
    const size_t n = size_t(call.tiles[h + 1] - call.tiles[h]) * kPageTokens;
    longest = n > longest ? n : longest;
  }
  const size_t per_thread = (longest + dim) * kRows;
  float* const scratch = static_cast<float*>(aligned_alloc(64, (per_thread * n_threads() * 4 + 63) & ~size_t(63)));
  if (!scratch) return kOutOfMemory;
  memset(call.sigma, 0, stride * n_blocks * 4);
  parallel(n_blocks * n_kv_heads, [&](int item, int thread) {
    const int block = item / n_kv_heads, kv_head = item % n_kv_heads;
    const size_t first = size_t(call.tiles[kv_head]) * kPageTokens;
    const int n_entries = int(call.tiles[kv_head + 1] - call.tiles[kv_head]) * kPageTokens;
    const float* const tiles = call.centroids + first * dim;
    const float* const counts = call.counts + (call.counts_per_block ? stride * block : 0) + first;
    const float* const spreads = call.spreads + first;
    float* const sigma = call.sigma + stride * block + first;
    float* const logits = scratch + per_thread * thread;
    float* const queries = logits + longest * kRows;
    const int left = call.n_tokens - block * call.block_size;
    const int rows = (left < call.block_size ? left : call.block_size) * group;
    for (int row = 0; row < rows; row += kRows) {
      const int n = rows - row < kRows ? rows - row : kRows;
      float widths[kRows];
      for (int r = 0; r < n; r++) {
        const int token = block * call.block_size + (row + r) / group, head = kv_head * group + (row + r) % group;
        const float* const q = call.q + (size_t(token) * call.n_heads + head) * dim;
        float square = 0;
        for (int c = 0; c < dim; c++) {
          queries[c * n + r] = q[c];
          square += q[c] * q[c];
        }
        widths[r] = kSpreadWeight * call.scale * call.scale * square;
      }
      switch (n) {
        case 1: logits_of<1>(call, queries, widths, tiles, counts, spreads, n_entries, logits); break;
        case 2: logits_of<2>(call, queries, widths, tiles, counts, spreads, n_entries, logits); break;
        case 3: logits_of<3>(call, queries, widths, tiles, counts, spreads, n_entries, logits); break;
        default: logits_of<4>(call, queries, widths, tiles, counts, spreads, n_entries, logits); break;
      }
      for (int r = 0; r < n; r++) add_row(logits + size_t(r) * n_entries, counts, n_entries, 1.0f / float(rows), sigma);
    }
  });
  free(scratch);
  return kOk;
}
