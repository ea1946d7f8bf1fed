// Quantized pages: 8, 4 or 2 bits per element, with a range for each channel of K and for each token and group of channels of V.
//
// Values are coded after SKVQ (Duanmu et al. 2024, arXiv:2405.06219): asymmetric codes per token and group of channels, the
// range slightly clipped, its parameters in FP8 E4M3 and rounded before the codes are computed. Keys are coded per channel,
// as in KIVI (Liu et al. 2024, arXiv:2402.02750), over the page's 32 tokens: keys have channels that are large in every
// token, and at 2 bits a range over channels is theirs alone. Ours: groups are equal and stay inside a head; a power of two per
// half page scales the FP8 parameters; they are rounded outward, so that nothing but clipping clips; and how much is cut off
// both ends of a range is searched for each one instead of calibrated.
//
// A half page is K or V of 32 tokens of one layer and KV head, head_dim channels, of V in groups of g = group_channels():
//
//     f32  scale, then 12 bytes of zeros
//     u8   lo    K: (head_dim);  V: (head_dim / g, 32)   E4M3, times scale
//     u8   step  likewise
//     u8   codes (head_dim, 32 * bits / 8)   32 tokens of a channel; how they are packed is in page_codec.cpp
//
//     element[c][t] = (lo[range] + step[range] * code[c][t]) * scale,   range = c in K, (c / g, t) in V
//
// A page is its K half, then its V half. The codes of both lie along tokens, although V of an unquantized page does not.
#pragma once

#include <cstddef>
#include <cstdint>

// Channels of V that share a range: the largest divisor of head_dim that is a multiple of 8 and at most 64.
int group_channels(int head_dim);

// Bytes of a half page; multiples of 16. `bits`: 8, 4 or 2.
size_t key_half_bytes(int head_dim, int bits);
size_t value_half_bytes(int head_dim, int bits);

// Codes a half page. x: (head_dim, 32), finite, below 2^127. `clip`: the least part of a range that is kept; of 1 and four
// below it, evenly down to `clip`, the one with the least squared error is taken.
// Returns false, with `out` undefined, if an element is infinite or NaN.
bool encode_key_half(const float* x, int head_dim, int bits, float clip, uint8_t* out);
bool encode_value_half(const float* x, int head_dim, int bits, float clip, uint8_t* out);

// The half page as attention reads it: K as (head_dim, 32), V as (32, head_dim). For tokens [from, to), multiples of 8: up to
// 16 of them are decoded faster than all, of more the others may be written too.
void decode_key_half(const uint8_t* half, int head_dim, int bits, int from, int to, float* out);
void decode_value_half(const uint8_t* half, int head_dim, int bits, int from, int to, float* out);

// out (n_columns, n_rows) = x (n_rows, n_columns)ᵀ. Both sizes are multiples of 4.
void transpose(const float* x, int n_rows, int n_columns, float* out);
