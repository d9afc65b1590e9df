// One table for the target being compiled.
#include "dispatch/table.h"

#include "simd/vec.h"

namespace lanewise::LANEWISE_TARGET {

#define LANEWISE_STRING(x) #x
#define LANEWISE_NAME(x) LANEWISE_STRING(x)

extern const Table kTable;
const Table kTable = {
    .target = LANEWISE_NAME(LANEWISE_TARGET),
    .lanes = kLanes,
    .attention = attention,
    .attention_backward = attention_backward,
    .rope = rope,
};

}  // namespace lanewise::LANEWISE_TARGET
