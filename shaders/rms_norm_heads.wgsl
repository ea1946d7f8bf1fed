// rms_norm_heads: x = x / sqrt(mean(x^2) + eps) * weight for each head, in place (q and k norm of Qwen3).
//   x       (n_heads, head_dim)   f32; heads of all tokens
//   weight  (head_dim)            f32
// Heads are short: 8 threads share one, 8 heads a workgroup. f32 sums.
// Dispatch: ceil(n_heads / 8) workgroups, folded over x and y.  Reference: test/reference/math.ts

struct Params {
  n_heads: u32,
  head_dim: u32,
  eps: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> weight: array<f32>;
@group(0) @binding(2) var<storage, read_write> x: array<f32>;

var<workgroup> partials: array<f32, 64>;  // (8 heads, 8 threads)

@compute @workgroup_size(8, 8)
fn main(
  @builtin(workgroup_id) wg: vec3u,
  @builtin(num_workgroups) grid: vec3u,
  @builtin(local_invocation_id) thread: vec3u,
) {
  let first_head = (wg.y * grid.x + wg.x) * 8u;
  let head = first_head + thread.y;
  let is_real = head < params.n_heads;
  let at = min(head, params.n_heads - 1u) * params.head_dim;
  var sum = 0.0;
  for (var i = thread.x; i < params.head_dim; i += 8u) { sum += x[at + i] * x[at + i]; }
  partials[thread.y * 8u + thread.x] = sum;
  workgroupBarrier();
  var total = 0.0;
  for (var i = 0u; i < 8u; i++) { total += partials[thread.y * 8u + i]; }
  if (!is_real) { return; }
  let scale = 1.0 / sqrt(total / f32(params.head_dim) + params.eps);
  for (var i = thread.x; i < params.head_dim; i += 8u) { x[at + i] = x[at + i] * scale * weight[i]; }
}
