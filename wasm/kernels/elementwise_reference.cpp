// Slow and plain twins of elementwise.cpp, in double.
#include <cmath>

#include "bridge.h"

INLAY_EXPORT(reference_rms_norm)
void reference_rms_norm(const float* x, const float* weight, double* out, int rows, int cols, double eps) {
  for (int r = 0; r < rows; r++) {
    double squares = 0;
    for (int c = 0; c < cols; c++) squares += double(x[r * cols + c]) * x[r * cols + c];
    const double norm = sqrt(squares / cols + eps);
    for (int c = 0; c < cols; c++) out[r * cols + c] = x[r * cols + c] / norm * weight[c];
  }
}

INLAY_EXPORT(reference_rope)
void reference_rope(const float* x, const float* cos_sin, double* out, int n_tokens, int n_heads, int head_dim, int n_rot,
                    int halves) {
  for (int i = 0; i < n_tokens * n_heads * head_dim; i++) out[i] = x[i];
  for (int t = 0; t < n_tokens; t++)
    for (int h = 0; h < n_heads; h++)
      for (int pair = 0; pair < n_rot / 2; pair++) {
        const int head = (t * n_heads + h) * head_dim;
        const int first = head + (halves ? pair : 2 * pair);
        const int second = head + (halves ? pair + n_rot / 2 : 2 * pair + 1);
        const double c = cos_sin[t * n_rot + 2 * pair], s = cos_sin[t * n_rot + 2 * pair + 1];
        out[first] = x[first] * c - x[second] * s;
        out[second] = x[first] * s + x[second] * c;
      }
}

// out = act(gate) * up.  gelu: the tanh form, as ggml's.
INLAY_EXPORT(reference_gate)
void reference_gate(const float* gate, const float* up, double* out, int n, int is_gelu) {
  for (int i = 0; i < n; i++) {
    const double x = gate[i];
    const double silu = x / (1 + exp(-x));
    const double gelu = 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    out[i] = (is_gelu ? gelu : silu) * up[i];
  }
}
