// pool_rows: sums of rows over runs of tokens, for selection policies.
//   x      (n_tokens, width)   f32, row-major
//   ends   (n_runs)            run i is tokens [ends[i-1], ends[i])
//   first  (width)             what run 0 starts from; the others start from zero
//   out    (n_runs, width)
// An invocation adds one column of one run, token by token: the bits of a run that is cut by a call's end and goes on in
// the next are those of the whole.
// Dispatch: n_runs * width invocations, folded over x and y.  Reference: test/fixtures/policy-case.ts

override wg_size: u32 = 64;

struct Params { n_runs: u32, width: u32 }

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> ends: array<u32>;
@group(0) @binding(3) var<storage, read> first: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(wg_size)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) grid: vec3u) {
  let i = id.y * grid.x * wg_size + id.x;
  let run = i / params.width;
  let column = i % params.width;
  if (run >= params.n_runs) { return; }
  var token = 0u;
  var sum = first[column];
  if (run > 0u) {
    token = ends[run - 1u];
    sum = 0.0;
  }
  for (; token < ends[run]; token++) { sum += x[token * params.width + column]; }
  out[i] = sum;
}
