// OpenMP, always with an explicit thread count: a bare pragma would ignore the caller's setting
// when it was made in another thread.
#pragma once

#include <omp.h>
#include <sched.h>

#include <cstdint>

#include "simd/vec.h"

namespace lanewise::LANEWISE_TARGET {

// Runs f(thread, threads) on up to `threads` threads; on the caller alone without opening a region
// (1.2 µs) when there is just one.
template <class F>
inline void parallel(int threads, F&& f) {
  if (threads <= 1) return f(0, 1);
#pragma omp parallel num_threads(threads)
  f(omp_get_thread_num(), omp_get_num_threads());
}

// Inside a region a nested one has a single thread, whatever it asks for.
inline bool in_parallel() { return omp_in_parallel(); }

// Waits for all threads of the innermost parallel region.
inline void barrier() {
#pragma omp barrier
}

// Waits for another thread of the region to bring *number to `least`. It must be at work on it
// already, or this would wait for ever.
inline void wait_until(const int64_t* number, int64_t least) {
  int patience = 1000;
  while (__atomic_load_n(number, __ATOMIC_ACQUIRE) < least) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
    if (patience == 0)
      sched_yield();  // there may be more threads than cores
    else
      --patience;
  }
}

// Runs f(begin, end) over [0, count) in one contiguous piece per thread, pieces equal to within
// one; no piece is smaller than `grain` unless it is the only one.
template <class F>
inline void parallel_ranges(int64_t count, int64_t grain, int threads, F&& f) {
  if (count <= 0) return;
  const int64_t useful = (count + grain - 1) / grain;
  parallel(static_cast<int>(useful < threads ? useful : threads), [&](int t, int n) {
    const int64_t begin = count * t / n, end = count * (t + 1) / n;
    if (begin < end) f(begin, end);
  });
}

// Runs f(task) for every task in [0, count), each thread taking the next one when it is free: for
// tasks of unequal size, largest first.
template <class F>
inline void parallel_tasks(int64_t count, int threads, F&& f) {
  int64_t next = 0;
  parallel(static_cast<int>(count < threads ? count : threads), [&](int, int) {
    int64_t task;
    while ((task = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED)) < count) f(task);
  });
}

}  // namespace lanewise::LANEWISE_TARGET
