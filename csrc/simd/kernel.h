// Elementary functions and conversions over arrays: the SIMD layer's own torch-free face.
#pragma once

#include <cstdint>

#include "simd/types.h"

namespace lanewise {

enum class Function : int { identity, exp, exp2, tanh, erf };

// out[i] = function(x[i]), computed in float32, for contiguous arrays.
struct ElementaryParams {
  Function function;
  int64_t count;
  DType x_dtype;
  const void* x;
  DType out_dtype;
  void* out;
};

#ifdef LANEWISE_TARGET
namespace LANEWISE_TARGET {
void elementary(const ElementaryParams& p);
}
#endif

}  // namespace lanewise
