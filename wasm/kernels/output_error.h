// What attention loses when pages are coded: one KV head's outputs over its pages, and over the same pages coded and decoded.
// Plain twin: test/reference/output-error.ts.
#pragma once

#include <cstdint>

#include "attention.h"

// Written by TypeScript (src/backend/wasm/output-error.ts); 32-bit fields in this order.
struct OutputErrorCall {
  const float* exact;        // (n_pages, K then V): K (head_dim, 32), V (32, head_dim)
  const float* coded;        // likewise
  const float* bias;         // (n_pages) added to the page's scores: ln of how many pages it stands for
  const int32_t* first;      // (n_pages) position of the page's first token
  const float* q;            // (n_rows, head_dim), after RoPE
  const int32_t* positions;  // (n_rows): a row sees the tokens at or before its own position
  float* energies;           // out, (n_rows, 2): |difference of the outputs|^2, |exact output|^2
  int32_t n_pages;
  int32_t n_rows;
  int32_t head_dim;          // a multiple of 8, at most kMaxHeadDim
  float scale;
};

// Returns a Status.
int output_errors(const OutputErrorCall& call);
