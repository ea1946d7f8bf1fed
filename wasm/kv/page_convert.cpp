#include "page_convert.h"

#include <atomic>
#include <cmath>
#include <cstring>

#include "bridge.h"
#include "page_codec.h"
#include "parallel.h"
#include "simd.h"

namespace {

// Larger magnitudes round to infinity in f16.
constexpr float kF16Limit = 65520;

bool is_format(uint32_t format) { return format <= kPageQ2; }
bool is_quantized(PageFormat format) { return format >= kPageQ8; }
int bits_of(PageFormat format) { return format == kPageQ8 ? 8 : format == kPageQ4 ? 4 : 2; }
bool fits(int head_dim) { return head_dim >= 8 && head_dim <= kMaxHeadDim && head_dim % 8 == 0; }

// `n` elements of a format that is not quantized, as f32.
void widen(const uint8_t* p, PageFormat format, size_t n, float* out) {
  if (format == kPageF32) {
    memcpy(out, p, n * sizeof(float));
    return;
  }
  for (size_t i = 0; i < n; i += 4) wasm_v128_store(out + i, f32x4_load_f16(p + 2 * i));
}

// The reverse; false if an element does not fit.
bool narrow(const float* x, size_t n, PageFormat format, uint8_t* out) {
  if (format == kPageF32) {
    memcpy(out, x, n * sizeof(float));
    return true;
  }
  bool all_fit = true;
  for (size_t i = 0; i < n; i++) {
    all_fit &= std::fabs(x[i]) < kF16Limit;  // false for NaN
    reinterpret_cast<uint16_t*>(out)[i] = f32_to_f16(x[i]);
  }
  return all_fit;
}

// K of a page, (head_dim, 32).
void keys_of(const uint8_t* page, PageFormat format, int head_dim, float* out) {
  if (is_quantized(format)) decode_key_half(page, head_dim, bits_of(format), 0, kPageTokens, out);
  else widen(page, format, size_t(kPageTokens) * head_dim, out);
}

// Bytes of K in a page.
size_t key_bytes(int head_dim, PageFormat format) {
  if (is_quantized(format)) return key_half_bytes(head_dim, bits_of(format));
  return size_t(kPageTokens) * head_dim * (format == kPageF16 ? 2 : 4);
}

}  // namespace

size_t page_bytes(int head_dim, PageFormat format) {
  const size_t k = key_bytes(head_dim, format);
  return k + (is_quantized(format) ? value_half_bytes(head_dim, bits_of(format)) : k);
}

int convert_pages(const uint8_t* in, PageFormat from, int n_pages, int head_dim, float clip, PageFormat to, uint8_t* out) {
  if (!fits(head_dim) || !is_format(from) || !is_format(to)) return kBadArgument;
  if (is_quantized(to) && !(clip > 0 && clip <= 1)) return kBadArgument;
  const size_t n = size_t(kPageTokens) * head_dim;
  const size_t in_bytes = page_bytes(head_dim, from), out_bytes = page_bytes(head_dim, to);
  const int none = 2 * n_pages;
  std::atomic<int> first_bad{none};
  parallel(n_pages, [&](int page, int) {
    alignas(16) float x[kPageTokens * kMaxHeadDim];
    alignas(16) float transposed[kPageTokens * kMaxHeadDim];
    for (int half = 0; half < 2; half++) {
      const uint8_t* const p = in + in_bytes * page + (half == 0 ? 0 : key_bytes(head_dim, from));
      uint8_t* const q = out + out_bytes * page + (half == 0 ? 0 : key_bytes(head_dim, to));
      if (!is_quantized(from)) widen(p, from, n, x);
      else if (half == 0) decode_key_half(p, head_dim, bits_of(from), 0, kPageTokens, x);
      else decode_value_half(p, head_dim, bits_of(from), 0, kPageTokens, x);
      bool is_good;
      if (!is_quantized(to)) {
        is_good = narrow(x, n, to, q);
      } else if (half == 0) {
        is_good = encode_key_half(x, head_dim, bits_of(to), clip, q);
      } else {
        transpose(x, kPageTokens, head_dim, transposed);
        is_good = encode_value_half(transposed, head_dim, bits_of(to), clip, q);
      }
      if (is_good) continue;
      const int bad = 2 * page + half;
      for (int seen = first_bad.load(); bad < seen && !first_bad.compare_exchange_weak(seen, bad);) {
      }
      return;
    }
  });
  return first_bad == none ? kOk : 1 + first_bad;
}

int decode_keys(const uint8_t* pages, PageFormat format, int n_pages, int head_dim, float* out) {
  if (!fits(head_dim) || !is_format(format)) return kBadArgument;
  const size_t n = size_t(kPageTokens) * head_dim, bytes = page_bytes(head_dim, format);
  parallel(n_pages, [&](int page, int) { keys_of(pages + bytes * page, format, head_dim, out + n * page); });
  return kOk;
}

int sum_keys(const uint8_t* pages, PageFormat format, int n_pages, int head_dim, int granule, float* out) {
  if (!fits(head_dim) || !is_format(format)) return kBadArgument;
  if (granule < 4 || granule % 4 != 0 || kPageTokens % granule != 0) return kBadArgument;
  const size_t bytes = page_bytes(head_dim, format);
  const int n_granules = kPageTokens / granule;
  parallel(n_pages, [&](int page, int) {
    alignas(16) float keys[kPageTokens * kMaxHeadDim];
    keys_of(pages + bytes * page, format, head_dim, keys);
    float* const to = out + size_t(page) * n_granules * head_dim;
    for (int c = 0; c < head_dim; c++)
      for (int g = 0; g < n_granules; g++) {
        const float* const x = keys + c * kPageTokens + g * granule;
        f32x4 sum = wasm_v128_load(x);
        for (int t = 4; t < granule; t += 4) sum = wasm_f32x4_add(sum, wasm_v128_load(x + t));
        to[g * head_dim + c] = f32x4_sum(sum);
      }
  });
  return kOk;
}
