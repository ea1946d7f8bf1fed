// The inner loops of the quantized matmul.
//
// Two families, chosen at compile time per format:
//
//   narrow  int8 activations x unsigned quants below 64, i16x8.relaxed_dot_i8x16_i7x16: 16 products an
//           instruction, summed in 16 bits for as many vectors as cannot overflow, then widened once.
//           Only in the relaxed build.
//   wide    both sides 16 bit, i32x4.dot_i16x8: 8 products an instruction. In the plain build for all formats, in
//           the relaxed build for signed quants (Q8_0, IQ4_NL), whose 8 bits do not fit the 7-bit operand.
//
// In both, a vector holds four rows, so a lane of the accumulator is one row, and each step of 32 columns ends with
//   acc + (dot - offset * sum) * (d_weight * d_activation)          exact integers, then unfused: block by block
//                                                                    ggml's order and roundings, so that a Q8_0 model's
//                                                                    activations round to the same integers there and here
//   acc + (dot * d_weight + min_weight * sum) * d_activation         formats with a minimum
// where sum is that of the activations' integers.
#pragma once

#include "activations.h"
#include "formats.h"

template <class F>
constexpr bool is_narrow() {
#if INLAY_RELAXED
  return !F::kSigned;
#else
  return false;
#endif
}

// Vectors of 4 columns that can be added up in 16 bits: each adds at most 2 * maxQ * 127 to a lane.
constexpr int vectors_before_widening(int max_q) { return max_q <= 15 ? 8 : max_q <= 31 ? 4 : 2; }

// Sum of products of kVectors vectors as i32 per row.  q: 4 rows x 4 columns a vector; x: 4 times 4 columns a vector.
// Vectors i and i + n/2 come together, because a nibble format unpacks them from the same bytes; sums are added up as a
// tree, because a core that is shared with another thread looks ahead too little to hide a chain of eight.
template <int kWiden, int kVectors>
INLAY_INLINE i32x4 dot_narrow(const i8x16* q, const int8_t* x) {
#if INLAY_RELAXED
  constexpr int kHalf = kVectors / 2;
  constexpr int kRun = kWiden / 2 < kHalf ? kWiden / 2 : kHalf;  // pairs of vectors in one 16-bit sum: 1, 2 or 4
  constexpr int kSums = kHalf / kRun;
  i16x8 pairs[kHalf];
  for (int i = 0; i < kHalf; i++)
    pairs[i] = wasm_i16x8_add(wasm_i16x8_relaxed_dot_i8x16_i7x16(wasm_v128_load(x + 16 * i), q[i]),
                              wasm_i16x8_relaxed_dot_i8x16_i7x16(wasm_v128_load(x + 16 * (i + kHalf)), q[i + kHalf]));
  i32x4 sums[kSums];
  for (int s = 0; s < kSums; s++) {
    const i16x8* p = pairs + s * kRun;
    i16x8 sum = kRun == 1 ? p[0] : wasm_i16x8_add(p[0], p[1]);
    if (kRun == 4) sum = wasm_i16x8_add(sum, wasm_i16x8_add(p[2], p[3]));
    sums[s] = wasm_i32x4_extadd_pairwise_i16x8(sum);
  }
  i32x4 total = sums[0];
  for (int s = 1; s < kSums; s++) total = wasm_i32x4_add(total, sums[s]);
  return total;
#else
  (void)q, (void)x;
  return wasm_i32x4_const_splat(0);
#endif
}

// Splits one vector of 4 rows x 4 columns into columns 0, 2 and columns 1, 3, 16 bits each.
template <bool kSigned>
INLAY_INLINE void widen(i8x16 q, i16x8* even, i16x8* odd) {
  *even = kSigned ? wasm_i16x8_shr(wasm_i16x8_shl(q, 8), 8) : wasm_v128_and(q, simd_constants.low_bytes);
  *odd = kSigned ? wasm_i16x8_shr(q, 8) : wasm_u16x8_shr(q, 8);
}

constexpr int log2_of(int power) { return power <= 1 ? 0 : 1 + log2_of(power / 2); }

// What the step of one scale needs of the activations: splats of d, and of the sum of the integers if F asks for it.
struct StepInput {
  f32x4 d;
  i32x4 sum;  // times kOffset when F has an offset
};

// `sums`: [3][T], from the token's first.
template <class F, int T>
INLAY_INLINE StepInput step_input(const float* d, const int32_t* sums, int scale) {
  StepInput in = {f32x4_load_splat(d), wasm_i32x4_const_splat(0)};
  if constexpr (F::kHasMin || F::kOffset > 0) {
    in.sum = wasm_v128_load32_splat(sums + (F::kScales == 2 ? scale : 2) * T);
    if constexpr (F::kOffset > 0) in.sum = wasm_i32x4_shl(in.sum, log2_of(F::kOffset));
  }
  return in;
}

