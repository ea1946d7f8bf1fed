#include "matmul_float.h"

#include "simd.h"
#include "weights.h"

namespace {

constexpr int kRows = 2;

// One row as f32: a pointer into the weights (f32), or the row converted into `out`.
const float* row_as_f32(const LinearMap& map, int row, int cols, float* out) {
  if (map.type == kF32) return reinterpret_cast<const float*>(map.weights) + size_t(row) * cols;
  const uint8_t* p = map.weights + size_t(row) * cols * 2;
  int c = 0;
  if (map.type == kF16) {
    for (; c + 4 <= cols; c += 4) wasm_v128_store(out + c, f32x4_load_f16(p + 2 * c));
  } else {
    for (; c + 4 <= cols; c += 4) wasm_v128_store(out + c, f32x4_load_bf16(p + 2 * c));
  }
  if (c < cols) dequantize_row(map.type, p + 2 * c, cols - c, 0, out + c);
  return out;
}

// Dot products of kRows rows with one token. Sixteen partial sums a row, unfused, added up in the order of ggml's
// SIMD code, so that a float model gives llama.cpp's numbers to the last bit. Sum: type of the last, scalar sums.
template <class Sum>
INLAY_INLINE void dot_rows(const float* const rows[kRows], const float* x, int cols, float out[kRows]) {
  f32x4 acc[kRows][4];
  for (int r = 0; r < kRows; r++)
    for (int i = 0; i < 4; i++) acc[r][i] = f32x4_zero();
  int c = 0;
  for (; c + 16 <= cols; c += 16)
    for (int i = 0; i < 4; i++) {
      const f32x4 v = wasm_v128_load(x + c + 4 * i);
      for (int r = 0; r < kRows; r++)
        acc[r][i] = wasm_f32x4_add(acc[r][i], wasm_f32x4_mul(wasm_v128_load(rows[r] + c + 4 * i), v));
    }
  for (int r = 0; r < kRows; r++) {
    const f32x4 v = wasm_f32x4_add(wasm_f32x4_add(acc[r][0], acc[r][2]), wasm_f32x4_add(acc[r][1], acc[r][3]));
    Sum sum = wasm_f32x4_extract_lane(v, 0) + wasm_f32x4_extract_lane(v, 1) + wasm_f32x4_extract_lane(v, 2) +
              wasm_f32x4_extract_lane(v, 3);
    for (int i = c; i < cols; i++) sum += Sum(rows[r][i] * x[i]);
    out[r] = float(sum);
  }
}

}  // namespace

size_t float_panel_bytes(int cols) { return size_t(kRows) * cols * 4; }

void round_to_f16(const float* x, float* out, size_t n) {
  const f32x4 most = wasm_f32x4_const_splat(65504.0f);
  size_t i = 0;
  for (; i + 4 <= n; i += 4) {
    const f32x4 v = wasm_f32x4_pmax(wasm_f32x4_pmin(wasm_v128_load(x + i), most), wasm_f32x4_neg(most));
    const i32x4 bits = f16_bits_from_f32x4(v);
    // f32x4_from_f16_bits wants the sign extended.
    wasm_v128_store(out + i, f32x4_from_f16_bits(wasm_i32x4_shr(wasm_i32x4_shl(bits, 16), 16)));
  }
  for (; i < n; i++) out[i] = f16_to_f32(f32_to_f16(x[i]));
}

void linear_float_rows(const LinearMap& map, const float* x, int n_tokens, int cols, int from, int to, float* panel) {
  for (int row = from; row < to; row += kRows) {
    // A row past the end repeats the last one and is not stored.
    const float* rows[kRows];
    const int n_rows = to - row < kRows ? to - row : kRows;
    for (int r = 0; r < kRows; r++)
      rows[r] = r < n_rows ? row_as_f32(map, row + r, cols, panel + size_t(r) * cols) : rows[n_rows - 1];
    for (int t = 0; t < n_tokens; t++) {
      float sums[kRows];
      if (map.type == kF16) {
        dot_rows<double>(rows, x + size_t(t) * cols, cols, sums);
      } else {
        dot_rows<float>(rows, x + size_t(t) * cols, cols, sums);
      }
      for (int r = 0; r < n_rows; r++) {
        float* out = map.out + size_t(t) * map.rows + row + r;
        const float sum = sums[r] + (map.bias ? map.bias[row + r] : 0.0f);
        *out = map.accumulate ? *out + sum : sum;
      }
    }
  }
}
