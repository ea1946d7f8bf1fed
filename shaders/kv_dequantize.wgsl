// kv_dequantize: writes what quantized pages stand for into hot pages, K and V of every KV head of one layer.
//   jobs        (n_jobs, 2)                             cold slot, hot slot
//   cold_pages  (cold slots, n_kv_heads, 2)             halves; see kv_quantize.wgsl
//   k_pages     (slots, n_kv_heads, head_dim, 32)       f32, or f16 pairs of neighbouring tokens
//   v_pages     (slots, n_kv_heads, 32, head_dim)       f32, or f16 pairs of neighbouring dims
// After page_codes (kernels.ts joins them). One invocation decodes 4 channels of 4 tokens, which no other's words hold.
// Dispatch (2 * n_kv_heads * head_dim * 2 / wg_size rounded up, n_jobs).  Reference: test/reference/page-codec.ts

override wg_size: u32 = 64;

struct Params { n_kv_heads: u32 }

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> jobs: array<vec2u>;
@group(0) @binding(2) var<storage, read> cold_pages: array<u32>;
@group(0) @binding(3) var<storage, read_write> k_pages: array<u32>;
@group(0) @binding(4) var<storage, read_write> v_pages: array<u32>;

/// Writes 4 neighbouring elements of a hot page from element `at` on.
fn store(is_k: bool, at: u32, x: vec4f) {
  var words = bitcast<vec4u>(x);
  if (page_f16) {
    let y = clamp(x, vec4f(-65504.0), vec4f(65504.0));
    words = vec4u(pack2x16float(y.xy), pack2x16float(y.zw), 0u, 0u);
  }
  let word = select(at, at / 2u, page_f16);
  for (var i = 0u; i < select(4u, 2u, page_f16); i++) {
    if (is_k) { k_pages[word + i] = words[i]; } else { v_pages[word + i] = words[i]; }
  }
}

@compute @workgroup_size(wg_size)
fn main(@builtin(global_invocation_id) id: vec3u) {
  let job = jobs[id.y];
  let x = id.x % 8u;
  let c = id.x / 8u * 4u % head_dim;
  let half = id.x / (2u * head_dim);  // K of head 0, V of head 0, K of head 1...
  if (half >= 2u * params.n_kv_heads) { return; }
  let kv_head = half / 2u;
  let is_k = half % 2u == 0u;
  let page = (job.x * params.n_kv_heads + kv_head) * cold_words;
  let at = (job.y * params.n_kv_heads + kv_head) * 32u * head_dim;
  if (is_k) {
    let channels = cold_keys(page, c, x);
    for (var i = 0u; i < 4u; i++) { store(true, at + (c + i) * 32u + 4u * x, channels[i]); }
  } else {
    let rows = transpose(cold_values(page, c, x));
    for (var i = 0u; i < 4u; i++) { store(false, at + (4u * x + i) * head_dim + c, rows[i]); }
  }
}
