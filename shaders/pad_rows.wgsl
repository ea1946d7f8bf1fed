// pad_rows: copies rows and fills them up with zeros, for the matrix kernels, which take whole blocks of 32 columns.
// Rows of real models are multiples of 32 already; rows of f16 or f32 matrices need not be.
//   x    (n_rows, width)    f32
//   out  (n_rows, padded)   f32
// Dispatch: n_rows * padded invocations, folded over x and y.

override wg_size: u32 = 64;

struct Params {
  n_rows: u32,
  width: u32,
  padded: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(wg_size)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) grid: vec3u) {
  let linear = id.y * grid.x * wg_size + id.x;
  let row = linear / params.padded;
  let column = linear % params.padded;
  if (row >= params.n_rows) { return; }
  var value = 0.0;
  if (column < params.width) { value = x[row * params.width + column]; }
  out[linear] = value;
}
