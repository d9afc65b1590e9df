// Attention by vectors of float32.
#include "attention/forward.h"

namespace lanewise::LANEWISE_TARGET {

void attention(const AttentionParams& p) {
  if (p.batch == 0 || p.heads == 0 || p.queries == 0) return;
  with_dtype(p.dtype, [&](auto element) {
    using T = decltype(element);
    Forward<T, VectorProducts<T>>(p).run();
  });
}

}  // namespace lanewise::LANEWISE_TARGET
