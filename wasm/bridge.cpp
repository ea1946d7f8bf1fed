// The exported C ABI of the kernels: check, call, return. Who may call what with which buffers is said beside the
// TypeScript callers (src/backend/wasm/); the meaning of every argument is in the kernels' headers.

#include "bridge.h"

#include <cstring>

#include "cluster/kmeans.h"
#include "cluster/score.h"
#include "kernels/attention.h"
#include "kernels/elementwise.h"
#include "kernels/estimate.h"
#include "kernels/matmul.h"
#include "kernels/output_error.h"
#include "kernels/pool.h"
#include "kernels/weights.h"
#include "kv/page_codec.h"
#include "kv/page_convert.h"

// ---- weights ----------------------------------------------------------------------------------------------

INLAY_EXPORT(weight_row_bytes) uint32_t weight_row_bytes(uint32_t type, int cols) { return row_bytes(type, cols); }

INLAY_EXPORT(weight_packed_bytes) uint32_t weight_packed_bytes(uint32_t type, int rows, int cols) {
  return packed_bytes(type, rows, cols);
}

// Packs `n_rows` file rows (all but the last call: a multiple of 4) into whole groups.
// Returns 0, or -(1 + block) where `block` counts blocks of these rows' groups of 4 up to a scale that is not finite.
INLAY_EXPORT(weight_pack) int weight_pack(uint32_t type, const uint8_t* rows, int n_rows, int cols, uint8_t* out) {
  const size_t stride = row_bytes(type, cols);
  const int blocks = cols / block_columns(type);
  for (int row = 0; row < n_rows; row += 4) {
    const int n = n_rows - row < 4 ? n_rows - row : 4;
    const int status = pack_group(type, rows + row * stride, n, cols, out + row * stride);
    if (status < 0) return status - row / 4 * blocks;
  }
  return kOk;
}

// Index of the first value of `n` that is infinite or NaN, or -1. For F32, F16 and BF16.
INLAY_EXPORT(weight_first_non_finite) int weight_first_non_finite(uint32_t type, const uint8_t* p, int n) {
  for (int i = 0; i < n; i++) {
    uint32_t bits = 0;
    if (type == kF32) {
      memcpy(&bits, p + 4 * size_t(i), 4);
      if ((bits & 0x7f800000) == 0x7f800000) return i;
    } else {
      memcpy(&bits, p + 2 * size_t(i), 2);
      const uint32_t exponent = type == kF16 ? 0x7c00 : 0x7f80;
      if ((bits & exponent) == exponent) return i;
    }
  }
  return -1;
}

// Rows `ids` (n) of a matrix as f32: out (n, cols). Ids are checked by the caller.
INLAY_EXPORT(embed_rows)
void embed_rows(uint32_t type, const uint8_t* weights, int cols, const uint32_t* ids, int n, float* out) {
  for (int i = 0; i < n; i++) dequantize_row(type, weights, cols, int(ids[i]), out + size_t(i) * cols);
}

// ---- linear maps ------------------------------------------------------------------------------------------

INLAY_EXPORT(linear_maps) int linear_maps(const float* x, int n_tokens, int cols, const LinearMap* maps, int n_maps) {
  return linear(x, n_tokens, cols, maps, n_maps);
}

INLAY_EXPORT(gated_linear_maps)
int gated_linear_maps(const float* x, int n_tokens, int cols, const LinearMap* maps, uint32_t gate) {
  if (gate > kGelu) return kBadArgument;
  return gated_linear(x, n_tokens, cols, maps, Gate(gate));
}

// ---- rows -------------------------------------------------------------------------------------------------

INLAY_EXPORT(rms_norm_rows)
void rms_norm_rows(const float* x, const float* weight, float* out, int rows, int cols, float eps) {
  rms_norm(x, weight, out, rows, cols, eps);
}

INLAY_EXPORT(add_rows) void add_rows(float* x, const float* y, int n) { add_in_place(x, y, size_t(n)); }

