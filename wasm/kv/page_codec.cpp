#include "page_codec.h"

#include <cmath>
#include <cstring>

#include "kernels/attention.h"
#include "simd.h"

namespace {

constexpr int kVectors = kPageTokens / 4;
constexpr int kHeaderBytes = 16;
// E4M3: 4 bits of exponent with bias 7, 3 of mantissa, no infinities.
constexpr float kLargest = 448;
// Clip factors that are tried below 1.
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

struct Ranges {
  f32x4 lo[kVectors], step[kVectors];
};

// The range of 4 tokens, scaled.
struct Range {
  f32x4 lo, step;
};

// `least` and `most` times `clip`, rounded outward.
INLAY_INLINE Range clipped_range(f32x4 least, f32x4 most, float clip, float top) {
  const f32x4 factor = wasm_f32x4_splat(clip);
  const f32x4 lo = e4m3_floor(wasm_f32x4_mul(least, factor));
  const f32x4 width = wasm_f32x4_sub(wasm_f32x4_mul(most, factor), lo);
  return {lo, e4m3_ceil(wasm_f32x4_div(width, wasm_f32x4_splat(top)))};
}

// A step to divide by: a token whose channels are all `lo` has step 0.
INLAY_INLINE f32x4 divisor_of(const Range& range) {
  return wasm_v128_bitselect(wasm_f32x4_const_splat(1), range.step, wasm_f32x4_eq(range.step, f32x4_zero()));
}

// Codes as f32.
INLAY_INLINE f32x4 codes_of(f32x4 x, const Range& range, f32x4 divisor, float top) {
  const f32x4 code = wasm_f32x4_nearest(wasm_f32x4_div(wasm_f32x4_sub(x, range.lo), divisor));
  return wasm_f32x4_min(wasm_f32x4_max(code, f32x4_zero()), wasm_f32x4_splat(top));
}

// Squared error of 4 tokens' channels.  x: (n, 32), unscaled, from the first of the four.
INLAY_INLINE f32x4 squared_error(const float* x, int n, f32x4 to_scaled, const Range& range, float top) {
  const f32x4 divisor = divisor_of(range);
  f32x4 sum = f32x4_zero();
  for (int c = 0; c < n; c++) {
    const f32x4 element = wasm_f32x4_mul(wasm_v128_load(x + c * kPageTokens), to_scaled);
    const f32x4 stands = wasm_f32x4_add(wasm_f32x4_mul(codes_of(element, range, divisor, top), range.step), range.lo);
    const f32x4 error = wasm_f32x4_sub(stands, element);
    sum = wasm_f32x4_add(sum, wasm_f32x4_mul(error, error));
  }
  return sum;
}

// Of the clip factors from 1 down to `clip`, for each of 4 tokens the one with the least squared error; the larger of equals.
INLAY_INLINE Range best_range(const float* x, int n, f32x4 to_scaled, float clip, float top) {
  f32x4 least = wasm_v128_load(x), most = least;
  for (int c = 1; c < n; c++) {
    const f32x4 element = wasm_v128_load(x + c * kPageTokens);
    least = wasm_f32x4_pmin(least, element);
    most = wasm_f32x4_pmax(most, element);
  }
  least = wasm_f32x4_mul(least, to_scaled);
  most = wasm_f32x4_mul(most, to_scaled);
  Range best = clipped_range(least, most, 1, top);
  if (clip == 1) return best;
  f32x4 error = squared_error(x, n, to_scaled, best, top);
  for (int i = 1; i <= kClipSteps; i++) {
    const Range range = clipped_range(least, most, 1 - (1 - clip) * float(i) / kClipSteps, top);
    const f32x4 other = squared_error(x, n, to_scaled, range, top);
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

template <int kBits>
void encode(const float* x, int head_dim, float clip, float scale, uint8_t* out) {
  constexpr float kTop = (1 << kBits) - 1;
  const int g = group_channels(head_dim), n = n_groups(head_dim);
  const f32x4 to_scaled = wasm_f32x4_splat(1 / scale);
  uint8_t* const los = out + kHeaderBytes;
  uint8_t* const steps = los + n * kPageTokens;
  uint8_t* codes_out = steps + n * kPageTokens;
  memset(out, 0, kHeaderBytes);
  memcpy(out, &scale, sizeof scale);
  for (int group = 0; group < n; group++, x += g * kPageTokens) {
    Range ranges[kVectors];
    f32x4 divisors[kVectors];
    for (int v = 0; v < kVectors; v++) {
      ranges[v] = best_range(x + 4 * v, g, to_scaled, clip, kTop);
      divisors[v] = divisor_of(ranges[v]);
      store_e4m3(ranges[v].lo, los + group * kPageTokens + 4 * v);
      store_e4m3(ranges[v].step, steps + group * kPageTokens + 4 * v);
    }
    for (int c = 0; c < g; c++, codes_out += kPageTokens * kBits / 8) {
      i32x4 codes[kVectors];
      for (int v = 0; v < kVectors; v++) {
        const f32x4 element = wasm_f32x4_mul(wasm_v128_load(x + c * kPageTokens + 4 * v), to_scaled);
        codes[v] = wasm_i32x4_trunc_sat_f32x4(codes_of(element, ranges[v], divisors[v], kTop));
      }
      pack<kBits>(narrow(codes), codes_out);
    }
  }
}

// Calls use(channel, elements) with the 32 elements of every channel, as 8 vectors.
template <int kBits, class F>
INLAY_INLINE void for_each_channel(const uint8_t* half, int head_dim, const F& use) {
  float scale = 0;
  memcpy(&scale, half, sizeof scale);
  const int g = group_channels(head_dim), n = n_groups(head_dim);
  const uint8_t* const los = half + kHeaderBytes;
  const uint8_t* const steps = los + n * kPageTokens;
  const uint8_t* codes = steps + n * kPageTokens;
  for (int group = 0; group < n; group++) {
    Ranges ranges;
    for (int v = 0; v < kVectors; v++) {
      const int at = group * kPageTokens + 4 * v;
      ranges.lo[v] = wasm_f32x4_mul(load_e4m3(los + at), wasm_f32x4_splat(scale));
      ranges.step[v] = wasm_f32x4_mul(load_e4m3(steps + at), wasm_f32x4_splat(scale));
    }
    for (int c = 0; c < g; c++, codes += kPageTokens * kBits / 8) {
      f32x4 elements[kVectors];
      widen(unpack<kBits>(codes), elements);
      // Not fused: a page has the same elements in every build and on every machine.
      for (int v = 0; v < kVectors; v++)
        elements[v] = wasm_f32x4_add(wasm_f32x4_mul(elements[v], ranges.step[v]), ranges.lo[v]);
      use(group * g + c, elements);
    }
  }
}

template <int kBits>
void decode_along_channels(const uint8_t* half, int head_dim, float* out) {
  for_each_channel<kBits>(half, head_dim, [&](int channel, const f32x4* elements) {
    for (int v = 0; v < kVectors; v++) wasm_v128_store(out + channel * kPageTokens + 4 * v, elements[v]);
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

template <int kBits>
void decode_along_tokens(const uint8_t* half, int head_dim, float* out) {
  f32x4 block[4][kVectors];
  for_each_channel<kBits>(half, head_dim, [&](int channel, const f32x4* elements) {
    memcpy(block[channel % 4], elements, sizeof block[0]);
    if (channel % 4 < 3) return;
    for (int v = 0; v < kVectors; v++) {
      f32x4 rows[4] = {block[0][v], block[1][v], block[2][v], block[3][v]};
      transpose_block(rows);
      for (int i = 0; i < 4; i++) wasm_v128_store(out + (4 * v + i) * head_dim + channel - 3, rows[i]);
    }
  });
}

// ---- eight of the 32 tokens -------------------------------------------------------------------------------

// More octets than this are decoded as fast all at once.
constexpr int kMostOctets = 2;

// Codes of tokens 8 * octet .. 8 * octet + 7 of a channel, in the low 8 bytes.
template <int kBits>
INLAY_INLINE i8x16 unpack_octet(const uint8_t* p, int octet) {
  if constexpr (kBits == 8) return wasm_v128_load64_zero(p + 8 * octet);
  if constexpr (kBits == 4)
    return wasm_v128_and(wasm_u8x16_shr(wasm_v128_load64_zero(p + 8 * (octet & 1)), 4 * (octet >> 1)), wasm_i8x16_const_splat(15));
  return wasm_v128_and(wasm_u8x16_shr(wasm_v128_load64_zero(p), 2 * octet), wasm_i8x16_const_splat(3));
}

// Calls use(channel, elements) with the octet's elements of every channel, as 2 vectors: the same bits as for_each_channel.
template <int kBits, class F>
INLAY_INLINE void for_each_octet(const uint8_t* half, int head_dim, int octet, const F& use) {
  float scale = 0;
  memcpy(&scale, half, sizeof scale);
  const int g = group_channels(head_dim), n = n_groups(head_dim);
  const uint8_t* const los = half + kHeaderBytes;
  const uint8_t* const steps = los + n * kPageTokens;
  const uint8_t* codes = steps + n * kPageTokens;
  for (int group = 0; group < n; group++) {
    f32x4 lo[2], step[2];
    for (int v = 0; v < 2; v++) {
      const int at = group * kPageTokens + 8 * octet + 4 * v;
      lo[v] = wasm_f32x4_mul(load_e4m3(los + at), wasm_f32x4_splat(scale));
      step[v] = wasm_f32x4_mul(load_e4m3(steps + at), wasm_f32x4_splat(scale));
    }
    for (int c = 0; c < g; c++, codes += kPageTokens * kBits / 8) {
      const i16x8 wide = wasm_u16x8_extend_low_u8x16(unpack_octet<kBits>(codes, octet));
      const f32x4 low = wasm_f32x4_convert_i32x4(wasm_u32x4_extend_low_u16x8(wide));
      const f32x4 high = wasm_f32x4_convert_i32x4(wasm_u32x4_extend_high_u16x8(wide));
      const f32x4 elements[2] = {wasm_f32x4_add(wasm_f32x4_mul(low, step[0]), lo[0]),
                                 wasm_f32x4_add(wasm_f32x4_mul(high, step[1]), lo[1])};
      use(group * g + c, elements);
    }
  }
}

template <int kBits>
void decode_octet_channels(const uint8_t* half, int head_dim, int octet, float* out) {
  for_each_octet<kBits>(half, head_dim, octet, [&](int channel, const f32x4* elements) {
    float* const to = out + channel * kPageTokens + 8 * octet;
    wasm_v128_store(to, elements[0]);
    wasm_v128_store(to + 4, elements[1]);
  });
}

template <int kBits>
void decode_octet_tokens(const uint8_t* half, int head_dim, int octet, float* out) {
  f32x4 block[4][2];
  for_each_octet<kBits>(half, head_dim, octet, [&](int channel, const f32x4* elements) {
    block[channel % 4][0] = elements[0];
    block[channel % 4][1] = elements[1];
    if (channel % 4 < 3) return;
    for (int v = 0; v < 2; v++) {
      f32x4 rows[4] = {block[0][v], block[1][v], block[2][v], block[3][v]};
      transpose_block(rows);
      for (int i = 0; i < 4; i++) wasm_v128_store(out + (8 * octet + 4 * v + i) * head_dim + channel - 3, rows[i]);
    }
  });
}

}  // namespace

int group_channels(int head_dim) {
  for (int g = 64; g > 8; g -= 8)
    if (head_dim % g == 0) return g;
  return 8;
}

size_t quantized_half_bytes(int head_dim, int bits) {
  return kHeaderBytes + size_t(2) * n_groups(head_dim) * kPageTokens + size_t(head_dim) * kPageTokens * bits / 8;
}

bool encode_half(const float* x, int head_dim, int bits, float clip, uint8_t* out) {
  const float most = largest_magnitude(x, head_dim * kPageTokens);
  if (most == __builtin_inff()) return false;
  const float scale = scale_for(most);
  switch (bits) {
    case 8: encode<8>(x, head_dim, clip, scale, out); break;
    case 4: encode<4>(x, head_dim, clip, scale, out); break;
    default: encode<2>(x, head_dim, clip, scale, out); break;
  }
  return true;
}

void decode_channels(const uint8_t* half, int head_dim, int bits, float* out) {
  switch (bits) {
    case 8: return decode_along_channels<8>(half, head_dim, out);
    case 4: return decode_along_channels<4>(half, head_dim, out);
    default: return decode_along_channels<2>(half, head_dim, out);
  }
}

void decode_tokens(const uint8_t* half, int head_dim, int bits, float* out) {
  switch (bits) {
    case 8: return decode_along_tokens<8>(half, head_dim, out);
    case 4: return decode_along_tokens<4>(half, head_dim, out);
    default: return decode_along_tokens<2>(half, head_dim, out);
  }
}

void decode_channels(const uint8_t* half, int head_dim, int bits, int from, int to, float* out) {
  if (to - from > 8 * kMostOctets) return decode_channels(half, head_dim, bits, out);
  for (int octet = from / 8; octet < to / 8; octet++) switch (bits) {
      case 8: decode_octet_channels<8>(half, head_dim, octet, out); break;
      case 4: decode_octet_channels<4>(half, head_dim, octet, out); break;
      default: decode_octet_channels<2>(half, head_dim, octet, out); break;
    }
}

void decode_tokens(const uint8_t* half, int head_dim, int bits, int from, int to, float* out) {
  if (to - from > 8 * kMostOctets) return decode_tokens(half, head_dim, bits, out);
  for (int octet = from / 8; octet < to / 8; octet++) switch (bits) {
      case 8: decode_octet_tokens<8>(half, head_dim, octet, out); break;
      case 4: decode_octet_tokens<4>(half, head_dim, octet, out); break;
      default: decode_octet_tokens<2>(half, head_dim, octet, out); break;
    }
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
