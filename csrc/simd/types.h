// Element types as the kernels see them. No functions here: this header is shared by every
// instruction set, and an inline function compiled twice could be picked by the linker from the
// wrong one.
#pragma once

#include <cstdint>

namespace lanewise {

enum class DType : int { f32 = 0, bf16 = 1, f16 = 2 };

struct bf16 {
  uint16_t bits;
};

struct f16 {
  uint16_t bits;
};

}  // namespace lanewise
