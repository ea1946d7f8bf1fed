#include "kmeans.h"

#include <cmath>
#include <cstdlib>
#include <cstring>

#include "bridge.h"
#include "kernels/attention.h"
#include "kv/page_codec.h"
#include "parallel.h"
#include "simd.h"

namespace {

// Centroids are compared eight at a time, lying as (head_dim, 8); keys four at a time.
constexpr int kTile = 8;
constexpr int kTileKeys = 4;
// Keys that a thread takes at a time.
constexpr int kChunkKeys = 256;

int padded(int k) { return (k + kTile - 1) / kTile * kTile; }

// A list of keys, and where their labels go.
struct Group {
  const uint32_t* members;  // (n), ascending
  int n;
  uint32_t* labels;  // (n)
};

// Scratch of one run of K-means: k centroids.
struct Centroids {
  float* tiles;  // (padded(k) / kTile, head_dim, kTile): directions, of length 1
  float* sums;   // (k, head_dim)
};

size_t centroid_floats(int k, int head_dim) { return size_t(padded(k) + k) * head_dim; }

Centroids centroids_at(float* p, int k, int head_dim) { return {p, p + size_t(padded(k)) * head_dim}; }

class KeyClusters {
 public:
  explicit KeyClusters(const ClusterCall& call) : keys_(call.keys), dim_(call.head_dim), passes_(call.n_passes) {}

  // Labels of the group's keys: the centroid of k whose direction is nearest; of equal ones the first. `inverse_norms`: of all keys.
  void run(const Group& group, int k, const float* inverse_norms, const Centroids& centroids, bool with_threads) const {
    memset(centroids.tiles, 0, size_t(padded(k)) * dim_ * 4);
    for (int i = 0; i < k; i++) {
      const uint32_t seed = group.members[(size_t(2 * i + 1) * group.n) / (2 * size_t(k))];
      set_direction(centroids.tiles, i, keys_ + size_t(seed) * dim_);
    }
    for (int i = 0; i < group.n; i++) group.labels[i] = ~0u;
    for (int pass = 0; pass < passes_; pass++) {
      if (!assign(group, k, centroids.tiles, with_threads)) return;
      memset(centroids.sums, 0, size_t(k) * dim_ * 4);
      for (int i = 0; i < group.n; i++) {
        const float* const key = keys_ + size_t(group.members[i]) * dim_;
        float* const sum = centroids.sums + size_t(group.labels[i]) * dim_;
        const f32x4 weight = wasm_f32x4_splat(inverse_norms[group.members[i]]);
        for (int c = 0; c < dim_; c += 4)
          wasm_v128_store(sum + c, wasm_f32x4_add(wasm_v128_load(sum + c), wasm_f32x4_mul(weight, wasm_v128_load(key + c))));
      }
      for (int i = 0; i < k; i++) set_direction(centroids.tiles, i, centroids.sums + size_t(i) * dim_);
    }
  }

 private:
  // Stays as it was where `x` has no direction.
  void set_direction(float* tiles, int i, const float* x) const {
    double square = 0;
    for (int c = 0; c < dim_; c++) square += double(x[c]) * x[c];
    if (square == 0) return;
    const double scale = 1 / sqrt(square);
    float* const tile = tiles + size_t(i / kTile) * dim_ * kTile + i % kTile;
    for (int c = 0; c < dim_; c++) tile[c * kTile] = float(x[c] * scale);
  }

  // Whether a label changed.
  bool assign(const Group& group, int k, const float* tiles, bool with_threads) const {
    const int n_chunks = (group.n + kChunkKeys - 1) / kChunkKeys;
    const auto chunk = [&](int i) {
      const int from = i * kChunkKeys, to = from + kChunkKeys < group.n ? from + kChunkKeys : group.n;
      bool changed = false;
      for (int key = from; key < to; key += kTileKeys) changed |= assign_tile(group, key, to, k, tiles);
      return changed;
    };
    if (!with_threads) {
      bool changed = false;
      for (int i = 0; i < n_chunks; i++) changed |= chunk(i);
      return changed;
    }
    int changed = 0;
    parallel(n_chunks, [&](int i, int) {
      if (chunk(i)) __atomic_store_n(&changed, 1, __ATOMIC_RELAXED);
    });
    return changed != 0;
  }

