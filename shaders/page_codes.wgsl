// page_codes: what quantized pages stand for. A part: it precedes shaders that read `cold_pages` (kernels.ts joins them).
//   cold_pages  (cold slots, n_kv_heads, 2)             quantized K and V halves; see kv_quantize.wgsl

override head_dim: u32 = 64;      // multiple of 8, at most 256
override page_f16: bool = true;   // false: f32 pages
override cold_bits: u32 = 0;      // 8, 4 or 2 bits a code; 0: no page is quantized
override range_channels: u32 = 8; // channels of a quantized page that share a range
override range_words: u32 = head_dim / range_channels * 8;        // words of one parameter of a half page's ranges
override half_words: u32 = 4 + 2 * range_words + head_dim * cold_bits;
override code_words: u32 = max(cold_bits, 1);                     // words of a channel's codes; never 0, it divides

/// Four E4M3 numbers. Subnormal ones are computed, not shifted into place: GPUs flush what f32 has of them.
fn e4m3(word: u32) -> vec4f {
  let bits = (vec4u(word) >> vec4u(0u, 8u, 16u, 24u)) & vec4u(0xffu);
  let exponent = (bits >> vec4u(3u)) & vec4u(15u);
  let mantissa = bits & vec4u(7u);
  let normal = bitcast<vec4f>(((exponent + 120u) << vec4u(23u)) | (mantissa << vec4u(20u)));
  let magnitude = select(normal, vec4f(mantissa) * 0.001953125, exponent == vec4u(0u));
  return select(magnitude, -magnitude, (bits & vec4u(128u)) != vec4u(0u));
}

/// Channels c..c+3 (columns) of tokens 4x..4x+3 of the quantized half page at word `half`; c is a multiple of 4.
fn cold_matrix(half: u32, c: u32, x: u32) -> mat4x4f {
  let range_at = half + 4u + c / range_channels * 8u + x;
  let scale = bitcast<f32>(cold_pages[half]);
  let lo = e4m3(cold_pages[range_at]) * scale;
  let step = e4m3(cold_pages[range_at + range_words]) * scale;
  let codes_at = half + 4u + 2u * range_words + c * cold_bits + x % code_words;
  let shift = vec4u(cold_bits * (x / code_words)) + vec4u(0u, 8u, 16u, 24u);
  let low = vec4u((1u << cold_bits) - 1u);
  return mat4x4f(
    lo + step * vec4f((vec4u(cold_pages[codes_at]) >> shift) & low),
    lo + step * vec4f((vec4u(cold_pages[codes_at + cold_bits]) >> shift) & low),
    lo + step * vec4f((vec4u(cold_pages[codes_at + 2u * cold_bits]) >> shift) & low),
    lo + step * vec4f((vec4u(cold_pages[codes_at + 3u * cold_bits]) >> shift) & low));
}
