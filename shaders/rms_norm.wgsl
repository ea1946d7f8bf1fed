// rms_norm: out = x / sqrt(mean(x^2) + eps) * weight, row by row (Zhang & Sennrich 2019, arXiv:1910.07467).
//   x       (n_rows, width)   f32
//   weight  (width)           f32
//   out     (n_rows, width)   f32, not x
// One workgroup per row. f32 sums: each thread's columns, then a tree over threads.
// Dispatch: n_rows workgroups, folded over x and y.  Reference: test/reference/math.ts

override wg_size: u32 = 64;  // power of two

struct Params {
  n_rows: u32,
  width: u32,
  eps: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> weight: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

var<workgroup> partials: array<f32, wg_size>;

@compute @workgroup_size(wg_size)
fn main(
  @builtin(workgroup_id) wg: vec3u,
  @builtin(num_workgroups) grid: vec3u,
  @builtin(local_invocation_index) t: u32,
) {
  let row = wg.y * grid.x + wg.x;
  if (row >= params.n_rows) { return; }
  let at = row * params.width;
  var sum = 0.0;
  for (var i = t; i < params.width; i += wg_size) { sum += x[at + i] * x[at + i]; }
  partials[t] = sum;
  workgroupBarrier();
  for (var half = wg_size / 2u; half > 0u; half /= 2u) {
    if (t < half) { partials[t] += partials[t + half]; }
    workgroupBarrier();
  }
  let scale = 1.0 / sqrt(partials[0] / f32(params.width) + params.eps);
  for (var i = t; i < params.width; i += wg_size) { out[at + i] = x[at + i] * scale * weight[i]; }
}
