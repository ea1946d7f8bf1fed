// Quantized pages: 8, 4 or 2 bits per element with a range per token and group of channels.
//
// After SKVQ (Duanmu et al. 2024, arXiv:2405.06219): asymmetric codes per token and group, the range slightly clipped,
// its parameters in FP8 E4M3 and rounded before the codes are computed. Ours: groups are equal, stay inside a head, and
// lie along tokens, so that 4 neighbouring tokens are one vector with no shuffles; a power of two per half page scales the
// FP8 parameters; they are rounded outward, so that nothing but the clip factor clips; and that factor, by which both ends
// of a range are multiplied, is searched for each range instead of calibrated.
//
// A half page is K or V of 32 tokens of one layer and KV head, head_dim channels in groups of g = group_channels():
//
//     f32  scale, then 12 bytes of zeros
//     u8   lo    (head_dim / g, 32)   E4M3, times scale
//     u8   step  (head_dim / g, 32)   E4M3, times scale
//     u8   codes (head_dim, 32 * bits / 8)   32 tokens of a channel; how they are packed is in page_codec.cpp
//
//     element[c][t] = (lo[c / g][t] + step[c / g][t] * code[c][t]) * scale
//
// A page is its K half, then its V half. Both lie along tokens, although V of an unquantized page does not.
#pragma once

#include <cstddef>
#include <cstdint>

// Channels that share a range: the largest divisor of head_dim that is a multiple of 8 and at most 64.
int group_channels(int head_dim);

// Bytes of a half page; a multiple of 16. `bits`: 8, 4 or 2.
size_t quantized_half_bytes(int head_dim, int bits);

// Codes a half page. x: (head_dim, 32), finite, below 2^127. `clip`: the least factor that is tried
// for a range; of 1 and four below it, evenly down to `clip`, the one with the least squared error is taken.
// Returns false, with `out` undefined, if an element is infinite or NaN.
bool encode_half(const float* x, int head_dim, int bits, float clip, uint8_t* out);

// The half page as (head_dim, 32): K as attention reads it.
void decode_channels(const uint8_t* half, int head_dim, int bits, float* out);

// The half page as (32, head_dim): V as attention reads it.
void decode_tokens(const uint8_t* half, int head_dim, int bits, float* out);

// The same for tokens [from, to), multiples of 8; up to 16 of them are faster than all, for more the others may be written too.
void decode_channels(const uint8_t* half, int head_dim, int bits, int from, int to, float* out);
void decode_tokens(const uint8_t* half, int head_dim, int bits, int from, int to, float* out);

// out (n_columns, n_rows) = x (n_rows, n_columns)ᵀ. Both sizes are multiples of 4.
void transpose(const float* x, int n_rows, int n_columns, float* out);
