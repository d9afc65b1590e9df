#include "activation/kernel.h"

#include "activation/functions.h"
#include "dispatch/parallel.h"
#include "simd/simd.h"

namespace lanewise::LANEWISE_TARGET {

namespace {

template <Activation A, class T>
void backward_row(float* z, float* up, const T* grad, int64_t cols) {
  const auto step = [&](int64_t i, auto... count) {
    const f32v pre = load(z + i, count...);
    f32v g = load(grad + i, count...);
    if (up) {
      const f32v factor = load(up + i, count...);
      store(up + i, g * activate<A>(pre), count...);
      g *= factor;
    }
    store(z + i, g * activation_gradient<A>(pre), count...);
  };
  int64_t i = 0;
  for (; i + kLanes <= cols; i += kLanes) step(i);
  if (i < cols) step(i, static_cast<int>(cols - i));
}

// Elements a thread should have before another one pays for the parallel region.
constexpr int64_t kGrain = 4096;

}  // namespace

void activation_backward(const ActivationBackwardParams& p) {
  if (p.cols == 0) return;
  const int64_t grain = (kGrain + p.cols - 1) / p.cols;
  with_activation(p.activation, [&](auto activation) {
    with_dtype(p.grad_dtype, [&](auto element) {
      using T = decltype(element);
      parallel_ranges(p.rows, grain, p.threads, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row)
          backward_row<decltype(activation)::value>(
              p.z + row * p.z_row_stride, p.up ? p.up + row * p.up_row_stride : nullptr,
              static_cast<const T*>(p.grad) + row * p.grad_row_stride, p.cols);
      });
    });
  });
}

}  // namespace lanewise::LANEWISE_TARGET
