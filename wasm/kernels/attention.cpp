#include "attention.h"

#include <cmath>
#include <cstdlib>
#include <cstring>

#include "attention_exact.h"
#include "attention_tile.h"
#include "bridge.h"
#include "page_read.h"
#include "parallel.h"

namespace {

constexpr float kMinusInfinity = -__builtin_inff();

size_t align64(size_t n) { return (n + 63) & ~size_t(63); }

// ---- pages ------------------------------------------------------------------------------------------------

void store_element(const LayerPages& pages, uint8_t* page, size_t index, float value) {
  if (pages.format != kPageF16) {
    reinterpret_cast<float*>(page)[index] = value;
  } else {
    reinterpret_cast<uint16_t*>(page)[index] = f32_to_f16(value);
  }
}

// ---- one work item: a query block, a KV head, and a run of its listed pages -------------------------------

// Scratch of one thread, and of one item's unfinished result: per query row its max, sum and acc.
struct Partial {
  float* max;  // (rows)
  float* sum;  // (rows)
  float* acc;  // (rows, head_dim)
};

struct Item {
  int kv_head;
  int block;
  int from, to;  // range of the selection's page list
};

size_t partial_floats(int rows, int head_dim) { return align64(size_t(rows) * (2 + head_dim) * 4) / 4; }

Partial partial_at(float* p, int rows) { return {p, p + rows, p + 2 * rows}; }

// Which tokens of a page query `position` may see.
uint32_t visible_tokens(const AttendCall& call, int page, uint32_t mask, int position) {
  const int first = page * kPageTokens;
  const int newest = position - first;  // tokens 0..newest are at or before the query
  if (newest < 0) return 0;
  uint32_t keep = newest >= 31 ? mask : mask & ((2u << newest) - 1);
  if (call.window > 0) {
    const int oldest = position - call.window + 1 - first;  // tokens before `oldest` are out of the window
    if (oldest > 31) return 0;
    if (oldest > 0) keep &= ~0u << oldest;
  }
  return keep;
}

// kRows query rows against the tokens of a page that are in the range; `keep` has no others.
template <int kRows>
INLAY_INLINE void attend_rows(const AttendCall& call, const float* q, const float* k, const float* v,
                              const uint32_t* keep, TokenRange range, float* max, float* sum, float* acc) {
  const int head_dim = call.pages.head_dim;
  alignas(16) float scores[kRows][kPageTokens];
  float correction[kRows];
  score_page<kRows>(q, k, head_dim, scores, range);
  for (int r = 0; r < kRows; r++) {
    float scale = call.scale;
    if (call.softcap > 0) {
      for (int j = range.from; j < range.to; j++) scores[r][j] = call.softcap * tanhf(scores[r][j] * scale / call.softcap);
      scale = 1.0f;
    }
    correction[r] = softmax_row(scores[r], scale, keep[r], range, max + r, sum + r);
  }
  weigh_page<kRows>(scores, v, head_dim, correction, range, acc);
}

// Copies n_rows query rows as (head_dim, n_rows).
void pack_queries(const AttendCall& call, const Item& item, int first_row, int n_rows, float* out) {
  const int head_dim = call.pages.head_dim;
  const int group = call.n_heads / call.pages.n_kv_heads;
  for (int r = 0; r < n_rows; r++) {
    const int row = first_row + r;  // row = query * group + head within the group
    const int token = item.block * call.block_size + row / group;
    const int head = item.kv_head * group + row % group;
    const float* q = call.q + (size_t(token) * call.n_heads + head) * head_dim;
    for (int c = 0; c < head_dim; c++) out[c * n_rows + r] = q[c];
  }
}

int queries_of_block(const AttendCall& call, int block) {
  const int first = block * call.block_size;
  return call.n_tokens - first < call.block_size ? call.n_tokens - first : call.block_size;
}

// Rows are taken four at a time; the last one to three are a smaller tile.
constexpr int kTileRows = 4;

// Bytes of a thread's scratch: packed queries, and a converted K and V page.
size_t thread_floats(const AttendCall& call) {
  const int rows = call.block_size * (call.n_heads / call.pages.n_kv_heads);
  return align64(size_t(rows) * call.pages.head_dim * 4) / 4 + 2 * size_t(kPageTokens) * call.pages.head_dim;
}

void run_item(const AttendCall& call, const Item& item, const Partial& result, float* scratch) {
  const LayerPages& pages = call.pages;
  const int head_dim = pages.head_dim;
  const int group = call.n_heads / pages.n_kv_heads;
  const int n_queries = queries_of_block(call, item.block);
  const int rows = n_queries * group;
  const int first_position = call.q_start + item.block * call.block_size;
  const size_t page_elements = size_t(kPageTokens) * head_dim;

  float* const queries = scratch;
  float* const k_scratch = scratch + align64(size_t(call.block_size) * group * head_dim * 4) / 4;
  float* const v_scratch = k_scratch + page_elements;
  for (int row = 0; row < rows; row += kTileRows)
    pack_queries(call, item, row, rows - row < kTileRows ? rows - row : kTileRows,
                 queries + size_t(row) * head_dim);
  for (int row = 0; row < rows; row++) {
    result.max[row] = kMinusInfinity;
    result.sum[row] = 0;
  }
  memset(result.acc, 0, size_t(rows) * head_dim * 4);

  for (int i = item.from; i < item.to; i++) {
    const int page = int(call.page[i]);
    const uint32_t mask = call.mask ? call.mask[i] : 0xffffffffu;
    const TokenRange range = range_of(mask);
    const float* k = keys_as_f32(pages, page, item.kv_head, range, k_scratch);
    const float* v = values_as_f32(pages, page, item.kv_head, range, v_scratch);
    for (int row = 0; row < rows; row += kTileRows) {
      const int n = rows - row < kTileRows ? rows - row : kTileRows;
      uint32_t keep[kTileRows], any = 0;
      for (int r = 0; r < n; r++) {
        keep[r] = visible_tokens(call, page, mask, first_position + (row + r) / group);
        any |= keep[r];
      }
      if (any == 0) continue;
      const float* q = queries + size_t(row) * head_dim;
      float *max = result.max + row, *sum = result.sum + row, *acc = result.acc + size_t(row) * head_dim;
      switch (n) {
        case 1: attend_rows<1>(call, q, k, v, keep, range, max, sum, acc); break;
        case 2: attend_rows<2>(call, q, k, v, keep, range, max, sum, acc); break;
        case 3: attend_rows<3>(call, q, k, v, keep, range, max, sum, acc); break;
        default: attend_rows<4>(call, q, k, v, keep, range, max, sum, acc); break;
      }
    }
  }
}

// Merges `n` parts of a block (unnormalised; algorithms.md F.4) and writes the attended rows.
void write_block(const AttendCall& call, int kv_head, int block, const Partial* parts, int n) {
  const int head_dim = call.pages.head_dim;
  const int group = call.n_heads / call.pages.n_kv_heads;
  const int rows = queries_of_block(call, block) * group;
  for (int row = 0; row < rows; row++) {
    float max = kMinusInfinity;
    for (int i = 0; i < n; i++) max = parts[i].max[row] <= max ? max : parts[i].max[row];
    const int token = block * call.block_size + row / group;
    float* out = call.out + (size_t(token) * call.n_heads + kv_head * group + row % group) * head_dim;
    float sum = 0;
    memset(out, 0, size_t(head_dim) * 4);
    for (int i = 0; i < n; i++) {
      // A part that saw no key has max -inf and weight 0.
      if (parts[i].max[row] == kMinusInfinity) continue;
      const float weight = expf(parts[i].max[row] - max);
      sum += weight * parts[i].sum[row];
      const float* acc = parts[i].acc + size_t(row) * head_dim;
      for (int c = 0; c < head_dim; c++) out[c] += weight * acc[c];
    }
    const float scale = sum == 0 ? 0.0f : 1.0f / sum;
    for (int c = 0; c < head_dim; c++) out[c] *= scale;
  }
}

// ---- short contexts ---------------------------------------------------------------------------------------

// All query rows of one block and KV head, in ggml's order. `scratch`: exact_floats(head_dim).
void run_exact(const AttendCall& call, const Item& item, float* scratch) {
  const LayerPages& pages = call.pages;
  const int head_dim = pages.head_dim;
  const int group = call.n_heads / pages.n_kv_heads;
  const size_t page_elements = size_t(kPageTokens) * head_dim;
  const float *k[kExactPages], *v[kExactPages];
  const int n_pages = item.to - item.from;
  float* const scores = scratch + 2 * page_elements * kExactPages;
  for (int i = 0; i < n_pages; i++) {
    const int page = int(call.page[item.from + i]);
    k[i] = keys_as_f32(pages, page, item.kv_head, {}, scratch + 2 * i * page_elements);
    v[i] = values_as_f32(pages, page, item.kv_head, {}, scratch + (2 * i + 1) * page_elements);
  }
  const int n_queries = queries_of_block(call, item.block);
  for (int query = 0; query < n_queries; query++) {
    const int token = item.block * call.block_size + query;
    uint32_t keep[kExactPages];
    for (int i = 0; i < n_pages; i++) {
      const uint32_t mask = call.mask ? call.mask[item.from + i] : 0xffffffffu;
      keep[i] = visible_tokens(call, int(call.page[item.from + i]), mask, call.q_start + token);
    }
    for (int h = 0; h < group; h++) {
      const size_t at = (size_t(token) * call.n_heads + item.kv_head * group + h) * head_dim;
      attend_row_exact({call.q + at, k, v, keep, n_pages, head_dim, call.scale, call.softcap}, scores, call.out + at);
    }
  }
}

size_t exact_floats(int head_dim) { return size_t(kExactPages) * kPageTokens * (2 * head_dim + 1); }

// ---- scratch ----------------------------------------------------------------------------------------------

float* scratch_data = nullptr;
size_t scratch_bytes = 0;

float* reserve_scratch(size_t bytes) {
  if (bytes > scratch_bytes) {
    free(scratch_data);
    scratch_data = static_cast<float*>(aligned_alloc(64, align64(bytes)));
    scratch_bytes = scratch_data ? align64(bytes) : 0;
  }
  return scratch_data;
}

// Pages that make an item worth handing out when the list is split (decode).
constexpr int kSplitPages = 8;
constexpr int kMaxSplits = 64;

}  // namespace

