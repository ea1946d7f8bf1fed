#include "matmul.h"

#include <cstdlib>

#include "bridge.h"
#include "elementwise.h"
#include "matmul_float.h"
#include "matmul_tile.h"
#include "parallel.h"

namespace {

// Row groups that one tile of tokens is multiplied with before the next tile is fetched: the panel of this many
// groups stays in the first-level cache.
constexpr int kPanelBytes = 24 * 1024;
// A chunk should be worth at least this many multiply-adds, so that taking it (about 50 ns) is noise.
constexpr int64_t kChunkMacs = 64 * 1024;
// Groups multiplied together: two share the activations; with 8-bit products four tokens' accumulators of one group
// already fill the registers.
template <class F>
constexpr int tile_groups() {
  return is_narrow<F>() ? 1 : 2;
}

size_t align64(size_t n) { return (n + 63) & ~size_t(63); }

// A scratch block that grows and is kept between calls. Only the engine's thread resizes it.
struct Scratch {
  void* data = nullptr;
  size_t bytes = 0;
  bool reserve(size_t n) {
    if (n <= bytes) return true;
    free(data);
    data = aligned_alloc(64, align64(n));
    bytes = data ? align64(n) : 0;
    return data != nullptr;
  }
};

Scratch activation_scratch;
Scratch rounded_scratch;
Scratch panel_scratch;

// Rows 4 * group .. of token `t` from one vector; the last group may be cut.
INLAY_INLINE void store_rows(const LinearMap& map, int group, int t, f32x4 sums) {
  const int row = 4 * group;
  float* out = map.out + size_t(t) * map.rows + row;
  if (map.bias) sums = wasm_f32x4_add(sums, wasm_v128_load(map.bias + row));
  if (row + 4 <= map.rows) {
    if (map.accumulate) sums = wasm_f32x4_add(sums, wasm_v128_load(out));
    wasm_v128_store(out, sums);
    return;
  }
  alignas(16) float lanes[4];
  wasm_v128_store(lanes, sums);
  for (int i = 0; row + i < map.rows; i++) out[i] = map.accumulate ? out[i] + lanes[i] : lanes[i];
}

// Row groups [from, to) for the single token of `a`. One group at a time: its units are one stream, which the processor
// fetches ahead; two groups at a time are two streams and half as fast once the weights come from memory.
template <class F>
void gemv_range(const LinearMap& map, const Activations& a, int from, int to) {
  const size_t group_bytes = size_t(a.cols / F::kColumns) * F::kBytes;
  for (int group = from; group < to; group++)
    store_rows(map, group, 0, gemv_group<F>(map.weights + size_t(group) * group_bytes, a));
}

template <class F, int kGroups>
INLAY_INLINE void tile_store(const LinearMap& map, const Activations& a, const Panel& panel, int tile, int group) {
  f32x4 sums[kGroups][kTileTokens];
  multiply_tile<F, kGroups>(panel, a.n_blocks(), a, tile, sums);
  for (int t = 0; t < kTileTokens && tile * kTileTokens + t < a.n_tokens; t++)
    for (int g = 0; g < kGroups; g++) store_rows(map, group + g, tile * kTileTokens + t, sums[g][t]);
}

// Bytes of one group's panel, for any format.
size_t panel_group_bytes(int cols) { return align64(size_t(cols / 32) * (256 + 2 * 2 * 16)); }

int panel_groups(int cols) {
  const int n = int(kPanelBytes / panel_group_bytes(cols < 32 ? 32 : cols)) & ~1;
  return n < 2 ? 2 : n > 16 ? 16 : n;
}

// Row groups [from, to) for all tokens of `a`.
template <class F>
void gemm_range(const LinearMap& map, const Activations& a, int from, int to, uint8_t* scratch) {
  const size_t group_bytes = size_t(a.cols / F::kColumns) * F::kBytes;
  const int n_blocks = a.n_blocks();
  const int at_once = panel_groups(a.cols);
  const size_t quant_bytes = size_t(n_blocks) * panel_quant_bytes<F>();
  const size_t scale_floats = size_t(n_blocks) * F::kScales * 4;
  float* const d = reinterpret_cast<float*>(scratch + at_once * quant_bytes);
  float* const m = d + at_once * scale_floats;
  constexpr int kTileGroups = tile_groups<F>();
  for (int first = from; first < to; first += at_once) {
    const int n = to - first < at_once ? to - first : at_once;
    for (int g = 0; g < n; g++)
      unpack_group<F>(map.weights + size_t(first + g) * group_bytes, a.cols, scratch + g * quant_bytes,
                      d + g * scale_floats, m + g * scale_floats);
    for (int tile = 0; tile < a.n_tiles; tile++) {
      int g = 0;
      for (; g + kTileGroups <= n; g += kTileGroups) {
        const Panel panel = {scratch + g * quant_bytes, d + g * scale_floats, m + g * scale_floats};
        tile_store<F, kTileGroups>(map, a, panel, tile, first + g);
      }
      for (; g < n; g++) {
        const Panel panel = {scratch + g * quant_bytes, d + g * scale_floats, m + g * scale_floats};
        tile_store<F, 1>(map, a, panel, tile, first + g);
      }
    }
  }
}

// The loops of one format. They are called through pointers, which keeps each a function of its own: the optimizer
// would merge them into one of a hundred thousand instructions, in which browsers' compilers spill every register.
struct Kernels {
  bool narrow = false;
  void (*gemv)(const LinearMap&, const Activations&, int from, int to) = nullptr;
  void (*gemm)(const LinearMap&, const Activations&, int from, int to, uint8_t* scratch) = nullptr;
};

// Those of a quantized `type`.
Kernels kernels_of(uint32_t type) {
  Kernels kernels;
  with_format(type, [&]<class F>() { kernels = {is_narrow<F>(), gemv_range<F>, gemm_range<F>}; });
  return kernels;
}

// What one call works on, shared by all chunks.
struct Call {
  const float* x;
  int n_tokens, cols;
  const float* rounded;  // x rounded to f16, when a weight needs it
  Activations activations;
  uint8_t* panels;
  size_t panel_stride;
};

// Rows are handed out in units of one group (4 rows).
void run_groups(const Call& call, const LinearMap& map, int from, int to, int thread) {
  uint8_t* panel = call.panels + thread * call.panel_stride;
  if (!is_quantized(map.type)) {
    const int last = 4 * to < map.rows ? 4 * to : map.rows;
    const float* x = map.type == kF16 ? call.rounded : call.x;
    linear_float_rows(map, x, call.n_tokens, call.cols, 4 * from, last, reinterpret_cast<float*>(panel));
  } else if (call.n_tokens == 1) {
    kernels_of(map.type).gemv(map, call.activations, from, to);
  } else {
    kernels_of(map.type).gemm(map, call.activations, from, to, panel);
  }
}

int chunk_groups(const Call& call) {
  const int64_t macs = int64_t(4) * call.cols * call.n_tokens;
  const int least = int((kChunkMacs + macs - 1) / macs);
  const int panel = call.n_tokens == 1 ? 1 : panel_groups(call.cols);
  return (least > panel ? least : panel);
}

// Checks the maps, quantizes x once for all of them, reserves panels.
int prepare(Call* call, const LinearMap* maps, int n_maps) {
  if (call->n_tokens < 1 || call->cols < 1) return kBadArgument;
  bool narrow = false, wide = false, rounded = false;
  for (int i = 0; i < n_maps; i++) {
    if (block_bytes(maps[i].type) == 0 || call->cols % block_columns(maps[i].type) != 0) return kBadArgument;
    rounded |= maps[i].type == kF16;
    if (!is_quantized(maps[i].type)) continue;
    (kernels_of(maps[i].type).narrow ? narrow : wide) = true;
  }
  size_t panel = float_panel_bytes(call->cols);
  if (narrow || wide) {
    const size_t quantized_panel = panel_groups(call->cols) * panel_group_bytes(call->cols);
    if (quantized_panel > panel) panel = quantized_panel;
  }
  call->panel_stride = align64(panel);
  if (!panel_scratch.reserve(call->panel_stride * n_threads())) return kOutOfMemory;
  call->panels = static_cast<uint8_t*>(panel_scratch.data);
  if (rounded) {
    const size_t n = size_t(call->n_tokens) * call->cols;
    if (!rounded_scratch.reserve(n * 4)) return kOutOfMemory;
    round_to_f16(call->x, static_cast<float*>(rounded_scratch.data), n);
    call->rounded = static_cast<float*>(rounded_scratch.data);
  }
  if (narrow || wide) {
    if (!activation_scratch.reserve(activation_bytes(call->n_tokens, call->cols, narrow, wide))) return kOutOfMemory;
    call->activations = plan_activations(call->n_tokens, call->cols, narrow, wide, activation_scratch.data);
    const Activations& a = call->activations;
    const int per_chunk = 8;
    parallel((a.n_tiles + per_chunk - 1) / per_chunk, [&](int chunk, int) {
      for (int t = chunk * per_chunk; t < a.n_tiles && t < (chunk + 1) * per_chunk; t++) quantize_tile(a, call->x, t);
    });
  }
  return kOk;
}

}  // namespace

