#include "parallel.h"

#include "bridge.h"

#if INLAY_THREADS

#include <atomic>

namespace {

// One word describes the running job: sequence number (16 bits), chunks (24), next chunk (24). Taking a chunk is
// one fetch_add; the caller learns from the same word which job the chunk belongs to, so a helper that wakes
// late either gets a chunk of the job that runs now or none. A job's `f` and `ctx` stay put while any of its
// chunks is unfinished, because `parallel_for` does not return before.
std::atomic<uint64_t> ticket{0};
std::atomic<int32_t> n_done{0};
std::atomic<int32_t> sequence{0};   // helpers sleep on this word
std::atomic<int32_t> n_sleeping{0};
std::atomic<int32_t> n_running{1};  // threads that may take chunks
std::atomic<int32_t> quit{0};
void (*job_f)(const void*, int, int);
const void* job_ctx;

constexpr int kChunkBits = 24;
constexpr uint64_t kChunkMask = (1u << kChunkBits) - 1;

// A helper polls for about this many turns before it sleeps (some tens of microseconds), and the caller the same
// before it sleeps waiting for the last chunk: long enough to bridge the small serial parts between two jobs,
// short enough not to steal a core from others.
constexpr int kSpinTurns = 20000;

int32_t* address(std::atomic<int32_t>& word) { return reinterpret_cast<int32_t*>(&word); }

// Takes and runs chunks of the current job until there are none left.
void run_chunks(int thread) {
  for (;;) {
    const uint64_t word = ticket.fetch_add(1, std::memory_order_acq_rel);
    const int n_chunks = int(word >> kChunkBits & kChunkMask);
    const int chunk = int(word & kChunkMask);
    if (chunk >= n_chunks) return;
    job_f(job_ctx, chunk, thread);
    if (n_done.fetch_add(1, std::memory_order_acq_rel) + 1 == n_chunks)
      __builtin_wasm_memory_atomic_notify(address(n_done), 1);
  }
}

}  // namespace

int n_threads() { return n_running.load(std::memory_order_relaxed); }

void parallel_for(int n_chunks, void (*f)(const void*, int, int), const void* ctx) {
  if (n_chunks <= 0) return;
  if (n_chunks == 1 || n_threads() == 1) {
    for (int chunk = 0; chunk < n_chunks; chunk++) f(ctx, chunk, 0);
    return;
  }
  job_f = f;
  job_ctx = ctx;
  n_done.store(0, std::memory_order_relaxed);
  const uint64_t number = uint64_t(uint16_t(sequence.load(std::memory_order_relaxed) + 1));
  ticket.store(number << 48 | uint64_t(n_chunks) << kChunkBits, std::memory_order_release);
  sequence.fetch_add(1, std::memory_order_seq_cst);
  if (n_sleeping.load(std::memory_order_seq_cst) > 0)
    __builtin_wasm_memory_atomic_notify(address(sequence), kMaxThreads);
  run_chunks(0);
  for (int turn = 0; n_done.load(std::memory_order_acquire) != n_chunks; turn++) {
    if (turn < kSpinTurns) continue;
    const int32_t seen = n_done.load(std::memory_order_acquire);
    if (seen == n_chunks) break;
    __builtin_wasm_memory_atomic_wait32(address(n_done), seen, 1000000);  // 1 ms: another chunk may finish first
  }
}

// A helper's life: `thread` is 1, 2, …. Returns after pool_quit().
INLAY_EXPORT(pool_run) void pool_run(int thread) {
  int32_t seen = sequence.load(std::memory_order_acquire);
  while (!quit.load(std::memory_order_acquire)) {
    if (thread < n_threads()) run_chunks(thread);
    int turn = 0;
    while (sequence.load(std::memory_order_acquire) == seen && ++turn < kSpinTurns) {
    }
    if (sequence.load(std::memory_order_acquire) == seen) {
      n_sleeping.fetch_add(1, std::memory_order_seq_cst);
      __builtin_wasm_memory_atomic_wait32(address(sequence), seen, -1);
      n_sleeping.fetch_sub(1, std::memory_order_seq_cst);
    }
    seen = sequence.load(std::memory_order_acquire);
  }
}

// How many threads take chunks from now on, the engine's own included. Not to be called during a job.
INLAY_EXPORT(pool_set_threads) void pool_set_threads(int n) {
  n_running.store(n < 1 ? 1 : n > kMaxThreads ? kMaxThreads : n, std::memory_order_release);
}

INLAY_EXPORT(pool_quit) void pool_quit() {
  quit.store(1, std::memory_order_release);
  sequence.fetch_add(1, std::memory_order_seq_cst);
  __builtin_wasm_memory_atomic_notify(address(sequence), kMaxThreads);
}

#else

int n_threads() { return 1; }

void parallel_for(int n_chunks, void (*f)(const void*, int, int), const void* ctx) {
  for (int chunk = 0; chunk < n_chunks; chunk++) f(ctx, chunk, 0);
}

#endif
