// Which clusters of a fixed prompt's keys do queries want? (Squeezed Attention, arXiv:2411.09688, eq. 2; algorithms.md B.2.)
// Plain twin: test/reference/clustering.ts.
#pragma once

#include <cstdint>

// Entries are clusters, or single keys as clusters of one. Written by TypeScript; 32-bit fields in this order.
struct ScoreCall {
  const float* q;            // (n_tokens, n_heads, head_dim), after RoPE
  const float* centroids;    // (n_tiles, head_dim, 32): 32 entries a tile, the last of a KV head filled up with anything finite
  const float* counts;       // (n_tiles * 32): keys of an entry; 0 = it is not there
  const float* spreads;      // (n_tiles * 32): variance of an entry's keys, mean over channels
  const uint32_t* tiles;     // (n_kv_heads + 1): KV head h has tiles [tiles[h], tiles[h + 1]), at least one
  float* sigma;              // out (n_blocks, n_tiles * 32)
  int32_t n_kv_heads;
  int32_t n_heads;           // a multiple of n_kv_heads
  int32_t head_dim;          // a multiple of 8, at most kMaxHeadDim
  int32_t n_tokens;
  int32_t block_size;        // queries per block; the last may be shorter
  int32_t counts_per_block;  // 0: one row of counts for all blocks; 1: (n_blocks, n_tiles * 32)
  float scale;
  float softcap;             // 0 = none
};

// What of a cluster's spread is added to the logit of its mean key. Were its keys spread alike in all directions, the logarithm
// of the mean of their exponentials would be the mean's logit plus half the variance of their logits, scale² |q|² spread; they are
// not, and half of that ranks clusters best [ours].
constexpr float kSpreadWeight = 0.25f;

// sigma = exp(x_c - m) / sum_j count_j exp(x_j - m) with x = scale * q · centroid + kSpreadWeight * scale² |q|² spread: the
// estimated probability of one key of c, so that sum_c count_c sigma_c = 1; averaged over the block's queries and the KV head's query heads. An entry that is
// not there has 0, and so have all where none is. Returns a Status.
int score_clusters(const ScoreCall& call);
