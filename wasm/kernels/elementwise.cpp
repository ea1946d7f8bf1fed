#include "elementwise.h"

#include <cmath>

#include "simd.h"

void rms_norm(const float* x, const float* weight, float* out, int rows, int cols, float eps) {
  for (int row = 0; row < rows; row++, x += cols, out += cols) {
    // Squares in f32, their sum in f64, as ggml: what follows must round as it does there.
    v128_t sums[2] = {wasm_f64x2_const_splat(0), wasm_f64x2_const_splat(0)};
    int c = 0;
    for (; c + 4 <= cols; c += 4) {
      const f32x4 v = wasm_v128_load(x + c);
      const f32x4 squares = wasm_f32x4_mul(v, v);
      sums[0] = wasm_f64x2_add(sums[0], wasm_f64x2_promote_low_f32x4(squares));
      sums[1] = wasm_f64x2_add(sums[1], wasm_f64x2_promote_low_f32x4(wasm_i64x2_shuffle(squares, squares, 1, 1)));
    }
    const v128_t total = wasm_f64x2_add(sums[0], sums[1]);
    double sum = wasm_f64x2_extract_lane(total, 0) + wasm_f64x2_extract_lane(total, 1);
    for (int i = c; i < cols; i++) sum += double(x[i] * x[i]);
    const float scale = 1.0f / sqrtf(float(sum / cols) + eps);
    for (c = 0; c + 4 <= cols; c += 4) {
      const f32x4 scaled = wasm_f32x4_mul(wasm_v128_load(x + c), wasm_f32x4_splat(scale));
      wasm_v128_store(out + c, wasm_f32x4_mul(scaled, wasm_v128_load(weight + c)));
    }
    for (; c < cols; c++) out[c] = x[c] * scale * weight[c];
  }
}

void add_in_place(float* x, const float* y, size_t n) {
  size_t i = 0;
  for (; i + 4 <= n; i += 4) wasm_v128_store(x + i, wasm_f32x4_add(wasm_v128_load(x + i), wasm_v128_load(y + i)));
  for (; i < n; i++) x[i] += y[i];
}

void rope(float* x, const float* cos_sin, int n_tokens, int n_heads, int head_dim, int n_rot, int halves) {
  const int pairs = n_rot / 2;
  for (int t = 0; t < n_tokens; t++, cos_sin += 2 * pairs)
    for (int h = 0; h < n_heads; h++, x += head_dim)
      for (int i = 0; i < pairs; i++) {
        float* a = halves ? x + i : x + 2 * i;
        float* b = halves ? x + i + pairs : x + 2 * i + 1;
        const float cos = cos_sin[2 * i], sin = cos_sin[2 * i + 1];
        const float v = *a, w = *b;
        *a = v * cos - w * sin;
        *b = v * sin + w * cos;
      }
}

namespace {

// x / (1 + e^-x)
INLAY_INLINE f32x4 silu(f32x4 x) {
  const f32x4 one = wasm_f32x4_const_splat(1.0f);
  return wasm_f32x4_div(x, wasm_f32x4_add(one, f32x4_exp_exact(wasm_f32x4_neg(x))));
}

// 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x³))) = x / (1 + e^(-2 u)), the tanh form that GGUF models are made with.
INLAY_INLINE f32x4 gelu(f32x4 x) {
  const f32x4 one = wasm_f32x4_const_splat(1.0f);
  const f32x4 cubic = wasm_f32x4_add(one, wasm_f32x4_mul(wasm_f32x4_const_splat(0.044715f), wasm_f32x4_mul(x, x)));
  const f32x4 minus_2u = wasm_f32x4_mul(wasm_f32x4_mul(x, wasm_f32x4_const_splat(-1.5957691216f)), cubic);
  return wasm_f32x4_div(x, wasm_f32x4_add(one, f32x4_exp_exact(minus_2u)));
}

template <Gate kAct>
void gate_row(float* gate, const float* up, int n) {
  int i = 0;
  for (; i + 4 <= n; i += 4) {
    const f32x4 g = wasm_v128_load(gate + i);
    wasm_v128_store(gate + i, wasm_f32x4_mul(kAct == kSilu ? silu(g) : gelu(g), wasm_v128_load(up + i)));
  }
  for (; i < n; i++) {
    const f32x4 g = wasm_f32x4_splat(gate[i]);
    gate[i] = wasm_f32x4_extract_lane(kAct == kSilu ? silu(g) : gelu(g), 0) * up[i];
  }
}

}  // namespace

void apply_gate(float* gate, const float* up, int n_tokens, int cols, int from, int to, Gate act) {
  for (int t = 0; t < n_tokens; t++) {
    float* g = gate + size_t(t) * cols + from;
    const float* u = up + size_t(t) * cols + from;
    if (act == kSilu) {
      gate_row<kSilu>(g, u, to - from);
    } else {
      gate_row<kGelu>(g, u, to - from);
    }
  }
}
