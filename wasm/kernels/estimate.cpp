#include "estimate.h"

#include <cmath>
#include <cstdlib>
#include <cstring>

#include "attention_tile.h"
#include "bridge.h"
#include "parallel.h"
#include "simd.h"

namespace {

constexpr int kRows = 4;
constexpr float kMinusInfinity = -__builtin_inff();

// Mean keys of 32 runs as a page of keys is laid out: scale * mean, (n_kv_heads, n_tiles, head_dim, 32), padded with zeros.
void pack_means(const EstimateCall& call, int n_tiles, float* out) {
  const int d = call.head_dim;
  memset(out, 0, size_t(call.n_kv_heads) * n_tiles * d * kPageTokens * 4);
  for (int run = 0; run < call.n_runs; run++) {
    const float to_mean = call.scale / sqrtf(call.lengths[run]);
    const float* feature = call.features + size_t(run) * call.n_kv_heads * d;
    for (int h = 0; h < call.n_kv_heads; h++, feature += d) {
      float* const tile = out + (size_t(h) * n_tiles + run / kPageTokens) * d * kPageTokens + run % kPageTokens;
      for (int c = 0; c < d; c++) tile[size_t(c) * kPageTokens] = feature[c] * to_mean;
    }
  }
}

// Tiles that a block sees any of, and each run's ln(length), -inf where the block does not see it.
struct Seen {
  int n_tiles;
  int* tiles;   // (n_tiles)
  float* bias;  // (n_tiles, 32), in the order of `tiles`
};

void find_seen(const EstimateCall& call, const float* log_lengths, int block, Seen* seen) {
  const uint32_t* const range = call.visible + 4 * block;
  seen->n_tiles = 0;
  for (int tile = 0; tile * kPageTokens < call.n_runs; tile++) {
    float* const bias = seen->bias + size_t(seen->n_tiles) * kPageTokens;
    bool any = false;
    for (int j = 0; j < kPageTokens; j++) {
      const uint32_t run = uint32_t(tile * kPageTokens + j);
      const bool is_seen = (run >= range[0] && run < range[1]) || (run >= range[2] && run < range[3]);
      bias[j] = is_seen ? log_lengths[run] : kMinusInfinity;
      any |= is_seen;
    }
    if (any) seen->tiles[seen->n_tiles++] = tile;
  }
}

// Adds the shares of up to four query rows of one KV head, each times `weight`, to `masses` (tiles in the order of `seen`).
//   q: (head_dim, 4), rows that do not exist are zero;  scores: scratch, (n_tiles, 4, 32)
void add_shares(const float* q, int n_rows, const float* means, int head_dim, const Seen& seen, float weight,
                float (*scores)[kRows][kPageTokens], float* masses) {
  f32x4 top[kRows];
  for (f32x4& t : top) t = wasm_f32x4_splat(kMinusInfinity);
  for (int i = 0; i < seen.n_tiles; i++) {
    score_page<kRows>(q, means + size_t(seen.tiles[i]) * head_dim * kPageTokens, head_dim, scores[i]);
    for (int j = 0; j < kPageTokens; j += 4) {
      const f32x4 bias = wasm_v128_load(seen.bias + size_t(i) * kPageTokens + j);
      for (int r = 0; r < n_rows; r++) {
        const f32x4 x = wasm_f32x4_add(wasm_v128_load(&scores[i][r][j]), bias);
        wasm_v128_store(&scores[i][r][j], x);
        top[r] = wasm_f32x4_pmax(top[r], x);
      }
    }
  }
  for (int r = 0; r < n_rows; r++) {
    const f32x4 shift = wasm_f32x4_splat(f32x4_max_lane(top[r]));
    f32x4 sum = f32x4_zero();
    for (int i = 0; i < seen.n_tiles; i++)
      for (int j = 0; j < kPageTokens; j += 4) {
        const f32x4 e = f32x4_exp(wasm_f32x4_sub(wasm_v128_load(&scores[i][r][j]), shift));
        wasm_v128_store(&scores[i][r][j], e);
        sum = wasm_f32x4_add(sum, e);
      }
    const f32x4 share = wasm_f32x4_splat(weight / f32x4_sum(sum));
    for (int i = 0; i < seen.n_tiles; i++)
      for (int j = 0; j < kPageTokens; j += 4) {
        float* const mass = masses + size_t(i) * kPageTokens + j;
        wasm_v128_store(mass, f32x4_madd(wasm_v128_load(&scores[i][r][j]), share, wasm_v128_load(mass)));
      }
  }
}

// One block and KV head. scratch: (n_tiles, 4 + 1, 32) floats.
void estimate_block(const EstimateCall& call, const float* means, const Seen& seen, int block, int kv_head, float* scratch,
                    float* out) {
  const int group = call.n_heads / call.n_kv_heads;
  const int first = block * call.block_size;
  const int n_tokens = call.n_tokens - first < call.block_size ? call.n_tokens - first : call.block_size;
  const int n_rows = n_tokens * group;
  float* const masses = scratch + size_t(seen.n_tiles) * kRows * kPageTokens;
  memset(masses, 0, size_t(seen.n_tiles) * kPageTokens * 4);
  alignas(16) float q[kMaxHeadDim * kRows];
  for (int row = 0; row < n_rows; row += kRows) {
    const int n = n_rows - row < kRows ? n_rows - row : kRows;
    for (int r = 0; r < kRows; r++) {
      const int at = r < n ? row + r : row;
      const size_t head = size_t(first + at / group) * call.n_heads + kv_head * group + at % group;
      for (int c = 0; c < call.head_dim; c++) q[c * kRows + r] = call.q[head * call.head_dim + c];
    }
    add_shares(q, n, means, call.head_dim, seen, 1.0f / float(n_rows),
               reinterpret_cast<float(*)[kRows][kPageTokens]>(scratch), masses);
  }
  for (int i = 0; i < seen.n_tiles; i++)
    for (int j = 0; j < kPageTokens; j++) {
      const int run = seen.tiles[i] * kPageTokens + j;
      if (run < call.n_runs) out[run] = masses[size_t(i) * kPageTokens + j];
    }
}

}  // namespace

