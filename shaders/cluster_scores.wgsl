// cluster_scores: the estimated probability of one key of each entry (Squeezed Attention, arXiv:2411.09688, eq. 2),
// sigma_c = exp(x_c - m) / sum_j count_j exp(x_j - m), mean over a block's queries and the query heads of a KV head.
//   index   tiles (n_kv_heads + 1), counts (n_entries), ...; see cluster_logits
//   logits  (blocks, row_quads, n_entries)   4 query rows of an entry; overwritten
//   sigma   (all blocks, n_entries)          0 where the entry is not there; sum_c count_c sigma_c = 1 over a KV head
//
// One workgroup: all entries of one KV head for one block, 4 rows at a time. A thread keeps to its entries, so only maxima and
// sums go through workgroup memory. f32; every sum in one order, so the same bits every time.
// Dispatch n_blocks * n_kv_heads workgroups, folded over x and y.
// Reference: test/reference/clustering.ts

override wg_size: u32 = 64;  // multiple of 8, at least 8

const nothing = -1.0e30;  // maximum over no entries: above what cluster_logits writes for one that is not there
const tiny = 1.0e-30;     // below every non-empty sum

struct Params {
  n_tokens: u32,
  block_size: u32,
  n_heads: u32,
  n_kv_heads: u32,
  n_entries: u32,
  row_quads: u32,
  first_block: u32,  // of this dispatch
  n_blocks: u32,     // of this dispatch
  counts_at: u32,    // index of the first count in `index`
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> index: array<u32>;
@group(0) @binding(2) var<storage, read_write> logits: array<vec4f>;
@group(0) @binding(3) var<storage, read_write> sigma: array<f32>;

var<workgroup> per_thread: array<vec4f, wg_size>;
var<workgroup> per_eight: array<vec4f, wg_size / 8>;

/// The maximum of all threads' x, in steps of 8 and wg_size / 8.
fn max_of_all(x: vec4f, t: u32) -> vec4f {
  per_thread[t] = x;
  workgroupBarrier();
  if (t < wg_size / 8u) {
    var most = per_thread[8u * t];
    for (var i = 1u; i < 8u; i++) { most = max(most, per_thread[8u * t + i]); }
    per_eight[t] = most;
  }
  workgroupBarrier();
  var most = per_eight[0];
  for (var i = 1u; i < wg_size / 8u; i++) { most = max(most, per_eight[i]); }
  return most;
}

fn sum_of_all(x: vec4f, t: u32) -> vec4f {
  per_thread[t] = x;
  workgroupBarrier();
  if (t < wg_size / 8u) {
    var sum = per_thread[8u * t];
    for (var i = 1u; i < 8u; i++) { sum += per_thread[8u * t + i]; }
    per_eight[t] = sum;
  }
  workgroupBarrier();
  var sum = per_eight[0];
  for (var i = 1u; i < wg_size / 8u; i++) { sum += per_eight[i]; }
  return sum;
}

@compute @workgroup_size(wg_size)
fn main(
  @builtin(workgroup_id) wg: vec3u,
  @builtin(num_workgroups) grid: vec3u,
  @builtin(local_invocation_index) t: u32,
) {
  let linear = wg.y * grid.x + wg.x;
  let kv_head = linear % params.n_kv_heads;
  let b = linear / params.n_kv_heads;
  if (b >= params.n_blocks) { return; }
  let block = params.first_block + b;
  let first = index[kv_head] * 32u;
  let end = index[kv_head + 1u] * 32u;
  let group = params.n_heads / params.n_kv_heads;
  let n_rows = min(params.block_size, params.n_tokens - block * params.block_size) * group;
  let sigma_at = block * params.n_entries;

  for (var i = 0u; i < params.row_quads; i++) {
    let at = (b * params.row_quads + i) * params.n_entries;
    var m = vec4f(nothing);
    for (var e = first + t; e < end; e += wg_size) { m = max(m, logits[at + e]); }
    m = max_of_all(m, t);
    var l = vec4f(0.0);
    for (var e = first + t; e < end; e += wg_size) {
      let p = exp(logits[at + e] - m);
      logits[at + e] = p;
      l += p * f32(index[params.counts_at + e]);
    }
    l = sum_of_all(l, t);
    // At least 1 where an entry is there. Rows past the end do not count.
    let is_row = vec4u(4u * i) + vec4u(0u, 1u, 2u, 3u) < vec4u(n_rows);
    let weight = select(vec4f(0.0), 1.0 / (max(l, vec4f(tiny)) * f32(n_rows)), is_row);
    for (var e = first + t; e < end; e += wg_size) {
      let share = dot(logits[at + e], weight);
      if (i == 0u) {
        sigma[sigma_at + e] = share;
      } else {
        sigma[sigma_at + e] += share;
      }
    }
  }
}
