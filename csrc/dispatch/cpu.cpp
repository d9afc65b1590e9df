#include "dispatch/cpu.h"

#include <unistd.h>

#include <cstdio>
#include <cstring>

#if defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#elif defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#endif

namespace lanewise {

namespace {

// Bytes of a cache of the first core, as the kernel tells them; 0 where it does not. (The C library
// multiplies level 3 by the number of dies, which a core has no access to.)
int64_t listed_size(int index, int level) {
  char path[96];
  const auto read = [&](const char* file, const char* format, auto... to) {
    std::snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/%s", index, file);
    std::FILE* text = std::fopen(path, "r");
    const int found = text ? std::fscanf(text, format, to...) : 0;
    if (text) std::fclose(text);
    return found;
  };
  int of_level = 0;
  char type = 0, unit = 0;
  long size = 0;
  if (read("level", "%d", &of_level) != 1 || of_level != level) return 0;
  if (read("type", "%c", &type) != 1 || type == 'I') return 0;
  if (read("size", "%ld%c", &size, &unit) < 1) return 0;
  return unit == 'M' ? size << 20 : unit == 'K' ? size << 10 : size;
}

int64_t cache_size(int level, int name, int64_t otherwise) {
  constexpr int kMostCaches = 8;
  for (int index = 0; index < kMostCaches; ++index)
    if (const int64_t bytes = listed_size(index, level); bytes > 0) return bytes;
  const long bytes = sysconf(name);  // 0 or -1 where it cannot tell (arm64, some virtual machines)
  return bytes > 0 ? bytes : otherwise;
}

#if defined(__x86_64__)
// Whether the CPU has tiles of bfloat16, the system saves them, and it lets this process use them:
// Linux allots their 8 KiB to a thread's saved state only on demand, and refuses where a signal
// stack would be too small for it.
bool tiles_granted() {
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;  // leaf 7, EDX
  constexpr unsigned kTileState = 3u << 17;                     // XCR0: configuration and data
  constexpr long kRequestPermission = 0x1023, kTileData = 18;   // ARCH_REQ_XCOMP_PERM
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  if (!(d & kAmxBf16) || !(d & kAmxTile)) return false;
  unsigned low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  if ((low & kTileState) != kTileState) return false;
#if defined(__linux__)
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

}  // namespace

const Caches& caches() {
  static const Caches sizes = {
      cache_size(1, _SC_LEVEL1_DCACHE_SIZE, 32 << 10),
      cache_size(2, _SC_LEVEL2_CACHE_SIZE, 512 << 10),
      cache_size(3, _SC_LEVEL3_CACHE_SIZE, 8 << 20),
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
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq");
  if (std::strcmp(target, "avx512") == 0) return avx512;
  const bool avx512bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
  if (std::strcmp(target, "avx512bf16") == 0) return avx512bf16;
  if (std::strcmp(target, "amx") == 0) {
    static const bool granted = avx512bf16 && tiles_granted();
    return granted;
  }
#elif defined(__aarch64__)
  if (std::strcmp(target, "neon") == 0) return getauxval(AT_HWCAP) & HWCAP_ASIMDHP;
#endif
  return false;
}

}  // namespace lanewise
