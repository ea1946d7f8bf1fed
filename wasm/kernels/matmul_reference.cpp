// Slow and plain twin of matmul.cpp, matmul_float.cpp and activations.cpp. Inputs rounded as there, sums in double.
#include <cmath>

#include "bridge.h"
#include "reference.h"
#include "weights.h"

namespace {

// Nearest f16, ties to even. |x| below 65520.
double nearest_f16(double x) {
  if (x == 0) return 0;
  const int exponent = ilogb(x) < -14 ? -14 : ilogb(x);
  return ldexp(nearbyint(ldexp(x, 10 - exponent)), exponent - 10);
}

// x[col] as it enters a product: int8 levels of 32 columns with an f16 scale, f16 for f16 weights, or x itself.
double rounded_input(uint32_t type, const float* x, int col) {
  if (type == kF16) return nearest_f16(x[col]);
  if (!is_quantized(type)) return x[col];
  const float* block = x + col / 32 * 32;
  float most = 0;
  for (int i = 0; i < 32; i++) most = fmaxf(most, fabsf(block[i]));
  const float d = most / 127;
  return d == 0 ? 0 : roundf(x[col] * (1 / d)) * nearest_f16(d);
}

}  // namespace

// out = w · x.  w: (rows, cols) as in the file; x: (n_tokens, cols) f32; out: (n_tokens, rows) f64.
INLAY_EXPORT(reference_matmul)
void reference_matmul(uint32_t type, const uint8_t* w, const float* x, double* out, int n_tokens, int rows, int cols) {
  for (int i = 0; i < n_tokens * rows; i++) out[i] = 0;
  for (int t = 0; t < n_tokens; t++)
    for (int c = 0; c < cols; c++) {
      const double input = rounded_input(type, x + t * cols, c);
      for (int r = 0; r < rows; r++) out[t * rows + r] += reference_weight(type, w, cols, r, c) * input;
    }
}
