// Row-wise and element-wise kernels. All f32. Rows are tokens unless said otherwise. Plain twins: elementwise_reference.cpp.
#pragma once

#include "matmul.h"

// out = x / sqrt(mean(x²) + eps) * weight.  x, out: (rows, cols); weight: (cols). out may be x.
void rms_norm(const float* x, const float* weight, float* out, int rows, int cols, float eps);

// x += y.  (n)
void add_in_place(float* x, const float* y, size_t n);

// Rotates pairs of each head by its position's angle (RoPE, Su et al. 2021, arXiv:2104.09864, sec. 3.4.2).
//   x: (n_tokens, n_heads, head_dim), in place;  cos_sin: (n_tokens, n_rot / 2, 2);  n_rot <= head_dim, even
//   halves = 0: pairs (2i, 2i + 1), ggml NORM;  1: pairs (i, i + n_rot / 2), ggml NEOX
void rope(float* x, const float* cos_sin, int n_tokens, int n_heads, int head_dim, int n_rot, int halves);

// gate = act(gate) * up over columns [from, to) of (n_tokens, cols).
void apply_gate(float* gate, const float* up, int n_tokens, int cols, int from, int to, Gate act);
