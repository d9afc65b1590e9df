#include "probe/kernel.h"

#include "dispatch/parallel.h"
#include "simd/simd.h"

namespace lanewise::LANEWISE_TARGET {

namespace {

// Independent chains hide the latency: 4 cycles on 2 ports (x86) want 8, on 4 ports (arm64) 16.
// They must all stay in registers, with two for the constants.
#if defined(__aarch64__)
constexpr int kChains = 20;
#else
constexpr int kChains = 12;
#endif

constexpr int kReadChains = 8;

}  // namespace

int64_t fma_round_flops() { return 2 * kLanes * kChains; }

void fma_probe(const FmaProbe& p) {
  parallel(p.threads, [&](int thread, int) {
    const f32v factor = broadcast(p.factor), term = broadcast(p.term);
    f32v chain[kChains];
    for (int c = 0; c < kChains; ++c) chain[c] = broadcast(static_cast<float>(c));
    for (int64_t i = 0; i < p.rounds; ++i)
#pragma GCC unroll 32
      for (int c = 0; c < kChains; ++c) chain[c] = chain[c] * factor + term;
    f32v total = chain[0];
    for (int c = 1; c < kChains; ++c) total = total + chain[c];
    p.sink[thread] = sum(total);
  });
}

#if defined(__AVX512BF16__) && LANEWISE_LANES == 16
int64_t pair_round_flops() { return 2 * fma_round_flops(); }

void pair_probe(const FmaProbe& p) {
  parallel(p.threads, [&](int thread, int) {
    const __m512bh factors = _mm512_cvtne2ps_pbh(_mm512_set1_ps(p.factor), _mm512_set1_ps(p.term));
    __m512 chain[kChains];
    for (int c = 0; c < kChains; ++c) chain[c] = _mm512_set1_ps(static_cast<float>(c));
    for (int64_t i = 0; i < p.rounds; ++i)
#pragma GCC unroll 32
      for (int c = 0; c < kChains; ++c) chain[c] = _mm512_dpbf16_ps(chain[c], factors, factors);
    __m512 total = chain[0];
    for (int c = 1; c < kChains; ++c) total = _mm512_add_ps(total, chain[c]);
    p.sink[thread] = _mm512_reduce_add_ps(total);
  });
}
#else
int64_t pair_round_flops() { return fma_round_flops(); }

void pair_probe(const FmaProbe& p) { fma_probe(p); }
#endif

void read_probe(const ReadProbe& p) {
  parallel(p.threads, [&](int thread, int threads) {
    constexpr int64_t kStep = kReadChains * kLanes;
    const int64_t steps = p.count / kStep;
    const float* begin = p.x + steps * thread / threads * kStep;
    const float* end = p.x + steps * (thread + 1) / threads * kStep;
    f32v chain[kReadChains] = {};
    for (int64_t round = 0; round < p.rounds; ++round)
      for (const float* x = begin; x < end; x += kStep)
#pragma GCC unroll 8
        for (int c = 0; c < kReadChains; ++c) chain[c] = chain[c] + load(x + c * kLanes);
    f32v total = chain[0];
    for (int c = 1; c < kReadChains; ++c) total = total + chain[c];
    p.sink[thread] = sum(total);
  });
}

}  // namespace lanewise::LANEWISE_TARGET
