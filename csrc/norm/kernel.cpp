#include "norm/kernel.h"

#include "dispatch/parallel.h"
#include "dispatch/scratch.h"
#include "simd/simd.h"

namespace lanewise::LANEWISE_TARGET {

namespace {

// Elements a thread should have before another one pays for the parallel region.
constexpr int64_t kGrain = 8192;

int64_t grain_of(int64_t cols) { return (kGrain + cols - 1) / cols; }

int64_t offset(const Rows& rows, int64_t row) {
  if (row < rows.inner) return row * rows.inner_stride;
  const int64_t i = row % rows.inner, rest = row / rows.inner;
  return rest / rows.middle * rows.outer_stride + rest % rows.middle * rows.middle_stride +
         i * rows.inner_stride;
}

// Calls f(i) for every whole vector and f(i, count) for a partial last one.
template <class F>
LANEWISE_INLINE void for_vectors(int64_t n, F&& f) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) f(i);
  if (i < n) f(i, static_cast<int>(n - i));
}

template <int N>
struct Terms {
  f32v v[N];
};

// The totals over n elements of N quantities; terms(i) and terms(i, count) give vectors of them.
// Four chains of additions hide the latency of one, and shorten the sums that round.
template <int N, class F>
LANEWISE_INLINE void totals(int64_t n, float (&total)[N], F&& terms) {
  constexpr int kChains = 4;
  f32v chain[kChains][N];
  clear(chain);
  const auto add = [&](int c, const Terms<N>& t) {
#pragma GCC unroll 8
    for (int k = 0; k < N; ++k) chain[c][k] += t.v[k];
  };
  int64_t i = 0;
  for (; i + kChains * kLanes <= n; i += kChains * kLanes)
#pragma GCC unroll 4
    for (int c = 0; c < kChains; ++c) add(c, terms(i + c * kLanes));
  for (; i + kLanes <= n; i += kLanes) add(0, terms(i));
  if (i < n) {
    const int count = static_cast<int>(n - i);
    Terms<N> last = terms(i, count);
    for (f32v& v : last.v) v = select(lane_index() < count, v, f32v{});
    add(1, last);
  }
#pragma GCC unroll 8
  for (int k = 0; k < N; ++k)
    total[k] = sum((chain[0][k] + chain[1][k]) + (chain[2][k] + chain[3][k]));
}

// One row of what is normalised: x, or x + residual, unrounded.
template <class T, bool kAdd>
struct Source {
  const T* x;
  const T* residual;

  template <class... Count>
  LANEWISE_INLINE f32v operator()(int64_t i, Count... count) const {
    const f32v v = load(x + i, count...);
    if constexpr (kAdd) return v + load(residual + i, count...);
    return v;
  }
};

template <class T, bool kAdd, class Params>
Source<T, kAdd> source(const Params& p, int64_t row) {
  Source<T, kAdd> row_source = {static_cast<const T*>(p.x) + offset(p.x_rows, row), nullptr};
  if constexpr (kAdd)
    row_source.residual = static_cast<const T*>(p.residual) + offset(p.residual_rows, row);
  return row_source;
}

// What normalises a value: (v - mean) · inverse + shift.
struct Moments {
  float mean;
  float inverse;  // 1 / √(variance + eps)
  float shift;    // what the rounding of the mean left over

  template <bool kCentred>
  LANEWISE_INLINE f32v apply(f32v v) const {
    return kCentred ? (v - mean) * inverse + shift : v * inverse;
  }
};

