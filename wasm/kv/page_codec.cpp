#include "page_codec.h"

#include <cmath>
#include <cstring>
#include <type_traits>

#include "kernels/attention.h"
#include "simd.h"

namespace {

constexpr int kVectors = kPageTokens / 4;
constexpr int kHeaderBytes = 16;
// E4M3: 4 bits of exponent with bias 7, 3 of mantissa, no infinities.
constexpr float kLargest = 448;
// Clippings that are tried beside none.
constexpr int kClipSteps = 4;

int n_groups(int head_dim) { return head_dim / group_channels(head_dim); }

// ---- FP8 E4M3 ---------------------------------------------------------------------------------------------

// The distance between neighbouring E4M3 numbers at |x|: 2^(e - 3), at least 2^-9.
INLAY_INLINE f32x4 e4m3_spacing(f32x4 x) {
  const f32x4 power = wasm_v128_and(x, wasm_i32x4_const_splat(0x7f800000));
  return wasm_f32x4_mul(wasm_f32x4_max(power, wasm_f32x4_const_splat(0x1p-6f)), wasm_f32x4_const_splat(0x1p-3f));
}

INLAY_INLINE f32x4 e4m3_floor(f32x4 x) {
  const f32x4 spacing = e4m3_spacing(x);
  return wasm_f32x4_mul(wasm_f32x4_floor(wasm_f32x4_div(x, spacing)), spacing);
}

INLAY_INLINE f32x4 e4m3_ceil(f32x4 x) {
  const f32x4 spacing = e4m3_spacing(x);
  return wasm_f32x4_mul(wasm_f32x4_ceil(wasm_f32x4_div(x, spacing)), spacing);
}

// Four E4M3 numbers at `p` as f32, and back. 2^120 is what shifting the exponent leaves of the biases, 127 - 7.
INLAY_INLINE f32x4 load_e4m3(const uint8_t* p) {
  const i32x4 bits = wasm_u16x8_extend_low_u8x16(wasm_v128_load32_zero(p));
  const i32x4 wide = wasm_u32x4_extend_low_u16x8(bits);
  const i32x4 sign = wasm_v128_and(wasm_i32x4_shl(wide, 24), wasm_i32x4_const_splat(int32_t(0x80000000)));
  const i32x4 rest = wasm_i32x4_shl(wasm_v128_and(wide, wasm_i32x4_const_splat(0x7f)), 20);
  return wasm_v128_or(wasm_f32x4_mul(rest, wasm_f32x4_const_splat(0x1p120f)), sign);
}

INLAY_INLINE void store_e4m3(f32x4 x, uint8_t* p) {
  const i32x4 rest = wasm_u32x4_shr(wasm_f32x4_mul(wasm_f32x4_abs(x), wasm_f32x4_const_splat(0x1p-120f)), 20);
  const i32x4 sign = wasm_v128_and(wasm_u32x4_shr(x, 24), wasm_i32x4_const_splat(0x80));
  const i32x4 bits = wasm_v128_or(rest, sign);
  for (int i = 0; i < 4; i++) p[i] = uint8_t(reinterpret_cast<const int32_t*>(&bits)[i]);
}

// One of four E4M3 numbers that are equal, as its 8 bits.
INLAY_INLINE uint8_t e4m3_byte(f32x4 x) {
  uint8_t bytes[4];
  store_e4m3(x, bytes);
  return bytes[0];
}

// ---- codes of 32 tokens -----------------------------------------------------------------------------------
//
//     8 bits   byte j: token j
//     4 bits   byte j: token j, token j + 16 above it
//     2 bits   byte j: tokens j, j + 8, j + 16, j + 24, from the lowest bits up

struct Codes {
  i8x16 tokens[2];  // 0..15, 16..31
};

template <int kBits>
INLAY_INLINE void pack(const Codes& codes, uint8_t* out) {
  if constexpr (kBits == 8) {
    wasm_v128_store(out, codes.tokens[0]);
    wasm_v128_store(out + 16, codes.tokens[1]);
  } else {
    const i8x16 pairs = wasm_v128_or(codes.tokens[0], wasm_i8x16_shl(codes.tokens[1], 4));
    if constexpr (kBits == 4) {
      wasm_v128_store(out, pairs);
    } else {
      const i8x16 upper = wasm_i8x16_shl(wasm_i64x2_shuffle(pairs, pairs, 1, 1), 2);
      wasm_v128_store64_lane(out, wasm_v128_or(pairs, upper), 0);
    }
  }
}

template <int kBits>
INLAY_INLINE Codes unpack(const uint8_t* p) {
  if constexpr (kBits == 8) {
    return {{wasm_v128_load(p), wasm_v128_load(p + 16)}};
  } else if constexpr (kBits == 4) {
    const i8x16 pairs = wasm_v128_load(p);
    return {{wasm_v128_and(pairs, wasm_i8x16_const_splat(15)), wasm_u8x16_shr(pairs, 4)}};
  } else {
    const i8x16 bytes = wasm_v128_load64_zero(p);
    const i8x16 pairs = wasm_i64x2_shuffle(bytes, wasm_u8x16_shr(bytes, 2), 0, 2);
    const i8x16 mask = wasm_i8x16_const_splat(3);
    return {{wasm_v128_and(pairs, mask), wasm_v128_and(wasm_u8x16_shr(pairs, 4), mask)}};
  }
}

// Tokens 4 * v .. 4 * v + 3 as f32.
INLAY_INLINE void widen(const Codes& codes, f32x4 out[kVectors]) {
  for (int half = 0; half < 2; half++) {
    const i16x8 low = wasm_u16x8_extend_low_u8x16(codes.tokens[half]);
    const i16x8 high = wasm_u16x8_extend_high_u8x16(codes.tokens[half]);
    out[4 * half] = wasm_f32x4_convert_i32x4(wasm_u32x4_extend_low_u16x8(low));
    out[4 * half + 1] = wasm_f32x4_convert_i32x4(wasm_u32x4_extend_high_u16x8(low));
    out[4 * half + 2] = wasm_f32x4_convert_i32x4(wasm_u32x4_extend_low_u16x8(high));
    out[4 * half + 3] = wasm_f32x4_convert_i32x4(wasm_u32x4_extend_high_u16x8(high));
  }
}

INLAY_INLINE Codes narrow(const i32x4 codes[kVectors]) {
  i16x8 halves[4];
  for (int i = 0; i < 4; i++) halves[i] = wasm_u16x8_narrow_i32x4(codes[2 * i], codes[2 * i + 1]);
  return {{wasm_u8x16_narrow_i16x8(halves[0], halves[1]), wasm_u8x16_narrow_i16x8(halves[2], halves[3])}};
}

// ---- ranges -----------------------------------------------------------------------------------------------

// Four ranges, or four times one. Scaled.
struct Range {
  f32x4 lo, step;
};

// From `least` to `most`, less `cut` of the width at either end, rounded outward.
INLAY_INLINE Range clipped_range(f32x4 least, f32x4 most, float cut, float top) {
  const f32x4 end = wasm_f32x4_mul(wasm_f32x4_sub(most, least), wasm_f32x4_splat(cut));
  const f32x4 lo = e4m3_floor(wasm_f32x4_add(least, end));
  const f32x4 width = wasm_f32x4_sub(wasm_f32x4_sub(most, end), lo);
  return {lo, e4m3_ceil(wasm_f32x4_div(width, wasm_f32x4_splat(top)))};
}

// A step to divide by: a range whose elements are all `lo` has step 0.
INLAY_INLINE f32x4 divisor_of(const Range& range) {
  return wasm_v128_bitselect(wasm_f32x4_const_splat(1), range.step, wasm_f32x4_eq(range.step, f32x4_zero()));
}

// Codes as f32.
INLAY_INLINE f32x4 codes_of(f32x4 x, const Range& range, f32x4 divisor, float top) {
  const f32x4 code = wasm_f32x4_nearest(wasm_f32x4_div(wasm_f32x4_sub(x, range.lo), divisor));
  return wasm_f32x4_min(wasm_f32x4_max(code, f32x4_zero()), wasm_f32x4_splat(top));
}

// Squared error of n vectors, `stride` floats apart, unscaled.
INLAY_INLINE f32x4 squared_error(const float* x, int n, int stride, f32x4 to_scaled, const Range& range, float top) {
  const f32x4 divisor = divisor_of(range);
  f32x4 sum = f32x4_zero();
  for (int i = 0; i < n; i++) {
    const f32x4 element = wasm_f32x4_mul(wasm_v128_load(x + i * stride), to_scaled);
    const f32x4 stands = wasm_f32x4_add(wasm_f32x4_mul(codes_of(element, range, divisor, top), range.step), range.lo);
    const f32x4 error = wasm_f32x4_sub(stands, element);
    sum = wasm_f32x4_add(sum, wasm_f32x4_mul(error, error));
  }
  return sum;
}

// Of the clippings down to `clip`, for each lane the one with the least squared error; the lesser of equals. kOneRange: all
// lanes are one range.
template <bool kOneRange>
INLAY_INLINE Range best_range(const float* x, int n, int stride, f32x4 to_scaled, float clip, float top) {
  f32x4 least = wasm_v128_load(x), most = least;
  for (int i = 1; i < n; i++) {
    const f32x4 element = wasm_v128_load(x + i * stride);
    least = wasm_f32x4_pmin(least, element);
    most = wasm_f32x4_pmax(most, element);
  }
  if constexpr (kOneRange) {
    least = wasm_f32x4_splat(-f32x4_max_lane(wasm_f32x4_neg(least)));
    most = wasm_f32x4_splat(f32x4_max_lane(most));
  }
  least = wasm_f32x4_mul(least, to_scaled);
  most = wasm_f32x4_mul(most, to_scaled);
  Range best = clipped_range(least, most, 0, top);
  if (clip == 1) return best;
  const auto error_of = [&](const Range& range) {
    const f32x4 error = squared_error(x, n, stride, to_scaled, range, top);
    return kOneRange ? wasm_f32x4_splat(f32x4_sum(error)) : error;
  };
  f32x4 error = error_of(best);
  for (int i = 1; i <= kClipSteps; i++) {
    const Range range = clipped_range(least, most, (1 - clip) * float(i) / (2 * kClipSteps), top);
    const f32x4 other = error_of(range);
    const v128_t better = wasm_f32x4_lt(other, error);
    error = wasm_v128_bitselect(other, error, better);
    best.lo = wasm_v128_bitselect(range.lo, best.lo, better);
    best.step = wasm_v128_bitselect(range.step, best.step, better);
  }
  return best;
}

// The largest magnitude of `n` elements, or infinity if one is infinite or NaN.
float largest_magnitude(const float* x, int n) {
  f32x4 most = f32x4_zero(), poison = f32x4_zero();
  for (int i = 0; i < n; i += 4) {
    const f32x4 element = wasm_v128_load(x + i);
    most = wasm_f32x4_max(most, wasm_f32x4_abs(element));
    poison = wasm_f32x4_add(poison, wasm_f32x4_mul(element, f32x4_zero()));  // 0 * inf is NaN
  }
  return f32x4_sum(poison) == 0 ? f32x4_max_lane(most) : __builtin_inff();
}

// The least power of two that brings `magnitude` into E4M3's range.
float scale_for(float magnitude) {
  int exponent = 0;
  frexpf(magnitude / kLargest, &exponent);
  return exponent < -100 ? 0x1p-100f : ldexpf(1, exponent);
}

// ---- half pages -------------------------------------------------------------------------------------------

// Where the parts of a half page lie.
struct Layout {
  int n_ranges;
  size_t codes() const { return kHeaderBytes + size_t(2) * n_ranges; }
  size_t bytes(int head_dim, int bits) const { return codes() + size_t(head_dim) * kPageTokens * bits / 8; }
};

Layout key_layout(int head_dim) { return {head_dim}; }
Layout value_layout(int head_dim) { return {n_groups(head_dim) * kPageTokens}; }

// Codes a channel's 32 tokens, 4 of them with each range.
template <int kBits>
INLAY_INLINE void encode_channel(const float* x, f32x4 to_scaled, const Range ranges[kVectors], uint8_t* out) {
  constexpr float kTop = (1 << kBits) - 1;
  i32x4 codes[kVectors];
  for (int v = 0; v < kVectors; v++) {
    const f32x4 element = wasm_f32x4_mul(wasm_v128_load(x + 4 * v), to_scaled);
    codes[v] = wasm_i32x4_trunc_sat_f32x4(codes_of(element, ranges[v], divisor_of(ranges[v]), kTop));
  }
  pack<kBits>(narrow(codes), out);
}

template <int kBits>
void encode_keys(const float* x, int head_dim, float clip, float scale, uint8_t* out) {
  constexpr float kTop = (1 << kBits) - 1;
  const f32x4 to_scaled = wasm_f32x4_splat(1 / scale);
  uint8_t* const los = out + kHeaderBytes;
  uint8_t* const codes = out + key_layout(head_dim).codes();
  for (int c = 0; c < head_dim; c++, x += kPageTokens) {
    Range ranges[kVectors];
    ranges[0] = best_range<true>(x, kVectors, 4, to_scaled, clip, kTop);
    for (int v = 1; v < kVectors; v++) ranges[v] = ranges[0];
    los[c] = e4m3_byte(ranges[0].lo);
    los[head_dim + c] = e4m3_byte(ranges[0].step);
    encode_channel<kBits>(x, to_scaled, ranges, codes + size_t(c) * kPageTokens * kBits / 8);
  }
}

template <int kBits>
void encode_values(const float* x, int head_dim, float clip, float scale, uint8_t* out) {
  constexpr float kTop = (1 << kBits) - 1;
  const int g = group_channels(head_dim), n = n_groups(head_dim);
  const f32x4 to_scaled = wasm_f32x4_splat(1 / scale);
  uint8_t* const los = out + kHeaderBytes;
  uint8_t* const steps = los + n * kPageTokens;
  uint8_t* codes = out + value_layout(head_dim).codes();
  for (int group = 0; group < n; group++) {
    Range ranges[kVectors];
    for (int v = 0; v < kVectors; v++) {
      ranges[v] = best_range<false>(x + 4 * v, g, kPageTokens, to_scaled, clip, kTop);
      store_e4m3(ranges[v].lo, los + group * kPageTokens + 4 * v);
      store_e4m3(ranges[v].step, steps + group * kPageTokens + 4 * v);
    }
    for (int c = 0; c < g; c++, x += kPageTokens, codes += kPageTokens * kBits / 8)
      encode_channel<kBits>(x, to_scaled, ranges, codes);
  }
}

float scale_of(const uint8_t* half) {
  float scale = 0;
  memcpy(&scale, half, sizeof scale);
  return scale;
}

// Four parameters, with their scale.
INLAY_INLINE f32x4 load_parameters(const uint8_t* p, float scale) {
  return wasm_f32x4_mul(load_e4m3(p), wasm_f32x4_splat(scale));
}

// Calls use(channel, codes, lo, step) for every channel of K; lo and step are vectors of one number.
template <int kBits, class F>
INLAY_INLINE void for_each_key_channel(const uint8_t* half, int head_dim, const F& use) {
  const float scale = scale_of(half);
  const uint8_t* const los = half + kHeaderBytes;
  const uint8_t* codes = half + key_layout(head_dim).codes();
  for (int c = 0; c < head_dim; c += 4) {
    alignas(16) float lo[4], step[4];
    wasm_v128_store(lo, load_parameters(los + c, scale));
    wasm_v128_store(step, load_parameters(los + head_dim + c, scale));
    for (int i = 0; i < 4; i++, codes += kPageTokens * kBits / 8)
      use(c + i, codes, wasm_f32x4_splat(lo[i]), wasm_f32x4_splat(step[i]));
  }
}

// Calls use(channel, codes, los, steps) for every channel of V; the ranges are those of kCount vectors from `first` on.
template <int kBits, int kCount, class F>
INLAY_INLINE void for_each_value_channel(const uint8_t* half, int head_dim, int first, const F& use) {
  const float scale = scale_of(half);
  const int g = group_channels(head_dim), n = n_groups(head_dim);
  const uint8_t* const los = half + kHeaderBytes;
  const uint8_t* const steps = los + n * kPageTokens;
  const uint8_t* codes = half + value_layout(head_dim).codes();
  for (int group = 0; group < n; group++) {
    f32x4 lo[kCount], step[kCount];
    for (int v = 0; v < kCount; v++) {
      const int at = group * kPageTokens + 4 * (first + v);
      lo[v] = load_parameters(los + at, scale);
      step[v] = load_parameters(steps + at, scale);
    }
    for (int c = 0; c < g; c++, codes += kPageTokens * kBits / 8) use(group * g + c, codes, lo, step);
  }
}

// What codes stand for. Not fused: a page has the same elements in every build and on every machine.
INLAY_INLINE f32x4 element_of(f32x4 code, f32x4 lo, f32x4 step) { return wasm_f32x4_add(wasm_f32x4_mul(code, step), lo); }

template <int kBits>
void decode_all_keys(const uint8_t* half, int head_dim, float* out) {
  for_each_key_channel<kBits>(half, head_dim, [&](int channel, const uint8_t* codes, f32x4 lo, f32x4 step) {
    f32x4 elements[kVectors];
    widen(unpack<kBits>(codes), elements);
    for (int v = 0; v < kVectors; v++)
      wasm_v128_store(out + channel * kPageTokens + 4 * v, element_of(elements[v], lo, step));
  });
}

// Columns of a 4 x 4 block become rows.
INLAY_INLINE void transpose_block(f32x4 rows[4]) {
  const f32x4 a = wasm_i32x4_shuffle(rows[0], rows[1], 0, 4, 1, 5), b = wasm_i32x4_shuffle(rows[2], rows[3], 0, 4, 1, 5);
  const f32x4 c = wasm_i32x4_shuffle(rows[0], rows[1], 2, 6, 3, 7), d = wasm_i32x4_shuffle(rows[2], rows[3], 2, 6, 3, 7);
  rows[0] = wasm_i64x2_shuffle(a, b, 0, 2);
  rows[1] = wasm_i64x2_shuffle(a, b, 1, 3);
  rows[2] = wasm_i64x2_shuffle(c, d, 0, 2);
  rows[3] = wasm_i64x2_shuffle(c, d, 1, 3);
}

// Four channels of kCount * 4 tokens, (4, kCount vectors), as rows of `out`, (tokens, head_dim).
template <int kCount>
INLAY_INLINE void store_rows(const f32x4 block[4][kCount], int head_dim, float* out) {
  for (int v = 0; v < kCount; v++) {
    f32x4 rows[4] = {block[0][v], block[1][v], block[2][v], block[3][v]};
    transpose_block(rows);
    for (int i = 0; i < 4; i++) wasm_v128_store(out + (4 * v + i) * head_dim, rows[i]);
  }
}

template <int kBits>
void decode_all_values(const uint8_t* half, int head_dim, float* out) {
  f32x4 block[4][kVectors];
  const auto use = [&](int channel, const uint8_t* codes, const f32x4* lo, const f32x4* step) {
    f32x4* const elements = block[channel % 4];
    widen(unpack<kBits>(codes), elements);
    for (int v = 0; v < kVectors; v++) elements[v] = element_of(elements[v], lo[v], step[v]);
    if (channel % 4 == 3) store_rows<kVectors>(block, head_dim, out + channel - 3);
  };
  for_each_value_channel<kBits, kVectors>(half, head_dim, 0, use);
}

// ---- eight of the 32 tokens -------------------------------------------------------------------------------

// More octets than this are decoded as fast all at once.
constexpr int kMostOctets = 2;

// Codes of tokens 8 * octet .. 8 * octet + 7 of a channel, as f32.
template <int kBits>
INLAY_INLINE void unpack_octet(const uint8_t* p, int octet, f32x4 out[2]) {
  i8x16 codes;
  if constexpr (kBits == 8) codes = wasm_v128_load64_zero(p + 8 * octet);
  else if constexpr (kBits == 4)
    codes = wasm_v128_and(wasm_u8x16_shr(wasm_v128_load64_zero(p + 8 * (octet & 1)), 4 * (octet >> 1)), wasm_i8x16_const_splat(15));
  else codes = wasm_v128_and(wasm_u8x16_shr(wasm_v128_load64_zero(p), 2 * octet), wasm_i8x16_const_splat(3));
  const i16x8 wide = wasm_u16x8_extend_low_u8x16(codes);
  out[0] = wasm_f32x4_convert_i32x4(wasm_u32x4_extend_low_u16x8(wide));
  out[1] = wasm_f32x4_convert_i32x4(wasm_u32x4_extend_high_u16x8(wide));
}

template <int kBits>
void decode_key_octet(const uint8_t* half, int head_dim, int octet, float* out) {
  for_each_key_channel<kBits>(half, head_dim, [&](int channel, const uint8_t* codes, f32x4 lo, f32x4 step) {
    f32x4 elements[2];
    unpack_octet<kBits>(codes, octet, elements);
    for (int v = 0; v < 2; v++)
      wasm_v128_store(out + channel * kPageTokens + 8 * octet + 4 * v, element_of(elements[v], lo, step));
  });
}

template <int kBits>
void decode_value_octet(const uint8_t* half, int head_dim, int octet, float* out) {
  f32x4 block[4][2];
  const auto use = [&](int channel, const uint8_t* codes, const f32x4* lo, const f32x4* step) {
    f32x4* const elements = block[channel % 4];
    unpack_octet<kBits>(codes, octet, elements);
    for (int v = 0; v < 2; v++) elements[v] = element_of(elements[v], lo[v], step[v]);
    if (channel % 4 == 3) store_rows<2>(block, head_dim, out + 8 * octet * head_dim + channel - 3);
  };
  for_each_value_channel<kBits, 2>(half, head_dim, 2 * octet, use);
}

// ---- any number of bits -----------------------------------------------------------------------------------

// Calls f with the bits as a compile-time constant.
template <class F>
INLAY_INLINE void with_bits(int bits, const F& f) {
  switch (bits) {
    case 8: return f(std::integral_constant<int, 8>());
    case 4: return f(std::integral_constant<int, 4>());
    default: return f(std::integral_constant<int, 2>());
  }
}

// Writes the header; returns the scale, or 0 if an element is infinite or NaN.
float begin_half(const float* x, int head_dim, uint8_t* out) {
  const float most = largest_magnitude(x, head_dim * kPageTokens);
  if (most == __builtin_inff()) return 0;
  const float scale = scale_for(most);
  memset(out, 0, kHeaderBytes);
  memcpy(out, &scale, sizeof scale);
  return scale;
}

}  // namespace

