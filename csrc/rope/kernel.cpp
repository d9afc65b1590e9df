#include "rope/kernel.h"

#include "dispatch/parallel.h"
#include "simd/simd.h"

namespace lanewise::LANEWISE_TARGET {

namespace {

struct Angles {
  const float* cos;
  const float* sin;
  float sign;  // of the sine
};

// The pair (x[i], x[i + half]) sits half a head apart: whole vectors of each.
template <class T>
void rotate_halves(const T* x, T* out, int64_t half, Angles angles) {
  const auto rotate = [&](int64_t i, auto... count) {
    const f32v c = load(angles.cos + i, count...);
    const f32v s = load(angles.sin + i, count...) * angles.sign;
    const f32v a = load(x + i, count...);
    const f32v b = load(x + half + i, count...);
    store(out + i, a * c - b * s, count...);
    store(out + half + i, b * c + a * s, count...);
  };
  int64_t i = 0;
  for (; i + kLanes <= half; i += kLanes) rotate(i);
  if (i < half) rotate(i, static_cast<int>(half - i));
}

// The pair (x[2i], x[2i + 1]) is adjacent: every lane needs its neighbour, and one table entry
// serves two lanes.
template <class T>
void rotate_neighbours(const T* x, T* out, int64_t half, Angles angles) {
  const i32v lane = lane_index();
  const i32v neighbour = lane ^ 1;
  const i32v pair = lane >> 1;
  const f32v sign = select((lane & 1) == 0, broadcast(-angles.sign), broadcast(angles.sign));
  constexpr int kPairs = kLanes / 2;
  for (int64_t i = 0; i < half; i += kPairs) {
    const int pairs = static_cast<int>(half - i < kPairs ? half - i : kPairs);
    const int count = 2 * pairs;
    const f32v c = __builtin_shuffle(load(angles.cos + i, pairs), pair);
    const f32v s = __builtin_shuffle(load(angles.sin + i, pairs), pair);
    const f32v a = count == kLanes ? load(x + 2 * i) : load(x + 2 * i, count);
    const f32v rotated = a * c + __builtin_shuffle(a, neighbour) * (s * sign);
    if (count == kLanes)
      store(out + 2 * i, rotated);
    else
      store(out + 2 * i, rotated, count);
  }
}

template <class T>
void rope_rows(const RopeParams& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t s = row % p.seq, h = row / p.seq % p.heads, b = row / p.seq / p.heads;
    const T* x = static_cast<const T*>(p.x) + b * p.x_batch + h * p.x_head + s * p.x_seq;
    T* out = static_cast<T*>(p.out) + b * p.out_batch + h * p.out_head + s * p.out_seq;
    const Angles angles = {p.cos + b * p.cos_batch + s * p.cos_seq,
                           p.sin + b * p.sin_batch + s * p.sin_seq, p.inverse ? -1.0f : 1.0f};
    if (p.interleaved)
      rotate_neighbours(x, out, p.half, angles);
    else
      rotate_halves(x, out, p.half, angles);
    for (int64_t i = 2 * p.half; i < p.dim; ++i) out[i] = x[i];
  }
}

// Elements a thread should have before another one pays for the parallel region.
constexpr int64_t kGrain = 8192;

}  // namespace

void rope(const RopeParams& p) {
  const int64_t rows = p.batch * p.heads * p.seq;
  const int64_t grain = p.dim < kGrain ? kGrain / (p.dim ? p.dim : 1) : 1;
  with_dtype(p.dtype, [&](auto element) {
    parallel_ranges(rows, grain, p.threads, [&](int64_t begin, int64_t end) {
      rope_rows<decltype(element)>(p, begin, end);
    });
  });
}

}  // namespace lanewise::LANEWISE_TARGET