// The variance from a second pass around the mean, which a single pass over squares would lose to
// cancellation where the mean is large; the deviations' own mean mends the rounding of both (the
// corrected two-pass algorithm: Chan, Golub and LeVeque, 1983).
template <bool kCentred, class S>
Moments moments(const S& value, int64_t n, float eps) {
  if constexpr (!kCentred) {
    float squares[1];
    totals<1>(n, squares, [&](auto... at) {
      const f32v v = value(at...);
      return Terms<1>{{v * v}};
    });
    return {0.0f, 1.0f / __builtin_sqrtf(squares[0] / n + eps), 0.0f};
  }
  float total[1], deviation[2];
  totals<1>(n, total, [&](auto... at) { return Terms<1>{{value(at...)}}; });
  const float mean = total[0] / n;
  totals<2>(n, deviation, [&](auto... at) {
    const f32v d = value(at...) - mean;
    return Terms<2>{{d, d * d}};
  });
  const float correction = deviation[0] / n;
  const float variance = deviation[1] / n - correction * correction;
  const float inverse = 1.0f / __builtin_sqrtf((variance < 0.0f ? 0.0f : variance) + eps);
  return {mean, inverse, -correction * inverse};
}

// A float32 copy of `from` + offset at `to`, or `from` itself where that is one already; without
// `from` the copy is of `absent`.
const float* widened(const void* from, DType dtype, float offset, float absent, int64_t n,
                     float* to) {
  if (!from)
    for (int64_t i = 0; i < n; ++i) to[i] = absent;
  if (!from) return to;
  if (dtype == DType::f32 && offset == 0.0f) return static_cast<const float*>(from);
  with_dtype(dtype, [&](auto element) {
    const auto* p = static_cast<const decltype(element)*>(from);
    for_vectors(n, [&](int64_t i, auto... count) {
      store(to + i, load(p + i, count...) + offset, count...);
    });
  });
  return to;
}

template <bool kValue>
struct Flag {
  static constexpr bool value = kValue;
};

template <class F>
void with_flag(bool flag, F&& f) {
  flag ? f(Flag<true>{}) : f(Flag<false>{});
}

// Calls f(element, centred, add) with one instantiation for each combination.
template <class Params, class F>
void with_form(const Params& p, F&& f) {
  with_dtype(p.dtype, [&](auto element) {
    with_flag(p.centred, [&](auto centred) {
      with_flag(p.residual != nullptr, [&](auto add) { f(element, centred, add); });
    });
  });
}

template <class T, bool kCentred, bool kAdd>
void forward_row(const NormParams& p, int64_t row, const float* weight, const float* bias) {
  const auto value = source<T, kAdd>(p, row);
  const Moments norm = moments<kCentred>(value, p.cols, p.eps);
  T* y = static_cast<T*>(p.y) + row * p.cols;
  T* sum = kAdd ? static_cast<T*>(p.sum) + row * p.cols : nullptr;
  const auto normalise = [&](auto after) {
    for_vectors(p.cols, [&](int64_t i, auto... count) {
      const f32v v = value(i, count...);
      if constexpr (kAdd) store(sum + i, v, count...);
      f32v normed = norm.template apply<kCentred>(v);
      normed *= load(weight + i, count...);
      if constexpr (kCentred) normed += load(bias + i, count...);
      store(y + i, after(normed, i, count...), count...);
    });
  };
  if (!p.after) return normalise([](f32v normed, auto...) { return normed; });
  const T* after = static_cast<const T*>(p.after) + offset(p.after_rows, row);
  normalise(
      [=](f32v normed, int64_t i, auto... count) { return normed + load(after + i, count...); });
}

// What the rows of a chunk add to.
struct WeightSums {
  float* weight;
  float* bias;
};

