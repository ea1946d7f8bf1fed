// One query head against a few pages, in ggml's order of operations (see attention_exact.cpp).
#pragma once

#include <cmath>
#include <cstdint>

#include "attention.h"

// Up to this many keys the exact order costs no more than the flash kernel does.
constexpr int kExactKeys = 256;
constexpr int kExactPages = kExactKeys / kPageTokens;

struct ExactRow {
  const float* q;         // (head_dim)
  const float* const* k;  // (n_pages) pages as f32, (head_dim, 32)
  const float* const* v;  // (n_pages) pages as f32, (32, head_dim)
  const uint32_t* keep;   // (n_pages) bit j: token j is seen; at least one bit over all pages
  int n_pages;            // 1..kExactPages
  int head_dim;
  float scale;
  float softcap;  // 0 = none
};

// out (head_dim) = softmax(scale * q · K) · V.  scores: scratch, (n_pages * 32).
void attend_row_exact(const ExactRow& row, float* scores, float* out);