int linear(const float* x, int n_tokens, int cols, const LinearMap* maps, int n_maps) {
  Call call = {x, n_tokens, cols, nullptr, {}, nullptr, 0};
  if (const int status = prepare(&call, maps, n_maps)) return status;
  const int per_chunk = chunk_groups(call);
  int n_chunks = 0;
  for (int i = 0; i < n_maps; i++) n_chunks += ((maps[i].rows + 3) / 4 + per_chunk - 1) / per_chunk;
  parallel(n_chunks, [&](int chunk, int thread) {
    for (int i = 0; i < n_maps; i++) {
      const int groups = (maps[i].rows + 3) / 4;
      const int chunks = (groups + per_chunk - 1) / per_chunk;
      if (chunk < chunks) {
        const int from = chunk * per_chunk;
        const int to = from + per_chunk < groups ? from + per_chunk : groups;
        return run_groups(call, maps[i], from, to, thread);
      }
      chunk -= chunks;
    }
  });
  return kOk;
}

int gated_linear(const float* x, int n_tokens, int cols, const LinearMap* maps, Gate gate) {
  if (maps[0].rows != maps[1].rows) return kBadArgument;
  Call call = {x, n_tokens, cols, nullptr, {}, nullptr, 0};
  if (const int status = prepare(&call, maps, 2)) return status;
  const int per_chunk = chunk_groups(call);
  const int rows = maps[0].rows;
  const int groups = (rows + 3) / 4;
  parallel((groups + per_chunk - 1) / per_chunk, [&](int chunk, int thread) {
    const int from = chunk * per_chunk;
    const int to = from + per_chunk < groups ? from + per_chunk : groups;
    run_groups(call, maps[0], from, to, thread);
    run_groups(call, maps[1], from, to, thread);
    apply_gate(maps[0].out, maps[1].out, n_tokens, rows, 4 * from, 4 * to < rows ? 4 * to : rows, gate);
  });
  return kOk;
}