  // Labels of the members [first, first + 4) that lie before `to`.
  bool assign_tile(const Group& group, int first, int to, int k, const float* tiles) const {
    alignas(16) float packed[kMaxHeadDim * kTileKeys];
    for (int r = 0; r < kTileKeys; r++) {
      // Past the end the last key is computed again.
      const int i = first + r < to ? first + r : to - 1;
      const float* const key = keys_ + size_t(group.members[i]) * dim_;
      for (int c = 0; c < dim_; c++) packed[c * kTileKeys + r] = key[c];
    }
    float best[kTileKeys];
    uint32_t labels[kTileKeys] = {};
    for (float& b : best) b = -__builtin_inff();
    for (int tile = 0; tile < k; tile += kTile, tiles += size_t(dim_) * kTile) {
      f32x4 acc[kTileKeys][2];
      for (auto& a : acc) a[0] = a[1] = f32x4_zero();
      const float *centroid = tiles, *query = packed;
      for (int c = 0; c < dim_; c++, centroid += kTile, query += kTileKeys) {
        const f32x4 low = wasm_v128_load(centroid), high = wasm_v128_load(centroid + 4);
        for (int r = 0; r < kTileKeys; r++) {
          const f32x4 x = f32x4_load_splat(query + r);
          acc[r][0] = f32x4_madd(x, low, acc[r][0]);
          acc[r][1] = f32x4_madd(x, high, acc[r][1]);
        }
      }
      const int n = k - tile < kTile ? k - tile : kTile;
      for (int r = 0; r < kTileKeys; r++) {
        alignas(16) float scores[kTile];
        wasm_v128_store(scores, acc[r][0]);
        wasm_v128_store(scores + 4, acc[r][1]);
        for (int i = 0; i < n; i++) {
          if (scores[i] <= best[r]) continue;
          best[r] = scores[i];
          labels[r] = uint32_t(tile + i);
        }
      }
    }
    bool changed = false;
    for (int r = 0; r < kTileKeys && first + r < to; r++) {
      changed |= group.labels[first + r] != labels[r];
      group.labels[first + r] = labels[r];
    }
    return changed;
  }

  const float* keys_;
  int dim_;
  int passes_;
};

// Sorts a group's members by label, keeping their order inside one. `sorted` (n); `ends` (k). Returns how many labels are used.
int sort_by_label(const Group& group, int k, uint32_t* sorted, uint32_t* ends) {
  for (int i = 0; i < k; i++) ends[i] = 0;
  for (int i = 0; i < group.n; i++) ends[group.labels[i]]++;
  uint32_t at = 0;
  for (int i = 0; i < k; i++) {
    const uint32_t count = ends[i];
    ends[i] = at;
    at += count;
  }
  for (int i = 0; i < group.n; i++) sorted[ends[group.labels[i]]++] = group.members[i];
  int used = 0;
  for (int i = 0; i < k; i++)
    if (ends[i] > (used == 0 ? 0 : ends[used - 1])) ends[used++] = ends[i];
  return used;
}

// Orders `n` directions (n, dim) into a chain: from the one nearest to `start`, or the first, always to the nearest that is left.
void chain(const float* directions, int n, int dim, const float* start, uint32_t* order) {
  for (int i = 0; i < n; i++) order[i] = uint32_t(i);
  const float* from = start;
  for (int i = 0; i < n; i++) {
    int best = i;
    float most = -__builtin_inff();
    for (int j = i; from && j < n; j++) {
      const float* const to = directions + size_t(order[j]) * dim;
      f32x4 sum = f32x4_zero();
      for (int c = 0; c < dim; c += 4) sum = f32x4_madd(wasm_v128_load(from + c), wasm_v128_load(to + c), sum);
      const float cosine = f32x4_sum(sum);
      if (cosine <= most) continue;
      most = cosine;
      best = j;
    }
    const uint32_t chosen = order[best];
    // What is left keeps its order, so that equals are taken by index.
    memmove(order + i + 1, order + i, size_t(best - i) * 4);
    order[i] = chosen;
    from = directions + size_t(chosen) * dim;
  }
}

// Directions of clusters' means, (n, dim), of length 1, or 0 where the mean is.
void directions_of(const float* keys, int dim, const uint32_t* order, const uint32_t* ends, int n, float* out) {
  cluster_means(keys, dim, order, ends, n, out, nullptr);
  for (int i = 0; i < n; i++, out += dim) {
    double square = 0;
    for (int c = 0; c < dim; c++) square += double(out[c]) * out[c];
    const float scale = square == 0 ? 0.0f : float(1 / sqrt(square));
    for (int c = 0; c < dim; c++) out[c] *= scale;
  }
}

// Memory of one call, cut from one block.
class Arena {
 public:
  bool reserve(size_t words) { return (data_ = static_cast<float*>(aligned_alloc(64, (words * 4 + 63) & ~size_t(63)))) != nullptr; }
  ~Arena() { free(data_); }
  template <class T>
  T* take(size_t words) {
    T* const p = reinterpret_cast<T*>(data_ + used_);
    used_ += (words + 3) & ~size_t(3);
    return p;
  }