// With n = (v - mean) · inverse and g = grad · weight, the gradient of v is
// inverse · (g - mean(g) - n · mean(g · n)), without the middle term where nothing is centred.
template <class T, bool kCentred, bool kAdd>
void backward_row(const NormBackwardParams& p, int64_t row, const float* weight, WeightSums sums) {
  const int64_t cols = p.cols;
  const auto value = source<T, kAdd>(p, row);
  const Moments norm = moments<kCentred>(value, cols, p.eps);
  const T* grad = static_cast<const T*>(p.grad) + offset(p.grad_rows, row);
  T* grad_x = static_cast<T*>(p.grad_x) + row * cols;

  const auto normed = [=](auto... at) { return norm.template apply<kCentred>(value(at...)); };
  float total[2];
  totals<2>(cols, total, [=](auto i, auto... count) {
    const f32v g = load(grad + i, count...) * load(weight + i, count...);
    return Terms<2>{{g * normed(i, count...), g}};
  });
  const float slope = total[0] / cols;
  const float shift = kCentred ? total[1] / cols : 0.0f;
  const auto gradients = [=](auto direct) {
    for_vectors(cols, [=](int64_t i, auto... count) {
      const f32v n = normed(i, count...);
      const f32v g = load(grad + i, count...);
      const f32v inner = g * load(weight + i, count...) - shift - n * slope;
      store(grad_x + i, direct(i, count...) + norm.inverse * inner, count...);
      store(sums.weight + i, load(sums.weight + i, count...) + g * n, count...);
      if constexpr (kCentred) store(sums.bias + i, load(sums.bias + i, count...) + g, count...);
    });
  };
  if (!p.grad_sum) return gradients([](auto...) { return f32v{}; });
  const T* grad_sum = static_cast<const T*>(p.grad_sum) + offset(p.grad_sum_rows, row);
  gradients([=](auto i, auto... count) { return load(grad_sum + i, count...); });
}

// Adds the chunks' partial sums in their order.
template <class T>
void sum_chunks(const NormBackwardParams& p, const float* partials, T* out) {
  parallel_ranges((p.cols + kLanes - 1) / kLanes, kGrain / kLanes, p.threads,
                  [&](int64_t begin, int64_t end) {
                    const int64_t first = begin * kLanes;
                    const int64_t n = (end * kLanes < p.cols ? end * kLanes : p.cols) - first;
                    for_vectors(n, [&](int64_t i, auto... count) {
                      f32v total{};
                      for (int64_t c = 0; c < p.chunks; ++c)
                        total += load(partials + c * 2 * p.cols + first + i, count...);
                      store(out + first + i, total, count...);
                    });
                  });
}

}  // namespace

void norm(const NormParams& p) {
  if (p.rows == 0 || p.cols == 0) return;
  float* room = static_cast<float*>(scratch(Scratch::shared_panels, 2 * p.cols * sizeof(float)));
  const float* weight = widened(p.weight, p.weight_dtype, p.weight_offset, 1.0f, p.cols, room);
  const float* bias = widened(p.bias, p.bias_dtype, 0.0f, 0.0f, p.cols, room + p.cols);
  with_form(p, [&](auto element, auto centred, auto add) {
    parallel_ranges(p.rows, grain_of(p.cols), p.threads, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        forward_row<decltype(element), decltype(centred)::value, decltype(add)::value>(
            p, row, weight, bias);
    });
  });
}

void norm_backward(const NormBackwardParams& p) {
  if (p.cols == 0) return;
  float* room = static_cast<float*>(scratch(Scratch::shared_panels, p.cols * sizeof(float)));
  const float* weight = widened(p.weight, p.weight_dtype, p.weight_offset, 1.0f, p.cols, room);
  const int64_t chunk_rows = (p.rows + p.chunks - 1) / p.chunks;
  const int64_t grain = chunk_rows ? (grain_of(p.cols) + chunk_rows - 1) / chunk_rows : p.chunks;
  with_form(p, [&](auto element, auto centred, auto add) {
    parallel_ranges(p.chunks, grain, p.threads, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        float* partial = p.partials + c * 2 * p.cols;
        __builtin_memset(partial, 0, 2 * p.cols * sizeof(float));
        const WeightSums sums = {partial, partial + p.cols};
        for (int64_t row = p.rows * c / p.chunks; row < p.rows * (c + 1) / p.chunks; ++row)
          backward_row<decltype(element), decltype(centred)::value, decltype(add)::value>(
              p, row, weight, sums);
      }
    });
  });
  if (p.grad_weight)
    with_dtype(p.weight_dtype, [&](auto element) {
      sum_chunks(p, p.partials, static_cast<decltype(element)*>(p.grad_weight));
    });
  if (p.grad_bias) sum_chunks(p, p.partials + p.cols, p.grad_bias);
}

}  // namespace lanewise::LANEWISE_TARGET