INLAY_EXPORT(rope_rows)
void rope_rows(float* x, const float* cos_sin, int n_tokens, int n_heads, int head_dim, int n_rot, int halves) {
  rope(x, cos_sin, n_tokens, n_heads, head_dim, n_rot, halves);
}

// ---- attention --------------------------------------------------------------------------------------------

INLAY_EXPORT(kv_append_rows)
void kv_append_rows(const AttendCall* call, const float* k, const float* v) {
  kv_append(call->pages, k, v, call->q_start, call->n_tokens);
}

INLAY_EXPORT(attend_pages) int attend_pages(const AttendCall* call) { return attend(*call); }

INLAY_EXPORT(attention_output_errors) int attention_output_errors(const OutputErrorCall* call) { return output_errors(*call); }

// ---- what selection policies see --------------------------------------------------------------------------

INLAY_EXPORT(pool_run_rows)
void pool_run_rows(const float* x, int width, const uint32_t* ends, int n_runs, float* out) {
  pool_runs(x, width, ends, n_runs, out);
}

INLAY_EXPORT(sample_page_masses)
int sample_page_masses(const AttendCall* call, const uint32_t* rows, int n_rows, int n_pages, float* columns,
                       float* diagonals) {
  return sample_masses(*call, rows, n_rows, n_pages, columns, diagonals);
}

INLAY_EXPORT(estimate_run_masses)
int estimate_run_masses(const float* q, int n_tokens, int n_heads, int n_kv_heads, int head_dim, int block_size,
                        const float* features, const float* lengths, const uint32_t* visible, int n_runs, float scale,
                        float* masses) {
  return estimate_masses(
      {q, n_tokens, n_heads, n_kv_heads, head_dim, block_size, features, lengths, visible, n_runs, scale}, masses);
}

// ---- page formats -----------------------------------------------------------------------------------------

// Bytes of K and V in one page of one KV head.
INLAY_EXPORT(kv_page_bytes) uint32_t kv_page_bytes(int head_dim, uint32_t format) {
  return uint32_t(page_bytes(head_dim, PageFormat(format)));
}

INLAY_EXPORT(kv_convert_pages)
int kv_convert_pages(const uint8_t* in, uint32_t from, int n_pages, int head_dim, float clip, uint32_t to, uint8_t* out) {
  return convert_pages(in, PageFormat(from), n_pages, head_dim, clip, PageFormat(to), out);
}

INLAY_EXPORT(kv_decode_keys)
int kv_decode_keys(const uint8_t* pages, uint32_t format, int n_pages, int head_dim, float* out) {
  return decode_keys(pages, PageFormat(format), n_pages, head_dim, out);
}

INLAY_EXPORT(kv_sum_keys)
int kv_sum_keys(const uint8_t* pages, uint32_t format, int n_pages, int head_dim, int granule, float* out) {
  return sum_keys(pages, PageFormat(format), n_pages, head_dim, granule, out);
}

// ---- clusters of a fixed prompt's keys --------------------------------------------------------------------

INLAY_EXPORT(kv_key_rows)
void kv_key_rows(const float* pages, int n_pages, int head_dim, float* rows) { key_rows(pages, n_pages, head_dim, rows); }

INLAY_EXPORT(kv_permute_pages)
void kv_permute_pages(const float* pages, const float* keys, const uint32_t* order, int n_pages, int head_dim, float* out) {
  permute_pages(pages, keys, order, n_pages, head_dim, out);
}

INLAY_EXPORT(cluster_key_rows) int cluster_key_rows(const ClusterCall* call) { return cluster_keys(*call); }

INLAY_EXPORT(cluster_mean_rows)
void cluster_mean_rows(const float* keys, int head_dim, const uint32_t* order, const uint32_t* ends, int n_clusters,
                       float* means, float* spreads) {
  cluster_means(keys, head_dim, order, ends, n_clusters, means, spreads);
}

INLAY_EXPORT(cluster_scores) int cluster_scores(const ScoreCall* call) { return score_clusters(*call); }
