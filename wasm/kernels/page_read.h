// Keys and values of a page as f32, whatever the page is stored as.
#pragma once

#include "attention.h"
#include "attention_tile.h"
#include "kv/page_codec.h"
#include "simd.h"

// `n` f16 elements into `out`.
INLAY_INLINE void widen_f16(const uint8_t* p, size_t n, float* out) {
  for (size_t i = 0; i < n; i += 4) wasm_v128_store(out + i, f32x4_load_f16(p + 2 * i));
}

// K of a page, (head_dim, 32): where it lies, or in `out`. Only the tokens of the range are defined.
INLAY_INLINE const float* keys_as_f32(const LayerPages& pages, int page, int kv_head, TokenRange range, float* out) {
  const int head_dim = pages.head_dim;
  if (pages.is_cold(page)) {
    const ColdPage cold = pages.cold_page(page, kv_head);
    decode_key_half(cold.data, head_dim, cold.bits, range.from, range.to, out);
    return out;
  }
  const uint8_t* const p = pages.k_page(page, kv_head);
  if (pages.format != kPageF16) return reinterpret_cast<const float*>(p);
  if (range.is_whole()) {
    widen_f16(p, size_t(kPageTokens) * head_dim, out);
    return out;
  }
  for (int i = range.from; i < head_dim * kPageTokens; i += kPageTokens) widen_f16(p + 2 * i, range.to - range.from, out + i);
  return out;
}

// V of a page, (32, head_dim).
INLAY_INLINE const float* values_as_f32(const LayerPages& pages, int page, int kv_head, TokenRange range, float* out) {
  const int head_dim = pages.head_dim;
  if (pages.is_cold(page)) {
    const ColdPage cold = pages.cold_page(page, kv_head);
    decode_value_half(cold.data + key_half_bytes(head_dim, cold.bits), head_dim, cold.bits, range.from, range.to, out);
    return out;
  }
  const uint8_t* const p = pages.v_page(page, kv_head);
  if (pages.format != kPageF16) return reinterpret_cast<const float*>(p);
  const size_t first = size_t(range.from) * head_dim;
  widen_f16(p + 2 * first, size_t(range.to - range.from) * head_dim, out + first);
  return out;
}
