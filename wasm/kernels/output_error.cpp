#include "output_error.h"

#include "attention_tile.h"
#include "bridge.h"
#include "parallel.h"

namespace {

constexpr int kRows = 4;

// Attention of up to four rows under way.
struct Side {
  alignas(16) float acc[kRows * kMaxHeadDim];  // (kRows, head_dim)
  float max[kRows], sum[kRows];
};

void add_page(const float* page, const float* q, int head_dim, float scale, float bias, const uint32_t keep[kRows], Side* side) {
  alignas(16) float scores[kRows][kPageTokens];
  float correction[kRows];
  score_page<kRows>(q, page, head_dim, scores);
  for (int r = 0; r < kRows; r++) {
    for (int j = 0; j < kPageTokens; j += 4) {
      const f32x4 x = wasm_f32x4_mul(wasm_v128_load(&scores[r][j]), wasm_f32x4_splat(scale));
      wasm_v128_store(&scores[r][j], wasm_f32x4_add(x, wasm_f32x4_splat(bias)));
    }
    correction[r] = softmax_row(scores[r], 1.0f, keep[r], {}, side->max + r, side->sum + r);
  }
  weigh_page<kRows>(scores, page + size_t(kPageTokens) * head_dim, head_dim, correction, {}, side->acc);
}

void run_tile(const OutputErrorCall& call, int first_row) {
  const int d = call.head_dim;
  const int n = call.n_rows - first_row < kRows ? call.n_rows - first_row : kRows;
  alignas(16) float q[kRows * kMaxHeadDim];
  int positions[kRows];
  for (int r = 0; r < kRows; r++) {
    const int row = first_row + (r < n ? r : 0);
    positions[r] = call.positions[row];
    for (int c = 0; c < d; c++) q[c * kRows + r] = call.q[size_t(row) * d + c];
  }
  Side exact = {}, coded = {};
  for (int r = 0; r < kRows; r++) exact.max[r] = coded.max[r] = -__builtin_inff();
  const size_t page_floats = size_t(2) * kPageTokens * d;
  for (int page = 0; page < call.n_pages; page++) {
    uint32_t keep[kRows], any = 0;
    for (int r = 0; r < kRows; r++) {
      const int newest = positions[r] - call.first[page];
      keep[r] = newest < 0 ? 0 : newest >= 31 ? 0xffffffffu : (2u << newest) - 1;
      any |= keep[r];
    }
    if (any == 0) continue;
    add_page(call.exact + page_floats * page, q, d, call.scale, call.bias[page], keep, &exact);
    add_page(call.coded + page_floats * page, q, d, call.scale, call.bias[page], keep, &coded);
  }
  for (int r = 0; r < n; r++) {
    double difference = 0, energy = 0;
    for (int c = 0; c < d; c++) {
      const double x = double(exact.acc[r * d + c]) / exact.sum[r], y = double(coded.acc[r * d + c]) / coded.sum[r];
      difference += (x - y) * (x - y);
      energy += x * x;
    }
    call.energies[2 * (first_row + r)] = float(difference);
    call.energies[2 * (first_row + r) + 1] = float(energy);
  }
}

}  // namespace

int output_errors(const OutputErrorCall& call) {
  const int d = call.head_dim;
  if (d < 8 || d > kMaxHeadDim || d % 8 != 0 || call.n_pages < 1 || call.n_rows < 1) return kBadArgument;
  parallel((call.n_rows + kRows - 1) / kRows, [&](int tile, int) { run_tile(call, tile * kRows); });
  return kOk;
}
