#include "attention/kernel.h"
#include "dispatch/parallel.h"

namespace lanewise::LANEWISE_TARGET {

namespace {

// Keys or values, in bytes.
struct Half {
  const char* from;
  char* to;
  HeadStrides from_strides, to_strides;
  int64_t head_size;

  Half(const void* tokens, void* cache, HeadStrides s, HeadStrides c, int64_t dim, int64_t element)
      : from(static_cast<const char*>(tokens)),
        to(static_cast<char*>(cache)),
        from_strides{0, s.head * element, s.token * element},
        to_strides{c.batch * element, c.head * element, c.token * element},
        head_size(dim * element) {}

  void write(int64_t token, int64_t block, int64_t offset, int64_t heads) const {
    const char* source = from + token * from_strides.token;
    char* place = to + block * to_strides.batch + offset * to_strides.token;
    if (from_strides.head == head_size && to_strides.head == head_size)
      return void(__builtin_memcpy(place, source, heads * head_size));
    for (int64_t h = 0; h < heads; ++h)
      __builtin_memcpy(place + h * to_strides.head, source + h * from_strides.head, head_size);
  }
};

// Bytes that a thread should have before another one pays for the parallel region.
constexpr int64_t kGrain = 1 << 15;

}  // namespace

void paged_cache_write(const PagedCacheWriteParams& p) {
  const Half k(p.k, p.k_cache, p.k_strides, p.k_cache_strides, p.dim, p.element_size);
  const Half v(p.v, p.v_cache, p.v_strides, p.v_cache_strides, p.value_dim, p.element_size);
  const int64_t bytes = p.heads * (k.head_size + v.head_size);
  if (bytes == 0) return;
  parallel_ranges(p.tokens, kGrain / bytes + 1, p.threads, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      if (p.slots[t] < 0) continue;
      const int64_t block = p.slots[t] / p.block_size, offset = p.slots[t] % p.block_size;
      k.write(t, block, offset, p.heads);
      v.write(t, block, offset, p.heads);
    }
  });
}

}  // namespace lanewise::LANEWISE_TARGET
