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
//   acc += dot * d_weight * d_activation + min_weight * sum_activation.
// Without mins the step is written acc + dot * (d_weight * d_activation), unfused: block by block the order and the
// roundings of ggml's scalar code, so that a Q8_0 model's activations round to the same integers there and here.
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

// Sum of products of `n` vectors as i32 per row.  q: n vectors of 4 rows x 4 columns; x: n x 4 bytes, `stride` apart.
template <int kWiden>
INLAY_INLINE i32x4 dot_narrow(const i8x16* q, const int8_t* x, int stride, int n) {
#if INLAY_RELAXED
  i32x4 total = wasm_i32x4_const_splat(0);
  for (int from = 0; from < n; from += kWiden) {
    i16x8 sum = wasm_i16x8_relaxed_dot_i8x16_i7x16(wasm_v128_load32_splat(x + from * stride), q[from]);
    for (int i = from + 1; i < n && i < from + kWiden; i++)
      sum = wasm_i16x8_add(sum, wasm_i16x8_relaxed_dot_i8x16_i7x16(wasm_v128_load32_splat(x + i * stride), q[i]));
    const i32x4 wide = wasm_i32x4_extadd_pairwise_i16x8(sum);
    total = from == 0 ? wide : wasm_i32x4_add(total, wide);
  }
  return total;
#else
  (void)q, (void)x, (void)stride, (void)n;
  return wasm_i32x4_const_splat(0);
#endif
}

// Splits one vector of 4 rows x 4 columns into two of 4 rows x 2 columns, 16 bits each.
template <bool kSigned>
INLAY_INLINE void widen(i8x16 q, i16x8* first, i16x8* second) {
  const i8x16 pairs = wasm_i8x16_shuffle(q, q, 0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
  *first = kSigned ? wasm_i16x8_extend_low_i8x16(pairs) : wasm_u16x8_extend_low_u8x16(pairs);
  *second = kSigned ? wasm_i16x8_extend_high_i8x16(pairs) : wasm_u16x8_extend_high_u8x16(pairs);
}

// acc after one step: see the head of this file.
template <class F>
INLAY_INLINE f32x4 add_step(f32x4 acc, i32x4 dot, f32x4 d_weight, f32x4 d_activation, f32x4 min, f32x4 sum) {
  const f32x4 product = wasm_f32x4_convert_i32x4(dot);
  if constexpr (F::kHasMin) {
    return f32x4_madd(min, sum, f32x4_madd(wasm_f32x4_mul(product, d_weight), d_activation, acc));
  } else {
    return wasm_f32x4_add(acc, wasm_f32x4_mul(product, wasm_f32x4_mul(d_weight, d_activation)));
  }
}

// ---- one token --------------------------------------------------------------------------------------------

// Dot products of kGroups neighbouring row groups with one token: out[g] = rows 4g..4g+3.
template <class F, int kGroups>
INLAY_INLINE void gemv_groups(const uint8_t* weights, size_t group_bytes, const Activations& a, f32x4* out) {
  constexpr int kSteps = F::kColumns / 32;
  f32x4 acc[kGroups];
  for (int g = 0; g < kGroups; g++) acc[g] = f32x4_zero();
  const float* dx = a.d;
  const float* sums = a.sum16;
  [[maybe_unused]] const int8_t* narrow = a.narrow;
  [[maybe_unused]] const int16_t* wide = a.wide;
  const int units = a.cols / F::kColumns;
  for (int u = 0; u < units; u++, weights += F::kBytes) {
    f32x4 d[kGroups][kSteps * F::kScales], m[kGroups][kSteps * F::kScales];
    for (int g = 0; g < kGroups; g++) F::scales(weights + g * group_bytes, d[g], m[g]);
    for (int step = 0; step < kSteps; step++) {
      const f32x4 dx4 = f32x4_load_splat(dx);
      for (int g = 0; g < kGroups; g++) {
        i8x16 q[8];
        F::quants(weights + g * group_bytes, step, q);
        i32x4 dots[F::kScales];
        if constexpr (is_narrow<F>()) {
          constexpr int kWiden = vectors_before_widening(F::kMaxQ);
          for (int s = 0; s < F::kScales; s++)
            dots[s] = dot_narrow<kWiden>(q + 4 * s, narrow + 16 * s, 4, 8 / F::kScales);
        } else {
          for (int s = 0; s < F::kScales; s++) {
            // Rows (0, 1) and (2, 3) apart; two lanes a row, added at the end.
            i32x4 low = wasm_i32x4_const_splat(0), high = wasm_i32x4_const_splat(0);
            for (int i = s * 8 / F::kScales; i < (s + 1) * 8 / F::kScales; i++) {
              const i16x8 x = wasm_v128_load64_splat(wide + 4 * i);
              const i16x8 q_low = F::kSigned ? wasm_i16x8_extend_low_i8x16(q[i]) : wasm_u16x8_extend_low_u8x16(q[i]);
              const i16x8 q_high = F::kSigned ? wasm_i16x8_extend_high_i8x16(q[i]) : wasm_u16x8_extend_high_u8x16(q[i]);
              low = wasm_i32x4_add(low, wasm_i32x4_dot_i16x8(q_low, x));
              high = wasm_i32x4_add(high, wasm_i32x4_dot_i16x8(q_high, x));
            }
            dots[s] = wasm_i32x4_add(wasm_i32x4_shuffle(low, high, 0, 2, 4, 6), wasm_i32x4_shuffle(low, high, 1, 3, 5, 7));
          }
        }
        for (int s = 0; s < F::kScales; s++) {
          f32x4 min = f32x4_zero(), sum = f32x4_zero();
          if constexpr (F::kHasMin) {
            min = m[g][step * F::kScales + s];
            sum = F::kScales == 2 ? f32x4_load_splat(sums + s)
                                  : wasm_f32x4_add(f32x4_load_splat(sums), f32x4_load_splat(sums + 1));
          }
          acc[g] = add_step<F>(acc[g], dots[s], d[g][step * F::kScales + s], dx4, min, sum);
        }
      }
      dx += 1;
      sums += 2;
      narrow += 32;
      wide += 32;
    }
  }
  for (int g = 0; g < kGroups; g++) out[g] = acc[g];
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
          i16x8 first, second;
          widen<F::kSigned>(q[i], &first, &second);
          wasm_v128_store(quants + 32 * i, first);
          wasm_v128_store(quants + 32 * i + 16, second);
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
  const float* sums = a.sum16 + size_t(tile) * n_blocks * 2 * T;

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
        const f32x4 dx4 = f32x4_load_splat(dx + t);
        f32x4 sum4 = f32x4_zero();
        if constexpr (F::kHasMin) {
          sum4 = F::kScales == 2 ? f32x4_load_splat(sums + s * T + t)
                                 : wasm_f32x4_add(f32x4_load_splat(sums + t), f32x4_load_splat(sums + T + t));
        }
        for (int g = 0; g < kGroups; g++) acc[g][t] = add_step<F>(acc[g][t], dots[g][t], ds[g], dx4, ms[g], sum4);
      }
    }
    quants += panel_quant_bytes<F>();
    d += 4 * F::kScales;
    m += 4 * F::kScales;
    narrow += 32 * T;
    wide += 32 * T;
    dx += T;
    sums += 2 * T;
  }
  for (int g = 0; g < kGroups; g++)
    for (int t = 0; t < T; t++) out[g][t] = acc[g][t];
}
