// One table for the target being compiled, or for one that stands on it: LANEWISE_TABLE names that,
// and what it has of its own is declared here.
#include "dispatch/table.h"

#include "gemm/tile.h"

#ifndef LANEWISE_TABLE
#define LANEWISE_TABLE LANEWISE_TARGET
#endif

namespace lanewise::LANEWISE_TABLE {

using namespace LANEWISE_TARGET;
void attention(const AttentionParams& p);
void gemm(const GemmParams& p);
int64_t pair_round_flops();
void pair_probe(const FmaProbe& p);

#define LANEWISE_STRING(x) #x
#define LANEWISE_NAME(x) LANEWISE_STRING(x)

extern const Table kTable;
const Table kTable = {
    .target = LANEWISE_NAME(LANEWISE_TABLE),
    .lanes = kLanes,
    .activation_backward = activation_backward,
    .attention = attention,
    .attention_backward = attention_backward,
    .paged_cache_write = paged_cache_write,
    .panel_width = kTileCols,
    .gemm = gemm,
    .pack_panels = pack_panels,
    .column_sum = column_sum,
    .norm = norm,
    .norm_backward = norm_backward,
    .rope = rope,
    .elementary = elementary,
    .fma_round_flops = fma_round_flops,
    .fma_probe = fma_probe,
    .pair_round_flops = pair_round_flops,
    .pair_probe = pair_probe,
    .read_probe = read_probe,
};

}  // namespace lanewise::LANEWISE_TABLE
