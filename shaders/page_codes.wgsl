// page_codes: what quantized pages stand for. A part: it precedes shaders that read `cold_pages` (kernels.ts joins them).
//   cold_pages  (cold slots, n_kv_heads, 2)             quantized K and V halves; see kv_quantize.wgsl

override head_dim: u32 = 64;      // multiple of 8, at most 256
override page_f16: bool = true;   // false: f32 pages
override cold_bits: u32 = 0;      // 8, 4 or 2 bits a code; 0: no page is quantized
override range_channels: u32 = 8; // channels of a quantized V that share a token's range
override value_ranges: u32 = head_dim / range_channels * 32;
override key_words: u32 = 4 + head_dim / 2 + head_dim * cold_bits;
override value_words: u32 = 4 + value_ranges / 2 + head_dim * cold_bits;
override cold_words: u32 = key_words + value_words;               // of a page of one KV head
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

/// The codes at word `at` of tokens 4x..4x+3.
fn codes(at: u32, x: u32) -> vec4f {
  let shift = vec4u(cold_bits * (x / code_words)) + vec4u(0u, 8u, 16u, 24u);
  return vec4f((vec4u(cold_pages[at + x % code_words]) >> shift) & vec4u((1u << cold_bits) - 1u));
}

/// Channels c..c+3 (columns) of K of tokens 4x..4x+3, of the page at word `page`; c is a multiple of 4.
fn cold_keys(page: u32, c: u32, x: u32) -> mat4x4f {
  let scale = bitcast<f32>(cold_pages[page]);
  let range_at = page + 4u + c / 4u;
  let lo = e4m3(cold_pages[range_at]) * scale;
  let step = e4m3(cold_pages[range_at + head_dim / 4u]) * scale;
  let at = page + 4u + head_dim / 2u + c * cold_bits;
  return mat4x4f(
    lo.x + step.x * codes(at, x),
    lo.y + step.y * codes(at + cold_bits, x),
    lo.z + step.z * codes(at + 2u * cold_bits, x),
    lo.w + step.w * codes(at + 3u * cold_bits, x));
}

/// The same of V.
fn cold_values(page: u32, c: u32, x: u32) -> mat4x4f {
  let half = page + key_words;
  let scale = bitcast<f32>(cold_pages[half]);
  let range_at = half + 4u + c / range_channels * 8u + x;
  let lo = e4m3(cold_pages[range_at]) * scale;
  let step = e4m3(cold_pages[range_at + value_ranges / 4u]) * scale;
  let at = half + 4u + value_ranges / 2u + c * cold_bits;
  return mat4x4f(
    lo + step * codes(at, x),
    lo + step * codes(at + cold_bits, x),
    lo + step * codes(at + 2u * cold_bits, x),
    lo + step * codes(at + 3u * cold_bits, x));
}
