// What this CPU is: the instruction sets it runs and the caches it has.
#pragma once

#include <cstdint>

namespace lanewise {

struct Caches {
  int64_t l1;  // bytes of level 1 data cache, one core
  int64_t l2;  // bytes, one core
  int64_t l3;  // bytes, shared
};

const Caches& caches();

// Whether the CPU and the operating system can run code built for `target` ("avx2", …).
bool cpu_runs(const char* target);

}  // namespace lanewise
