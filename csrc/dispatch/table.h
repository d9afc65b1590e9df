// The function table: every torch-free kernel, once per instruction set, chosen once per process.
#pragma once

#include <string>
#include <vector>

#include "activation/kernel.h"
#include "attention/kernel.h"
#include "gemm/kernel.h"
#include "norm/kernel.h"
#include "probe/kernel.h"
#include "rope/kernel.h"
#include "simd/kernel.h"

namespace lanewise {

struct Table {
  const char* target;
  int lanes;

  void (*activation_backward)(const ActivationBackwardParams&);
  void (*attention)(const AttentionParams&);
  void (*attention_backward)(const AttentionBackwardParams&);
  void (*paged_cache_write)(const PagedCacheWriteParams&);
  int panel_width;  // columns of a panel of packed weights
  void (*gemm)(const GemmParams&);
  void (*pack_panels)(const PackParams&);
  void (*column_sum)(const ColumnSumParams&);
  void (*norm)(const NormParams&);
  void (*norm_backward)(const NormBackwardParams&);
  void (*rope)(const RopeParams&);
  void (*elementary)(const ElementaryParams&);
  int64_t (*fma_round_flops)();
  void (*fma_probe)(const FmaProbe&);
  int64_t (*pair_round_flops)();
  void (*pair_probe)(const FmaProbe&);
  void (*read_probe)(const ReadProbe&);
};

// The tables of this build, lowest level first. The last may be one for tests alone (16 lanes
// lowered to an 8-lane machine), which is never chosen.
const std::vector<const Table*>& tables();

// The table of the named target; throws std::runtime_error if it is not built or cannot run here.
const Table& table(const std::string& target);

// The table of this process: the highest level that the CPU runs, or the one that the environment
// variable LANEWISE_ISA asks for. Throws std::runtime_error if that is unknown or cannot run here.
const Table& table();

}  // namespace lanewise
