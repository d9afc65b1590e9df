#include "dispatch/cpu.h"

#include <unistd.h>

#include <cstring>

#if defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace lanewise {

namespace {

// The C library answers 0 or -1 where it cannot tell (arm64, some virtual machines).
int64_t cache_size(int name, int64_t otherwise) {
  const long bytes = sysconf(name);
  return bytes > 0 ? bytes : otherwise;
}

}  // namespace

const Caches& caches() {
  static const Caches sizes = {
      cache_size(_SC_LEVEL1_DCACHE_SIZE, 32 << 10),
      cache_size(_SC_LEVEL2_CACHE_SIZE, 512 << 10),
      cache_size(_SC_LEVEL3_CACHE_SIZE, 8 << 20),
  };
  return sizes;
}

bool cpu_runs(const char* target) {
  if (std::strcmp(target, "generic") == 0) return true;
#if defined(__x86_64__)
  // The compiler's own test also asks the operating system whether it saves the registers.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  if (std::strcmp(target, "avx2") == 0 || std::strcmp(target, "wide") == 0) return avx2;
  if (std::strcmp(target, "avx512") == 0)
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#elif defined(__aarch64__)
  if (std::strcmp(target, "neon") == 0) return getauxval(AT_HWCAP) & HWCAP_ASIMDHP;
#endif
  return false;
}

}  // namespace lanewise
