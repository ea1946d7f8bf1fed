// Exact softmax attention over listed pages of a paged KV cache, and appending to it. Plain twin: attention_reference.cpp.
//
// A page holds 32 tokens of one layer and KV head: K transposed (head_dim, 32), then V (32, head_dim), in f32 or
// f16. A slot holds the pages of all layers and KV heads for the same 32 tokens; the page table gives each logical
// page's slot address. Slots that are still written ("hot") are all f32 or all f16; older ones may be quantized ("cold",
// see wasm/kv/page_codec.h), each in a format of its own, which the lowest three bits of its address say. A cold slot whose
// heads differ ("mixed") begins with a table, u32 (n_layers, n_kv_heads): bytes from the slot's start to the head's page,
// plus the tag of its format.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kv/page_codec.h"

constexpr int kPageTokens = 32;
constexpr int kMaxHeadDim = 256;

enum PageFormat : uint32_t { kPageF32 = 0, kPageF16 = 1, kPageQ8 = 2, kPageQ4 = 3, kPageQ2 = 4 };

// Of a slot's address.
constexpr uint32_t kMixedTag = 4;

// A quantized page of one KV head: its K half, then its V half.
struct ColdPage {
  const uint8_t* data;
  int bits;
};

// Where one layer's pages are.
struct LayerPages {
  uint8_t* const* slots;  // (n_pages) slot addresses
  uint32_t layer_offset;  // bytes from a hot slot's start to this layer's first page
  PageFormat format;      // of hot slots: kPageF32 or kPageF16
  int32_t n_kv_heads;
  int32_t head_dim;  // a multiple of 8, at most kMaxHeadDim

  // Of a hot page.
  size_t half_bytes() const { return size_t(kPageTokens) * head_dim * (format == kPageF16 ? 2 : 4); }
  uint8_t* k_page(int page, int kv_head) const {
    return slots[page] + layer_offset + 2 * half_bytes() * size_t(kv_head);
  }
  uint8_t* v_page(int page, int kv_head) const { return k_page(page, kv_head) + half_bytes(); }

  // 0: hot; 1, 2, 3: kPageQ8, kPageQ4, kPageQ2; 4: mixed.
  uint32_t tag(int page) const { return uint32_t(reinterpret_cast<uintptr_t>(slots[page]) & 7); }
  bool is_cold(int page) const { return tag(page) != 0; }
  ColdPage cold_page(int page, int kv_head) const {
    const size_t index = layer_offset / (2 * half_bytes()) + size_t(kv_head);
    const uint32_t format = tag(page);
    const uint8_t* const slot = slots[page] - format;
    if (format == kMixedTag) {
      const uint32_t entry = reinterpret_cast<const uint32_t*>(slot)[index];
      return {slot + (entry & ~3u), 16 >> (entry & 3)};
    }
    const int bits = 16 >> format;
    return {slot + index * (key_half_bytes(head_dim, bits) + value_half_bytes(head_dim, bits)), bits};
  }
};

// Written by TypeScript (src/backend/wasm/wasm-attention.ts); 32-bit fields in this order.
struct AttendCall {
  LayerPages pages;
  const float* q;          // (n_tokens, n_heads, head_dim), after RoPE
  float* out;              // same shape
  const uint32_t* row_ptr; // CSR rows of the selection: kv_head * n_blocks + block, or block when head_shared
  const uint32_t* page;    // logical pages, ascending within a row
  const uint32_t* mask;    // per listed page, bit r keeps token r; null keeps all
  int32_t n_blocks;
  int32_t block_size;      // queries per block; the last may be shorter
  uint32_t head_shared;
  int32_t q_start;         // position of query 0
  int32_t n_tokens;
  int32_t n_heads;         // a multiple of n_kv_heads; query head h reads KV head h / (n_heads / n_kv_heads)
  float scale;             // 1 / sqrt(head_dim) usually
  float softcap;           // x <- cap * tanh(x / cap); 0 = none
  int32_t window;          // keys before query - window + 1 are not seen; 0 = none
};

// Appends tokens at positions [position, position + n_tokens).  k, v: (n_tokens, n_kv_heads, head_dim).
void kv_append(const LayerPages& pages, const float* k, const float* v, int position, int n_tokens);

// Attends. Every query sees the listed, unmasked keys at or before its own position.
// Online softmax (Milakov & Gimelshein 2018, arXiv:1805.02867); decode splits the page list over threads and merges
// the parts by their log-sum-exp, exactly. Returns a Status.
int attend(const AttendCall& call);
