// What selection policies see of queries and keys: sums over runs of tokens, and sampled attention per page.
#pragma once

#include "attention.h"

// Sums over runs of tokens.
//   x     (n_tokens, width)    width % 4 == 0
//   ends  (n_runs)             run i is tokens [ends[i-1], ends[i]), ascending; the last is at most n_tokens
//   out   (n_runs, width)      run 0 is added to what is there, the others start at zero
// Tokens are added in order, one by one, so that a run that is cut by a call's end and continued has the same bits.
void pool_runs(const float* x, int width, const uint32_t* ends, int n_runs, float* out);

// Exact causal attention probabilities of sampled query rows, summed per page and per page diagonal.
//   rows      (n_rows) indices of tokens of the call; their keys must have been appended
//   columns   (n_kv_heads, n_pages)  mass on page p, summed over rows and the group's heads
//   diagonals (n_kv_heads, n_pages)  mass on the page that lies d pages before the row's own
// n_pages covers every key up to the call's last token. The selection of `call` is not used. Returns a Status.
int sample_masses(const AttendCall& call, const uint32_t* rows, int n_rows, int n_pages, float* columns,
                  float* diagonals);
