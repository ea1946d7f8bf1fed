#include "pool.h"

#include "page_read.h"

#include <cmath>
#include <cstdlib>
#include <cstring>

#include "bridge.h"
#include "parallel.h"
#include "simd.h"

namespace {

constexpr float kMinusInfinity = -__builtin_inff();

// x (n) += y (n), n % 4 == 0.
INLAY_INLINE void add_vector(float* x, const float* y, int n) {
  for (int i = 0; i < n; i += 4) wasm_v128_store(x + i, wasm_f32x4_add(wasm_v128_load(x + i), wasm_v128_load(y + i)));
}

// Logits of one query head against one page's 32 tokens; those outside [oldest, newest] become -inf.
void page_logits(const AttendCall& call, const float* q, int page, int kv_head, int position, float* out) {
  const LayerPages& pages = call.pages;
  alignas(16) float scratch[kPageTokens * kMaxHeadDim];
  const float* k = keys_as_f32(pages, page, kv_head, {}, scratch);
  f32x4 acc[kPageTokens / 4];
  for (f32x4& a : acc) a = f32x4_zero();
  for (int c = 0; c < pages.head_dim; c++) {
    const f32x4 query = f32x4_load_splat(q + c);
    for (int v = 0; v < kPageTokens / 4; v++) {
      const f32x4 keys = wasm_v128_load(k + size_t(c) * kPageTokens + 4 * v);
      acc[v] = f32x4_madd(query, keys, acc[v]);
    }
  }
  for (int v = 0; v < kPageTokens / 4; v++) wasm_v128_store(out + 4 * v, acc[v]);
  const int oldest = call.window > 0 ? position - call.window + 1 : 0;
  for (int j = 0; j < kPageTokens; j++) {
    const int key = page * kPageTokens + j;
    float x = out[j] * call.scale;
    if (call.softcap > 0) x = call.softcap * tanhf(x / call.softcap);
    out[j] = key > position || key < oldest ? kMinusInfinity : x;
  }
}

// One query head: softmax over all its keys, then each page's share is added to `columns` and `diagonals`.
// logits: scratch, (n_pages * 32).
void add_row_masses(const AttendCall& call, const float* q, int kv_head, int position, float* logits, float* columns,
                    float* diagonals) {
  const int own = position / kPageTokens;
  const int first = call.window > 0 && position >= call.window ? (position - call.window + 1) / kPageTokens : 0;
  f32x4 top = wasm_f32x4_splat(kMinusInfinity);
  for (int page = first; page <= own; page++) {
    float* const x = logits + size_t(page) * kPageTokens;
    page_logits(call, q, page, kv_head, position, x);
    for (int j = 0; j < kPageTokens; j += 4) top = wasm_f32x4_pmax(top, wasm_v128_load(x + j));
  }
  const f32x4 shift = wasm_f32x4_splat(f32x4_max_lane(top));
  float total = 0;
  for (int page = first; page <= own; page++) {
    float* const x = logits + size_t(page) * kPageTokens;
    f32x4 sum = f32x4_zero();
    for (int j = 0; j < kPageTokens; j += 4) sum = wasm_f32x4_add(sum, f32x4_exp(wasm_f32x4_sub(wasm_v128_load(x + j), shift)));
    x[0] = f32x4_sum(sum);  // the page's share; its logits are not needed again
    total += x[0];
  }
  for (int page = first; page <= own; page++) {
    const float share = logits[size_t(page) * kPageTokens] / total;
    columns[page] += share;
    diagonals[own - page] += share;
  }
}

}  // namespace

void pool_runs(const float* x, int width, const uint32_t* ends, int n_runs, float* out) {
  uint32_t token = 0;
  for (int run = 0; run < n_runs; run++, out += width) {
    if (run > 0) memset(out, 0, size_t(width) * 4);
    for (; token < ends[run]; token++, x += width) add_vector(out, x, width);
  }
}

int sample_masses(const AttendCall& call, const uint32_t* rows, int n_rows, int n_pages, float* columns,
                  float* diagonals) {
  const int head_dim = call.pages.head_dim, n_kv_heads = call.pages.n_kv_heads;
  if (head_dim < 8 || head_dim > 256 || head_dim % 8 != 0 || n_kv_heads < 1 || call.n_heads % n_kv_heads != 0)
    return kBadArgument;
  for (int i = 0; i < n_rows; i++)
    if (rows[i] >= uint32_t(call.n_tokens) || (call.q_start + int(rows[i])) / kPageTokens >= n_pages) return kBadArgument;
  const int group = call.n_heads / n_kv_heads;
  // One KV head per item: sums are then added in the same order whatever the number of threads.
  float* const scratch = static_cast<float*>(malloc(size_t(n_kv_heads) * n_pages * kPageTokens * 4));
  if (!scratch) return kOutOfMemory;
  memset(columns, 0, size_t(n_kv_heads) * n_pages * 4);
  memset(diagonals, 0, size_t(n_kv_heads) * n_pages * 4);
  parallel(n_kv_heads, [&](int kv_head, int) {
    for (int i = 0; i < n_rows; i++)
      for (int h = 0; h < group; h++) {
        const float* q = call.q + (size_t(rows[i]) * call.n_heads + kv_head * group + h) * head_dim;
        add_row_masses(call, q, kv_head, call.q_start + int(rows[i]), scratch + size_t(kv_head) * n_pages * kPageTokens,
                       columns + size_t(kv_head) * n_pages, diagonals + size_t(kv_head) * n_pages);
      }
  });
  free(scratch);
  return kOk;
}
