// The function table: every torch-free kernel, once per instruction set, chosen once per process.
#pragma once

#include <string>
#include <vector>

#include "attention/kernel.h"
#include "rope/kernel.h"

namespace lanewise {

struct Table {
  const char* target;
  int lanes;

  void (*attention)(const AttentionParams&);
  void (*attention_backward)(const AttentionBackwardParams&);
  void (*rope)(const RopeParams&);
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
