// Linear maps: out = w · x (+ bias), for every weight type.
//
// Scalar reference: matmul_reference.cpp.
#pragma once

#include <cstddef>
#include <cstdint>

// One linear map of a call. Written by TypeScript (src/backend/wasm/wasm-ops.ts); eight 32-bit fields.
struct LinearMap {
  uint32_t type;           // WeightType
  int32_t rows;
  const uint8_t* weights;  // packed (quantized types) or row-major
  const float* bias;       // (rows) padded to a multiple of 4, or null
  float* out;              // (n_tokens, rows)
  uint32_t accumulate;     // 1: out += …, 0: out = …
};

enum Gate : uint32_t { kSilu = 0, kGelu = 1 };

// out_i = w_i · x + bias_i for every map.  x: (n_tokens, cols) f32, aliases no out.
// Quantized weights multiply activations rounded to int8 per 32 columns (activations.h); float weights use f32.
// Returns a Status.
int linear(const float* x, int n_tokens, int cols, const LinearMap* maps, int n_maps);

// maps[0].out = act(w_gate · x) * (w_up · x); maps = {gate, up}, equal rows; maps[1].out is scratch.
int gated_linear(const float* x, int n_tokens, int cols, const LinearMap* maps, Gate gate);