 private:
  float* data_ = nullptr;
  size_t used_ = 0;
};

}  // namespace

int cluster_keys(const ClusterCall& call) {
  const int n = call.n_keys, dim = call.head_dim, n_coarse = call.n_coarse;
  if (n < 1 || dim < 8 || dim > kMaxHeadDim || dim % 8 != 0 || n_coarse < 1 || call.n_fine < n_coarse || call.n_fine > n ||
      call.n_passes < 1)
    return kBadArgument;
  // Most fine clusters before splits: each coarse one's share is rounded up.
  const size_t most_fine = size_t(call.n_fine) + n_coarse;
  const size_t fine_floats = (2 * most_fine + size_t(n_coarse) * kTile) * dim;
  Arena arena;
  if (!arena.reserve(8 * size_t(n) + centroid_floats(n_coarse, dim) + fine_floats + (size_t(n) + n_coarse) * dim +
                     16 * size_t(n_coarse) + 2 * centroid_floats(2, dim) + 256))
    return kOutOfMemory;
  float* const inverse_norms = arena.take<float>(n);
  for (int i = 0; i < n; i++) {
    const float* const key = call.keys + size_t(i) * dim;
    double square = 0;
    for (int c = 0; c < dim; c++) square += double(key[c]) * key[c];
    inverse_norms[i] = square == 0 ? 0.0f : float(1 / sqrt(square));
  }
  const KeyClusters clusters(call);
  uint32_t* const all = arena.take<uint32_t>(n);
  for (int i = 0; i < n; i++) all[i] = uint32_t(i);
  uint32_t* const labels = arena.take<uint32_t>(n);
  uint32_t* const sorted = arena.take<uint32_t>(n);   // by coarse cluster
  uint32_t* const by_fine = arena.take<uint32_t>(n);  // and inside one by fine cluster

  // Coarse clusters: coarse_ends index `sorted`.
  uint32_t* const coarse_ends = arena.take<uint32_t>(n_coarse);
  const Group everything = {all, n, labels};
  clusters.run(everything, n_coarse, inverse_norms, centroids_at(arena.take<float>(centroid_floats(n_coarse, dim)), n_coarse, dim),
               true);
  const int made_coarse = sort_by_label(everything, n_coarse, sorted, coarse_ends);

  // Fine clusters of each, independent of each other.
  struct Share {
    int from, n, k;    // keys of `sorted`; fine clusters wanted, then made
    float* centroids;  // scratch
    uint32_t* ends;    // (k), relative to `from`
  };
  Share* const shares = reinterpret_cast<Share*>(arena.take<uint32_t>(size_t(made_coarse) * (sizeof(Share) / 4 + 1)));
  float* centroids = arena.take<float>(fine_floats);
  uint32_t* ends = arena.take<uint32_t>(most_fine);
  for (int i = 0; i < made_coarse; i++) {
    const int from = i == 0 ? 0 : int(coarse_ends[i - 1]), size = int(coarse_ends[i]) - from;
    const int wanted = int((int64_t(size) * call.n_fine + n / 2) / n);
    const int k = wanted < 1 ? 1 : wanted;
    shares[i] = {from, size, k, centroids, ends};
    centroids += centroid_floats(k, dim);
    ends += k;
  }
  parallel(made_coarse, [&](int i, int) {
    Share& share = shares[i];
    const Group group = {sorted + share.from, share.n, labels + share.from};
    clusters.run(group, share.k, inverse_norms, centroids_at(share.centroids, share.k, dim), false);
    share.k = sort_by_label(group, share.k, by_fine + share.from, share.ends);
  });

  // The chain of coarse clusters, and inside each of its fine ones.
  float* const directions = arena.take<float>((size_t(n) + n_coarse) * dim);
  float* const coarse_directions = directions + size_t(n) * dim;
  directions_of(call.keys, dim, sorted, coarse_ends, made_coarse, coarse_directions);
  uint32_t* const coarse_order = arena.take<uint32_t>(n_coarse);
  chain(coarse_directions, made_coarse, dim, nullptr, coarse_order);
  float* const two = arena.take<float>(centroid_floats(2, dim));
  uint32_t* const fine_order = arena.take<uint32_t>(n);
  uint32_t* const split_ends = arena.take<uint32_t>(n);
  const int64_t largest = int64_t(kSplitAbove) * n / call.n_fine;
  int n_made = 0;
  uint32_t at = 0;
  for (int i = 0; i < made_coarse; i++) {
    const Share& share = shares[coarse_order[i]];
    uint32_t* const members = by_fine + share.from;
    // Splits: a cluster that is too large makes room for a second end.
    int k = share.k;
    memcpy(split_ends, share.ends, size_t(k) * 4);
    for (int c = 0; c < k;) {
      const uint32_t from = c == 0 ? 0 : split_ends[c - 1];
      const int size = int(split_ends[c] - from);
      if (size <= largest || size < 2) {
        c++;
        continue;
      }
      const Group group = {members + from, size, labels};
      clusters.run(group, 2, inverse_norms, centroids_at(two, 2, dim), false);
      uint32_t halves[2];
      if (sort_by_label(group, 2, all, halves) == 1) halves[0] = uint32_t(size / 2);  // equal keys
      else memcpy(members + from, all, size_t(size) * 4);
      memmove(split_ends + c + 1, split_ends + c, size_t(k - c) * 4);
      split_ends[c] = from + halves[0];
      k++;
    }
    directions_of(call.keys, dim, members, split_ends, k, directions);
    const float* const before = i == 0 ? nullptr : coarse_directions + size_t(coarse_order[i - 1]) * dim;
    chain(directions, k, dim, before, fine_order);
    for (int c = 0; c < k; c++) {
      const uint32_t cluster = fine_order[c];
      const uint32_t from = cluster == 0 ? 0 : split_ends[cluster - 1], to = split_ends[cluster];
      memcpy(call.order + at, members + from, size_t(to - from) * 4);
      at += to - from;
      call.ends[n_made++] = at;
    }
    call.coarse_ends[i] = uint32_t(n_made);
  }
  call.n_made[0] = uint32_t(n_made);
  call.n_made[1] = uint32_t(made_coarse);
  return kOk;
}

