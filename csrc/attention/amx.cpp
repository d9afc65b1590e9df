// Attention of the target `amx`: bfloat16 in tiles, all else as the target that it stands on does
// it.
#include "attention/amx_products.h"
#include "attention/forward.h"

namespace lanewise::LANEWISE_BASE {
void attention(const AttentionParams& p);
}  // namespace lanewise::LANEWISE_BASE

namespace lanewise::LANEWISE_TARGET {

void attention(const AttentionParams& p) {
  if (p.dtype != DType::bf16) return LANEWISE_BASE::attention(p);
  if (p.batch == 0 || p.heads == 0 || p.queries == 0) return;
  Forward<bf16, AmxProducts>(p).run();
}

}  // namespace lanewise::LANEWISE_TARGET
