// Splitting a loop over the engine's thread and its helpers.
//
// A job is a function over chunk numbers [0, n_chunks). Whoever is free takes the next chunk, so a thread that
// the system has put aside costs at most the chunk it holds. Chunks must be independent of each other.
// In the builds without threads this is a plain loop.
#pragma once

// Runs `f(ctx, chunk, thread)` for every chunk; returns when all are done. `thread` is in [0, n_threads()).
// Jobs do not nest.
void parallel_for(int n_chunks, void (*f)(const void* ctx, int chunk, int thread), const void* ctx);

// Threads that may run chunks, the caller included.
int n_threads();

constexpr int kMaxThreads = 16;

// The same for a callable taking (chunk, thread).
template <class F>
inline void parallel(int n_chunks, const F& f) {
  parallel_for(
      n_chunks, [](const void* ctx, int chunk, int thread) { (*static_cast<const F*>(ctx))(chunk, thread); }, &f);
}
