// Slots between full precision and quantized: every page of a slot, K and V.
#pragma once

#include <cstdint>

// Codes `n_pages` f32 pages (K (head_dim, 32), V (32, head_dim)) into quantized ones, one after the other.
// Returns kOk; 1 + half, counting K and V of each page, where an element is infinite or NaN; or kBadArgument.
int quantize_slot(const float* pages, int n_pages, int head_dim, int bits, float clip, uint8_t* out);

// The reverse; the elements are what the codes stand for. Returns kOk or kBadArgument.
int dequantize_slot(const uint8_t* pages, int n_pages, int head_dim, int bits, float* out);
