// Attention on runs of keys, estimated from their means: what src/attention/estimate.ts defines, of every query.
#pragma once

#include <cstdint>

//   q         (n_tokens, n_heads, head_dim)       after RoPE; head_dim a multiple of 8
//   features  (n_runs, n_kv_heads, head_dim)      the sum of a run's keys / sqrt(length)
//   lengths   (n_runs)                            keys of each run
//   visible   (n_blocks, 4)                       block b sees runs [0th, 1st) and [2nd, 3rd), ascending
//   masses    (n_blocks, n_kv_heads, n_runs)      mean attention of the block's queries and the group's heads, 0 to 1
// n_blocks = ceil(n_tokens / block_size).
struct EstimateCall {
  const float* q;
  int n_tokens, n_heads, n_kv_heads, head_dim, block_size;
  const float* features;
  const float* lengths;
  const uint32_t* visible;
  int n_runs;
  float scale;
};

// Returns a Status.
int estimate_masses(const EstimateCall& call, float* masses);
