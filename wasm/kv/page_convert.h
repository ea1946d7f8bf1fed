// Pages from one format to another: f32, f16 and the quantized ones. A page is K, then V, of 32 tokens.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/attention.h"

// Bytes of a page.
size_t page_bytes(int head_dim, PageFormat format);

// Converts `n_pages` pages, one after the other. `clip` is what encode_key_half() takes, and not looked at for f32 and f16.
// Returns kOk; 1 + half, counting K and V of each page, for the first that has an element which is infinite, NaN or too
// large for `to`; or kBadArgument. `out` must not overlap `in`.
int convert_pages(const uint8_t* in, PageFormat from, int n_pages, int head_dim, float clip, PageFormat to, uint8_t* out);

// The keys of `n_pages` pages as f32: (n_pages, head_dim, 32). Returns kOk or kBadArgument.
int decode_keys(const uint8_t* pages, PageFormat format, int n_pages, int head_dim, float* out);

// Sums of the keys of `n_pages` pages over runs of `granule` tokens, a multiple of 4 that divides 32:
// (n_pages, 32 / granule, head_dim). Returns kOk or kBadArgument.
int sum_keys(const uint8_t* pages, PageFormat format, int n_pages, int head_dim, int granule, float* out);
