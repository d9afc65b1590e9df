// Working memory of the kernels: one grow-only buffer per thread and slot, kept between calls, so
// that a steady state allocates nothing. Sizes are bounded by cache-sized panels, and by the rows
// of x where these are few.
#pragma once

#include <cstddef>

namespace lanewise {

enum class Scratch : int {
  shared_panels,  // read by all threads of a region, owned by the thread that opened it
  panels,
  tile,
  rows,
  state,
  count,
};

// At least `bytes` bytes aligned to 64, contents undefined. Valid until the same thread asks for a
// larger buffer in the same slot. Throws std::bad_alloc when memory is out.
void* scratch(Scratch slot, size_t bytes);

}  // namespace lanewise