void kv_append(const LayerPages& pages, const float* k, const float* v, int position, int n_tokens) {
  const int head_dim = pages.head_dim;
  for (int t = 0; t < n_tokens; t++) {
    const int page = (position + t) / kPageTokens;
    const int slot_token = (position + t) % kPageTokens;
    for (int h = 0; h < pages.n_kv_heads; h++, k += head_dim, v += head_dim) {
      uint8_t *k_page = pages.k_page(page, h), *v_page = pages.v_page(page, h);
      for (int c = 0; c < head_dim; c++) {
        store_element(pages, k_page, size_t(c) * kPageTokens + slot_token, k[c]);
        store_element(pages, v_page, size_t(slot_token) * head_dim + c, v[c]);
      }
    }
  }
}

int attend(const AttendCall& call) {
  const int head_dim = call.pages.head_dim, n_kv_heads = call.pages.n_kv_heads;
  if (head_dim < 8 || head_dim > kMaxHeadDim || head_dim % 8 != 0 || n_kv_heads < 1 || call.n_heads % n_kv_heads != 0 ||
      call.block_size < 1 || call.n_tokens < 1)
    return kBadArgument;
  const int rows = call.block_size * (call.n_heads / n_kv_heads);

  // Few blocks (decode): split each list so that every thread has several parts to take.
  const int n_rows = n_kv_heads * call.n_blocks;
  const int longest = [&] {
    int most = 0;
    const int stored = call.head_shared ? call.n_blocks : n_rows;
    for (int i = 0; i < stored; i++) {
      const int n = int(call.row_ptr[i + 1] - call.row_ptr[i]);
      most = n > most ? n : most;
    }
    return most;
  }();
  // Short contexts only: a short list of a long context is a sparse selection, where speed is the point.
  if (longest <= kExactPages && call.q_start + call.n_tokens <= kExactKeys) {
    const size_t floats = align64(exact_floats(head_dim) * 4) / 4;
    float* const exact_scratch = reserve_scratch(floats * n_threads() * 4);
    if (!exact_scratch) return kOutOfMemory;
    parallel(n_rows, [&](int row, int thread) {
      const int kv_head = row % n_kv_heads, block = row / n_kv_heads;
      const int list = call.head_shared ? block : kv_head * call.n_blocks + block;
      const Item item = {kv_head, block, int(call.row_ptr[list]), int(call.row_ptr[list + 1])};
      run_exact(call, item, exact_scratch + floats * thread);
    });
    return kOk;
  }
  int n_splits = 1;
  if (n_threads() > 1) {
    n_splits = (4 * n_threads() + n_rows - 1) / n_rows;
    const int most = (longest + kSplitPages - 1) / kSplitPages;
    n_splits = n_splits > most ? most : n_splits;
    n_splits = n_splits > kMaxSplits ? kMaxSplits : n_splits < 1 ? 1 : n_splits;
  }

  const size_t per_thread = thread_floats(call);
  const size_t per_part = partial_floats(rows, head_dim);
  const int n_items = n_rows * n_splits;
  // Unsplit blocks are written at once, so a part is needed only per thread.
  const int n_parts = n_splits == 1 ? n_threads() : n_items;
  float* scratch = reserve_scratch((per_thread * n_threads() + per_part * n_parts) * 4);
  if (!scratch) return kOutOfMemory;
  float* const parts = scratch + per_thread * n_threads();

  parallel(n_items, [&](int chunk, int thread) {
    // Later blocks read more pages: they go first, so that the last item taken is a short one.
    const int row = n_rows - 1 - chunk / n_splits;
    const int split = chunk % n_splits;
    const int kv_head = row % n_kv_heads, block = row / n_kv_heads;
    const int list = call.head_shared ? block : kv_head * call.n_blocks + block;
    const int from = int(call.row_ptr[list]), n = int(call.row_ptr[list + 1]) - from;
    const Item item = {kv_head, block, from + int(int64_t(n) * split / n_splits),
                       from + int(int64_t(n) * (split + 1) / n_splits)};
    const int part = n_splits == 1 ? thread : row * n_splits + split;
    const Partial result = partial_at(parts + per_part * part, rows);
    run_item(call, item, result, scratch + per_thread * thread);
    if (n_splits == 1) write_block(call, kv_head, block, &result, 1);
  });
  if (n_splits > 1) {
    for (int row = 0; row < n_rows; row++) {
      Partial results[kMaxSplits];
      for (int split = 0; split < n_splits; split++)
        results[split] = partial_at(parts + per_part * (row * n_splits + split), rows);
      write_block(call, row % n_kv_heads, row / n_kv_heads, results, n_splits);
    }
  }
  return kOk;
}
