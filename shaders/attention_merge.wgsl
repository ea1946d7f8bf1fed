// attention_merge: joins partial attention results over disjoint sets of keys by log-sum-exp, exactly.
//   partials  (n_partials, n_rows, head_dim)   f32, each normalised over its own keys
//   lse       (n_partials, n_rows)             log2 of the sum of 2^x; -1e30 where nothing was read
//   out       (n_rows, head_dim)               f32; n_rows = n_tokens * n_heads
// out = sum_i 2^(lse_i - M) partial_i / sum_i 2^(lse_i - M), M = max lse_i. A row no partial read gives 0.
// Partials are added in order of their index, so the result does not depend on scheduling.
// Dispatch: n_rows * head_dim / 4 invocations, folded over x and y.
// Reference: test/reference/paged-attention.ts

override head_dim: u32 = 64;  // multiple of 8, at most 256
override wg_size: u32 = 64;
override quads: u32 = head_dim / 4;

struct Params {
  n_rows: u32,
  n_partials: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> partials: array<vec4f>;
@group(0) @binding(2) var<storage, read> lse: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<vec4f>;

@compute @workgroup_size(wg_size)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) grid: vec3u) {
  let i = id.y * grid.x * wg_size + id.x;
  let row = i / quads;
  if (row >= params.n_rows) { return; }

  var most = lse[row];
  for (var p = 1u; p < params.n_partials; p++) { most = max(most, lse[p * params.n_rows + row]); }
  var sum = vec4f(0.0);
  var weight = 0.0;
  for (var p = 0u; p < params.n_partials; p++) {
    let w = exp2(lse[p * params.n_rows + row] - most);
    sum += w * partials[p * params.n_rows * quads + i];
    weight += w;
  }
  out[i] = sum / weight;
}
