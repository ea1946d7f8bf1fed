// out = w · x for f32, f16 and bf16 weights, row-major, any number of columns.
//
// Scalar reference: matmul_reference.cpp.
#pragma once

#include <cstddef>
#include <cstdint>

#include "matmul.h"

// Bytes of scratch per thread for `cols` columns.
size_t float_panel_bytes(int cols);

// out = x rounded to f16 and back, (n). ggml multiplies f16 weights with f16 activations; so do we, for its tokens.
void round_to_f16(const float* x, float* out, size_t n);

// Rows [from, to) for all tokens; adds bias, accumulates. `panel`: float_panel_bytes(cols).
// x: (n_tokens, cols), already rounded to f16 for f16 weights.
void linear_float_rows(const LinearMap& map, const float* x, int n_tokens, int cols, int from, int to, float* panel);
