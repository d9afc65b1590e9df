#include "simd/kernel.h"

#include "simd/simd.h"

namespace lanewise::LANEWISE_TARGET {

namespace {

template <class From, class To, class F>
void map(const ElementaryParams& p, F&& f) {
  const From* x = static_cast<const From*>(p.x);
  To* out = static_cast<To*>(p.out);
  int64_t i = 0;
  for (; i + kLanes <= p.count; i += kLanes) store(out + i, f(load(x + i)));
  if (const int rest = static_cast<int>(p.count - i)) store(out + i, f(load(x + i, rest)), rest);
}

template <class F>
void map(const ElementaryParams& p, F&& f) {
  with_dtype(p.x_dtype, [&](auto from) {
    with_dtype(p.out_dtype, [&](auto to) { map<decltype(from), decltype(to)>(p, f); });
  });
}

}  // namespace

void elementary(const ElementaryParams& p) {
  switch (p.function) {
    case Function::identity:
      return map(p, [](f32v x) { return x; });
    case Function::exp:
      return map(p, [](f32v x) { return exp(x); });
    case Function::exp2:
      return map(p, [](f32v x) { return exp2(x); });
    case Function::tanh:
      return map(p, [](f32v x) { return tanh(x); });
    case Function::erf:
      return map(p, [](f32v x) { return erf(x); });
  }
}

}  // namespace lanewise::LANEWISE_TARGET