int estimate_masses(const EstimateCall& call, float* masses) {
  const int d = call.head_dim;
  if (d < 8 || d > kMaxHeadDim || d % 8 != 0 || call.n_kv_heads < 1 || call.n_heads % call.n_kv_heads != 0 ||
      call.block_size < 1 || call.n_runs < 1)
    return kBadArgument;
  const int n_blocks = (call.n_tokens + call.block_size - 1) / call.block_size;
  for (int b = 0; b < n_blocks; b++) {
    const uint32_t* const v = call.visible + 4 * b;
    if (v[1] > uint32_t(call.n_runs) || v[3] > uint32_t(call.n_runs)) return kBadArgument;
  }
  const int n_tiles = (call.n_runs + kPageTokens - 1) / kPageTokens;
  const size_t means_size = size_t(call.n_kv_heads) * n_tiles * d * kPageTokens;
  // Per thread: scores and masses of a block's tiles, its biases, and the tiles' numbers.
  const size_t own_size = size_t(n_tiles) * (kPageTokens * (kRows + 2) + 4);
  float* const memory =
      static_cast<float*>(malloc((means_size + size_t(n_tiles) * kPageTokens + own_size * n_threads()) * 4));
  if (!memory) return kOutOfMemory;
  float* const log_lengths = memory + means_size;
  float* const own = log_lengths + size_t(n_tiles) * kPageTokens;
  pack_means(call, n_tiles, memory);
  for (int run = 0; run < n_tiles * kPageTokens; run++)
    log_lengths[run] = run < call.n_runs ? logf(call.lengths[run]) : kMinusInfinity;
  memset(masses, 0, size_t(n_blocks) * call.n_kv_heads * call.n_runs * 4);
  parallel(n_blocks, [&](int block, int thread) {
    float* const scratch = own + own_size * thread;
    Seen seen = {0, reinterpret_cast<int*>(scratch + size_t(n_tiles) * kPageTokens * (kRows + 2)),
                 scratch + size_t(n_tiles) * kPageTokens * (kRows + 1)};
    find_seen(call, log_lengths, block, &seen);
    if (seen.n_tiles == 0) return;
    for (int h = 0; h < call.n_kv_heads; h++)
      estimate_block(call, memory + size_t(h) * n_tiles * d * kPageTokens, seen, block, h, scratch,
                     masses + (size_t(block) * call.n_kv_heads + h) * call.n_runs);
  });
  free(memory);
  return kOk;
}
