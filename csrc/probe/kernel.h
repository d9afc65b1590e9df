// What this machine can do at most: the torch-free face of the probes that benches compare with.
#pragma once

#include <cstdint>

#include "simd/types.h"

namespace lanewise {

// Multiplies and adds in registers: `rounds` steps of every chain of every thread.
struct FmaProbe {
  int64_t rounds;
  float factor, term;  // unknown to the compiler; factor < 1, so that the values stay small
  float* sink;         // [threads]
  int threads;
};

// Reads x `rounds` times, each thread a contiguous piece.
struct ReadProbe {
  const float* x;
  int64_t count, rounds;
  float* sink;  // [threads]
  int threads;
};

#ifdef LANEWISE_TARGET
namespace LANEWISE_TARGET {
// The floating-point operations of one round of one thread.
int64_t fma_round_flops();
void fma_probe(const FmaProbe& p);
// The same of products of bfloat16 pairs, by whatever instruction the target has for them; without
// one, those of float32.
int64_t pair_round_flops();
void pair_probe(const FmaProbe& p);
void read_probe(const ReadProbe& p);
}  // namespace LANEWISE_TARGET
#endif

}  // namespace lanewise
