#include "slot_codec.h"

#include <atomic>

#include "bridge.h"
#include "kernels/attention.h"
#include "page_codec.h"
#include "parallel.h"

namespace {

bool fits(int head_dim, int bits) {
  return head_dim >= 8 && head_dim <= kMaxHeadDim && head_dim % 8 == 0 && (bits == 8 || bits == 4 || bits == 2);
}

}  // namespace

int quantize_slot(const float* pages, int n_pages, int head_dim, int bits, float clip, uint8_t* out) {
  if (!fits(head_dim, bits) || !(clip > 0 && clip <= 1)) return kBadArgument;
  const size_t half_floats = size_t(kPageTokens) * head_dim;
  const size_t half_bytes = quantized_half_bytes(head_dim, bits);
  const int none = 2 * n_pages;
  std::atomic<int> first_bad{none};
  parallel(n_pages, [&](int page, int) {
    alignas(16) float values[kPageTokens * kMaxHeadDim];
    const float* const k = pages + 2 * half_floats * page;
    uint8_t* const to = out + 2 * half_bytes * page;
    transpose(k + half_floats, kPageTokens, head_dim, values);
    int bad = none;
    if (!encode_half(k, head_dim, bits, clip, to)) bad = 2 * page;
    else if (!encode_half(values, head_dim, bits, clip, to + half_bytes)) bad = 2 * page + 1;
    for (int seen = first_bad.load(); bad < seen && !first_bad.compare_exchange_weak(seen, bad);) {
    }
  });
  return first_bad == none ? kOk : 1 + first_bad;
}

int dequantize_slot(const uint8_t* pages, int n_pages, int head_dim, int bits, float* out) {
  if (!fits(head_dim, bits)) return kBadArgument;
  const size_t half_floats = size_t(kPageTokens) * head_dim;
  const size_t half_bytes = quantized_half_bytes(head_dim, bits);
  for (int page = 0; page < n_pages; page++, pages += 2 * half_bytes, out += 2 * half_floats) {
    decode_channels(pages, head_dim, bits, out);
    decode_tokens(pages + half_bytes, head_dim, bits, out + half_floats);
  }
  return kOk;
}