// acc after one step: see the head of this file.
template <class F>
INLAY_INLINE f32x4 add_step(f32x4 acc, i32x4 dot, f32x4 d_weight, f32x4 min, const StepInput& in) {
  if constexpr (F::kHasMin) {
    const f32x4 sum = wasm_f32x4_convert_i32x4(in.sum);
    const f32x4 scaled = wasm_f32x4_mul(wasm_f32x4_convert_i32x4(dot), d_weight);
    return f32x4_madd(f32x4_madd(min, sum, scaled), in.d, acc);
  } else {
    if constexpr (F::kOffset > 0) dot = wasm_i32x4_sub(dot, in.sum);
    return wasm_f32x4_add(acc, wasm_f32x4_mul(wasm_f32x4_convert_i32x4(dot), wasm_f32x4_mul(d_weight, in.d)));
  }
}

// ---- one token --------------------------------------------------------------------------------------------

// Dot products of one row group's step with one token: dots[s], one row a lane.
template <class F>
INLAY_INLINE void gemv_step(const i8x16 q[8], const int8_t* narrow, const int16_t* wide, i32x4 dots[F::kScales]) {
  constexpr int kVectors = 8 / F::kScales;
  for (int s = 0; s < F::kScales; s++) {
    if constexpr (is_narrow<F>()) {
      dots[s] = dot_narrow<vectors_before_widening(F::kMaxQ), kVectors>(q + kVectors * s, narrow + 16 * kVectors * s);
    } else {
      i32x4 sums[2] = {};
      for (int i = 0; i < kVectors; i++) {
        i16x8 even, odd;
        widen<F::kSigned>(q[s * kVectors + i], &even, &odd);
        const int16_t* x = wide + 16 * (s * kVectors + i);
        const i32x4 sum = wasm_i32x4_add(wasm_i32x4_dot_i16x8(even, wasm_v128_load(x)),
                                         wasm_i32x4_dot_i16x8(odd, wasm_v128_load(x + 8)));
        sums[i % 2] = i < 2 ? sum : wasm_i32x4_add(sums[i % 2], sum);
      }
      dots[s] = wasm_i32x4_add(sums[0], sums[1]);
    }
  }
}

// Dot products of the four rows of a group with one token.
template <class F>
INLAY_INLINE f32x4 gemv_group(const uint8_t* weights, const Activations& a) {
  constexpr int kSteps = F::kColumns / 32;
  f32x4 acc = f32x4_zero();
  const float* dx = a.d;
  const int32_t* sums = a.sums;
  const int8_t* narrow = a.narrow;
  const int16_t* wide = a.wide;
  const int units = a.cols / F::kColumns;
  for (int u = 0; u < units; u++, weights += F::kBytes) {
    f32x4 d[kSteps * F::kScales], m[kSteps * F::kScales];
    F::scales(weights, d, m);
    for (int step = 0; step < kSteps; step++, dx += 1, sums += 3, narrow += 128, wide += 128) {
      i8x16 q[8];
      i32x4 dots[F::kScales];
      F::quants(weights, step, q);
      gemv_step<F>(q, narrow, wide, dots);
      for (int s = 0; s < F::kScales; s++) {
        const int i = step * F::kScales + s;
        acc = add_step<F>(acc, dots[s], d[i], F::kHasMin ? m[i] : d[i], step_input<F, 1>(dx, sums, s));
      }
    }
  }
  return acc;
}

// ---- many tokens: panels ----------------------------------------------------------------------------------

// Row groups unpacked once and then used for every tile of tokens. Per group and block of 32 columns:
// quants [8][16] bytes (narrow) or [16][8] i16 (wide); scales and mins f32 [kScales][4].
struct Panel {
  uint8_t* quants;
  float* d;
  float* m;
};

template <class F>
constexpr int panel_quant_bytes() {
  return is_narrow<F>() ? 128 : 256;
}

template <class F>
INLAY_INLINE void unpack_group(const uint8_t* weights, int cols, uint8_t* quants, float* d_out, float* m_out) {
  constexpr int kSteps = F::kColumns / 32;
  const int units = cols / F::kColumns;
  for (int u = 0; u < units; u++, weights += F::kBytes) {
    f32x4 d[kSteps * F::kScales], m[kSteps * F::kScales];
    F::scales(weights, d, m);
    for (int i = 0; i < kSteps * F::kScales; i++, d_out += 4, m_out += 4) {
      wasm_v128_store(d_out, d[i]);
      if constexpr (F::kHasMin) wasm_v128_store(m_out, m[i]);
    }
    for (int step = 0; step < kSteps; step++, quants += panel_quant_bytes<F>()) {
      i8x16 q[8];
      F::quants(weights, step, q);
      for (int i = 0; i < 8; i++) {
        if constexpr (is_narrow<F>()) {
          wasm_v128_store(quants + 16 * i, q[i]);
        } else {
          i16x8 even, odd;
          widen<F::kSigned>(q[i], &even, &odd);
          wasm_v128_store(quants + 32 * i, even);
          wasm_v128_store(quants + 32 * i + 16, odd);
        }
      }
    }
  }
}

