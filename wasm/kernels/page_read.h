// Keys and values of a page as f32, whatever the page is stored as.
#pragma once

#include "attention.h"
#include "kv/page_codec.h"
#include "simd.h"

// `n` f32 or f16 elements: in place, or converted into `out`.
INLAY_INLINE const float* elements_as_f32(const LayerPages& pages, const uint8_t* p, size_t n, float* out) {
  if (pages.format != kPageF16) return reinterpret_cast<const float*>(p);
  for (size_t i = 0; i < n; i += 4) wasm_v128_store(out + i, f32x4_load_f16(p + 2 * i));
  return out;
}

// K of a page, (head_dim, 32): where it lies, or in `out`.
INLAY_INLINE const float* keys_as_f32(const LayerPages& pages, int page, int kv_head, float* out) {
  if (!pages.is_cold(page))
    return elements_as_f32(pages, pages.k_page(page, kv_head), size_t(kPageTokens) * pages.head_dim, out);
  decode_channels(pages.cold_page(page, kv_head), pages.head_dim, pages.cold_bits(page), out);
  return out;
}

// V of a page, (32, head_dim).
INLAY_INLINE const float* values_as_f32(const LayerPages& pages, int page, int kv_head, float* out) {
  if (!pages.is_cold(page))
    return elements_as_f32(pages, pages.v_page(page, kv_head), size_t(kPageTokens) * pages.head_dim, out);
  const int head_dim = pages.head_dim, bits = pages.cold_bits(page);
  decode_tokens(pages.cold_page(page, kv_head) + quantized_half_bytes(head_dim, bits), head_dim, bits, out);
  return out;
}