void cluster_means(const float* keys, int head_dim, const uint32_t* order, const uint32_t* ends, int n_clusters,
                   float* means, float* spreads) {
  uint32_t i = 0;
  for (int c = 0; c < n_clusters; c++, means += head_dim) {
    const uint32_t first = i;
    const f32x4 scale = wasm_f32x4_splat(1.0f / float(ends[c] - i));
    for (int d = 0; d < head_dim; d += 4) wasm_v128_store(means + d, f32x4_zero());
    for (; i < ends[c]; i++) {
      const float* const key = keys + size_t(order[i]) * head_dim;
      for (int d = 0; d < head_dim; d += 4)
        wasm_v128_store(means + d, wasm_f32x4_add(wasm_v128_load(means + d), wasm_f32x4_mul(scale, wasm_v128_load(key + d))));
    }
    if (!spreads) continue;
    f32x4 sum = f32x4_zero();
    for (uint32_t j = first; j < i; j++) {
      const float* const key = keys + size_t(order[j]) * head_dim;
      for (int d = 0; d < head_dim; d += 4) {
        const f32x4 off = wasm_f32x4_sub(wasm_v128_load(key + d), wasm_v128_load(means + d));
        sum = f32x4_madd(off, off, sum);
      }
    }
    spreads[c] = f32x4_sum(sum) / (float(i - first) * float(head_dim));
  }
}

void key_rows(const float* pages, int n_pages, int head_dim, float* rows) {
  const size_t half = size_t(kPageTokens) * head_dim;
  parallel(n_pages, [&](int page, int) { transpose(pages + 2 * half * page, head_dim, kPageTokens, rows + half * page); });
}

void permute_pages(const float* pages, const float* keys, const uint32_t* order, int n_pages, int head_dim, float* out) {
  const size_t half = size_t(kPageTokens) * head_dim, row = size_t(head_dim) * 4;
  parallel(n_pages, [&](int page, int) {
    alignas(16) float gathered[kPageTokens * kMaxHeadDim];
    float* const k = out + 2 * half * page;
    float* const v = k + half;
    for (int t = 0; t < kPageTokens; t++) {
      const uint32_t from = order[page * kPageTokens + t];
      memcpy(gathered + t * head_dim, keys + size_t(from) * head_dim, row);
      memcpy(v + t * head_dim, pages + 2 * half * (from / kPageTokens) + half + (from % kPageTokens) * size_t(head_dim), row);
    }
    transpose(gathered, kPageTokens, head_dim, k);
  });
}
