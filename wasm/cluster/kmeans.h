// Clusters of a fixed prompt's keys (Squeezed Attention, Hooper et al. 2024, arXiv:2411.09688): spherical K-means in two
// levels. Plain twin: test/reference/clustering.ts.
//
// The coarse level clusters all keys; each coarse cluster is then clustered by itself, so that the levels nest and the cost
// is that of the coarse level: N * n_coarse instead of N * n_fine products a pass. Deterministic, whatever the number of
// threads.
#pragma once

#include <cstdint>

struct ClusterCall {
  const float* keys;   // (n_keys, head_dim), 16-byte aligned, finite
  int32_t n_keys;
  int32_t head_dim;    // a multiple of 8, at most kMaxHeadDim
  int32_t n_coarse;    // 1 <= n_coarse <= n_fine <= n_keys: clusters wanted
  int32_t n_fine;      // how many there are differs a little: empty ones are dropped, large ones split
  int32_t n_passes;    // at most, of each level
  uint32_t* order;     // out (n_keys): keys sorted by cluster, similar clusters next to each other, inside one by index
  uint32_t* ends;      // out, room for n_keys: cluster c is order[ends[c - 1] .. ends[c])
  uint32_t* coarse_ends;  // out, room for n_keys: coarse cluster i is clusters [coarse_ends[i - 1], coarse_ends[i])
  uint32_t* n_made;    // out (2): clusters, coarse clusters
};

// A cluster with more than kSplitAbove times the mean size is split in two until it is not.
constexpr int kSplitAbove = 8;

// Returns a Status.
int cluster_keys(const ClusterCall& call);

// means (n_clusters, head_dim): of the members, not normalised. spreads (n_clusters): mean over channels of the members' variance;
// null: not wanted.
void cluster_means(const float* keys, int head_dim, const uint32_t* order, const uint32_t* ends, int n_clusters,
                   float* means, float* spreads);

// Between pages of one KV head, f32, (n_pages, K then V), and rows.
// rows (n_pages * 32, head_dim): the keys of the pages.
void key_rows(const float* pages, int n_pages, int head_dim, float* rows);

// out: pages whose token i is token order[i] of `pages`, of which `keys` are the rows. No overlap.
void permute_pages(const float* pages, const float* keys, const uint32_t* order, int n_pages, int head_dim, float* out);