int group_channels(int head_dim) {
  for (int g = 64; g > 8; g -= 8)
    if (head_dim % g == 0) return g;
  return 8;
}

size_t key_half_bytes(int head_dim, int bits) { return key_layout(head_dim).bytes(head_dim, bits); }
size_t value_half_bytes(int head_dim, int bits) { return value_layout(head_dim).bytes(head_dim, bits); }

bool encode_key_half(const float* x, int head_dim, int bits, float clip, uint8_t* out) {
  const float scale = begin_half(x, head_dim, out);
  if (scale == 0) return false;
  with_bits(bits, [&](auto constant) { encode_keys<constant>(x, head_dim, clip, scale, out); });
  return true;
}

bool encode_value_half(const float* x, int head_dim, int bits, float clip, uint8_t* out) {
  const float scale = begin_half(x, head_dim, out);
  if (scale == 0) return false;
  with_bits(bits, [&](auto constant) { encode_values<constant>(x, head_dim, clip, scale, out); });
  return true;
}

void decode_key_half(const uint8_t* half, int head_dim, int bits, int from, int to, float* out) {
  with_bits(bits, [&](auto constant) {
    if (to - from > 8 * kMostOctets) return decode_all_keys<constant>(half, head_dim, out);
    for (int octet = from / 8; octet < to / 8; octet++) decode_key_octet<constant>(half, head_dim, octet, out);
  });
}

void decode_value_half(const uint8_t* half, int head_dim, int bits, int from, int to, float* out) {
  with_bits(bits, [&](auto constant) {
    if (to - from > 8 * kMostOctets) return decode_all_values<constant>(half, head_dim, out);
    for (int octet = from / 8; octet < to / 8; octet++) decode_value_octet<constant>(half, head_dim, octet, out);
  });
}

void transpose(const float* x, int n_rows, int n_columns, float* out) {
  for (int r = 0; r < n_rows; r += 4)
    for (int c = 0; c < n_columns; c += 4) {
      f32x4 rows[4];
      for (int i = 0; i < 4; i++) rows[i] = wasm_v128_load(x + (r + i) * n_columns + c);
      transpose_block(rows);
      for (int i = 0; i < 4; i++) wasm_v128_store(out + (c + i) * n_rows + r, rows[i]);
    }
}