// kGroups row groups x kTileTokens tokens over all columns: out[g][t] = rows 4g..4g+3 of token t.
template <class F, int kGroups>
INLAY_INLINE void multiply_tile(const Panel& panel, int n_blocks, const Activations& a, int tile, f32x4 (*out)[kTileTokens]) {
  constexpr int T = kTileTokens;
  const size_t quant_stride = size_t(n_blocks) * panel_quant_bytes<F>();
  const size_t scale_stride = size_t(n_blocks) * F::kScales * 4;
  const uint8_t* quants = panel.quants;
  const float *d = panel.d, *m = panel.m;
  [[maybe_unused]] const int8_t* narrow = a.narrow + size_t(tile) * n_blocks * 32 * T;
  [[maybe_unused]] const int16_t* wide = a.wide + size_t(tile) * n_blocks * 32 * T;
  const float* dx = a.d + size_t(tile) * n_blocks * T;
  const int32_t* sums = a.sums + size_t(tile) * n_blocks * 3 * T;

  f32x4 acc[kGroups][T];
  for (int g = 0; g < kGroups; g++)
    for (int t = 0; t < T; t++) acc[g][t] = f32x4_zero();

  for (int b = 0; b < n_blocks; b++) {
    for (int s = 0; s < F::kScales; s++) {
      i32x4 dots[kGroups][T];
      if constexpr (is_narrow<F>()) {
#if INLAY_RELAXED
        constexpr int kWiden = vectors_before_widening(F::kMaxQ);
        constexpr int kVectors = 8 / F::kScales;
        for (int from = 0; from < kVectors; from += kWiden) {
          i16x8 sum[kGroups][T];
          for (int i = from; i < from + kWiden && i < kVectors; i++) {
            const int v = s * kVectors + i;
            i8x16 q[kGroups];
            for (int g = 0; g < kGroups; g++) q[g] = wasm_v128_load(quants + g * quant_stride + 16 * v);
            for (int t = 0; t < T; t++) {
              const i8x16 x = wasm_v128_load32_splat(narrow + (v * T + t) * 4);
              for (int g = 0; g < kGroups; g++) {
                const i16x8 dot = wasm_i16x8_relaxed_dot_i8x16_i7x16(x, q[g]);
                sum[g][t] = i == from ? dot : wasm_i16x8_add(sum[g][t], dot);
              }
            }
          }
          for (int g = 0; g < kGroups; g++)
            for (int t = 0; t < T; t++) {
              const i32x4 wide_sum = wasm_i32x4_extadd_pairwise_i16x8(sum[g][t]);
              dots[g][t] = from == 0 ? wide_sum : wasm_i32x4_add(dots[g][t], wide_sum);
            }
        }
#endif
      } else {
        constexpr int kVectors = 16 / F::kScales;
        for (int i = 0; i < kVectors; i++) {
          const int v = s * kVectors + i;
          i16x8 q[kGroups];
          for (int g = 0; g < kGroups; g++) q[g] = wasm_v128_load(quants + g * quant_stride + 16 * v);
          for (int t = 0; t < T; t++) {
            const i16x8 x = wasm_v128_load32_splat(wide + (v * T + t) * 2);
            for (int g = 0; g < kGroups; g++) {
              const i32x4 dot = wasm_i32x4_dot_i16x8(x, q[g]);
              dots[g][t] = i == 0 ? dot : wasm_i32x4_add(dots[g][t], dot);
            }
          }
        }
      }
      f32x4 ds[kGroups], ms[kGroups] = {};
      for (int g = 0; g < kGroups; g++) {
        ds[g] = wasm_v128_load(d + g * scale_stride + 4 * s);
        if constexpr (F::kHasMin) ms[g] = wasm_v128_load(m + g * scale_stride + 4 * s);
      }
      for (int t = 0; t < T; t++) {
        const StepInput in = step_input<F, T>(dx + t, sums + t, s);
        for (int g = 0; g < kGroups; g++) acc[g][t] = add_step<F>(acc[g][t], dots[g][t], ds[g], ms[g], in);
      }
    }
    quants += panel_quant_bytes<F>();
    d += 4 * F::kScales;
    m += 4 * F::kScales;
    narrow += 32 * T;
    wide += 32 * T;
    dx += T;
    sums += 3 * T;
  }
  for (int g = 0; g < kGroups; g++)
    for (int t = 0; t < T; t++) out[g][t] = acc[g][t];
}
