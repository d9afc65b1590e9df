// Evaluates the SIMD layer over arrays, and over every float32 there is.
#include "host.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "dispatch/cpu.h"
#include "simd/kernel.h"

namespace lanewise {

namespace {

Function function_of(const std::string& name) {
  if (name == "identity") return Function::identity;
  if (name == "exp") return Function::exp;
  if (name == "exp2") return Function::exp2;
  if (name == "tanh") return Function::tanh;
  if (name == "erf") return Function::erf;
  throw std::invalid_argument("function must be identity, exp, exp2, tanh or erf, got '" + name +
                              "'");
}

void elementary(const std::string& target, const std::string& function, py::array x,
                py::array out) {
  if (x.size() != out.size() || !(x.flags() & out.flags() & py::array::c_style))
    throw std::invalid_argument("x and out must be contiguous and of one size");
  table(target).elementary({
      .function = function_of(function),
      .count = x.size(),
      .x_dtype = dtype_of(x),
      .x = x.data(),
      .out_dtype = dtype_of(out),
      .out = out.mutable_data(),
  });
}

std::vector<const Table*> usable_tables() {
  std::vector<const Table*> usable;
  for (const Table* t : tables())
    if (cpu_runs(t->target)) usable.push_back(t);
  return usable;
}

// A sweep goes through the bit patterns in blocks, so that the reference is computed once for all
// targets and everything stays in cache.
constexpr int64_t kBlock = 4096;

struct Worst {
  double ulp = 0;
  float x = 0, y = 0;
};

// A reference value y, ready to be compared: infinity counts as 2^128, the number that it stands
// for in rounding.
struct Reference {
  double value;
  double per_ulp;  // 1 / the distance between the float32 around it

  explicit Reference(double y) : value(finite(y)) {
    const int exponent = static_cast<int>(std::bit_cast<uint64_t>(value) >> 52 & 0x7ff) - 1023;
    // The subnormals all have the last place 2^-149.
    const uint64_t scale = 1023 + 23 - std::clamp(exponent, -126, 127);
    per_ulp = std::bit_cast<double>(scale << 52);
  }
  Reference() = default;

  static double finite(double y) { return std::fabs(y) > 0x1p128 ? std::copysign(0x1p128, y) : y; }
  double ulps(float y) const {
    if (std::isnan(value) || std::isnan(y))
      return std::isnan(value) && std::isnan(y) ? 0 : std::numeric_limits<double>::infinity();
    return std::fabs(finite(y) - value) * per_ulp;
  }
};

// The largest errors, per target, over every step-th bit pattern from first to last and the same
// with the sign bit.
template <class F>
std::vector<Worst> sweep(Function function, F reference, double flush, int64_t first, int64_t last,
                         int64_t step, int threads) {
  const std::vector<const Table*> targets = usable_tables();
  std::vector<Worst> worst(targets.size());
#pragma omp parallel num_threads(threads)
  {
    std::vector<Worst> mine(targets.size());
    float x[2 * kBlock], y[2 * kBlock], nearest[2 * kBlock];
    Reference wanted[2 * kBlock];
#pragma omp for schedule(dynamic)
    for (int64_t begin = first; begin <= last; begin += kBlock * step) {
      const int64_t n = 2 * std::min(kBlock, (last - begin) / step + 1);
      for (int64_t i = 0; i < n; ++i) {
        const int64_t bits = begin + i / 2 * step;
        x[i] = std::bit_cast<float>(static_cast<uint32_t>(bits | (i & 1) << 31));
        const double value = reference(static_cast<double>(x[i]));
        wanted[i] = Reference(std::fabs(value) < flush ? 0 : value);
        nearest[i] = static_cast<float>(wanted[i].value);
      }
      for (size_t t = 0; t < targets.size(); ++t) {
        targets[t]->elementary({function, n, DType::f32, x, DType::f32, y});
        for (int64_t i = 0; i < n; ++i) {
          if (y[i] == nearest[i] && mine[t].ulp >= 0.5) continue;
          const double error = wanted[i].ulps(y[i]);
          if (error > mine[t].ulp) mine[t] = {error, x[i], y[i]};
        }
      }
    }
#pragma omp critical
    for (size_t t = 0; t < targets.size(); ++t)
      if (mine[t].ulp > worst[t].ulp) worst[t] = mine[t];
  }
  return worst;
}

py::dict sweep_function(const std::string& name, uint32_t first, uint32_t last, uint32_t step,
                        double flush, int threads) {
  const Function function = function_of(name);
  std::vector<Worst> worst;
  {
    py::gil_scoped_release release;
    const auto run = [&](auto reference) {
      worst = sweep(function, reference, flush, first, last, step, threads);
    };
    if (function == Function::exp)
      run([](double x) { return std::exp(x); });
    else if (function == Function::exp2)
      run([](double x) { return std::exp2(x); });
    else if (function == Function::tanh)
      run([](double x) { return std::tanh(x); });
    else if (function == Function::erf)
      run([](double x) { return std::erf(x); });
    else
      run([](double x) { return x; });
  }
  py::dict result;
  const std::vector<const Table*> targets = usable_tables();
  for (size_t t = 0; t < targets.size(); ++t)
    result[targets[t]->target] = py::make_tuple(worst[t].ulp, worst[t].x, worst[t].y);
  return result;
}

// What IEEE 754 says in integers: keep the top bits, and round up when the rest is more than half,
// or half with the last kept bit odd. `kExponent` and `kMantissa` are the widths of the fields.
template <int kExponent, int kMantissa>
uint16_t narrow_reference(uint32_t bits) {
  constexpr int kShift = 23 - kMantissa;
  constexpr int kBias = (1 << (kExponent - 1)) - 1;
  constexpr uint32_t kInfinity = ((1u << kExponent) - 1) << kMantissa;
  const uint32_t sign = bits >> 31 << 15, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u)  // a quiet NaN with what fits of the payload
    return sign | kInfinity | 1u << (kMantissa - 1) | (magnitude & 0x7fffffu) >> kShift;
  if (magnitude == 0x7f800000u) return sign | kInfinity;
  const int exponent = std::max<int>(magnitude >> 23, 1);
  uint64_t mantissa = (magnitude & 0x7fffffu) | (magnitude >> 23 ? 0x800000u : 0);
  // Below the smallest normal number the last place stays the same.
  const int biased = exponent - 127 + kBias;
  const int shift = std::min(kShift + (biased < 1 ? 1 - biased : 0), 40);
  const uint64_t kept = mantissa >> shift, rest = mantissa & ((uint64_t{1} << shift) - 1);
  const uint64_t half = uint64_t{1} << (shift - 1);
  const uint64_t rounded = kept + (rest > half || (rest == half && (kept & 1)));
  // The implicit bit adds one to the exponent field, and so does a carry out of the mantissa.
  const uint64_t field =
      biased < 1 ? rounded : rounded + (static_cast<uint64_t>(biased - 1) << kMantissa);
  return sign | (field < kInfinity ? field : kInfinity);
}

// How many of all 2^32 float32 each target narrows differently from the reference.
py::dict sweep_narrow(const std::string& dtype, int threads) {
  const bool bf16 = dtype == "bfloat16";
  if (!bf16 && dtype != "float16")
    throw std::invalid_argument("dtype must be bfloat16 or float16, got '" + dtype + "'");
  const std::vector<const Table*> targets = usable_tables();
  std::vector<int64_t> wrong(targets.size());
  {
    py::gil_scoped_release release;
#pragma omp parallel num_threads(threads)
    {
      std::vector<int64_t> mine(targets.size());
      uint32_t x[kBlock];
      uint16_t wanted[kBlock], y[kBlock];
#pragma omp for
      for (int64_t begin = 0; begin < int64_t{1} << 32; begin += kBlock) {
        for (int64_t i = 0; i < kBlock; ++i) {
          x[i] = static_cast<uint32_t>(begin + i);
          wanted[i] = bf16 ? narrow_reference<8, 7>(x[i]) : narrow_reference<5, 10>(x[i]);
        }
        for (size_t t = 0; t < targets.size(); ++t) {
          targets[t]->elementary(
              {Function::identity, kBlock, DType::f32, x, bf16 ? DType::bf16 : DType::f16, y});
          if (std::memcmp(y, wanted, sizeof y) == 0) continue;
          for (int64_t i = 0; i < kBlock; ++i) mine[t] += y[i] != wanted[i];
        }
      }
#pragma omp critical
      for (size_t t = 0; t < targets.size(); ++t) wrong[t] += mine[t];
    }
  }
  py::dict result;
  for (size_t t = 0; t < targets.size(); ++t) result[targets[t]->target] = wrong[t];
  return result;
}

}  // namespace

void bind_simd(py::module_& m) {
  m.def("elementary", elementary, py::arg("target"), py::arg("function"), py::arg("x"),
        py::arg("out"),
        "out[i] = function(x[i]), function one of identity, exp, exp2, tanh and erf; the dtypes of "
        "x and "
        "out may differ.");
  m.def("sweep", sweep_function, py::arg("function"), py::arg("first") = 0u,
        py::arg("last") = 0x7fffffffu, py::arg("step") = 1u, py::arg("flush") = 0.0,
        py::arg("threads") = 1,
        "{target: (ulp, x, y)}: the largest error of `function`, and where, over every step-th "
        "float32 bit pattern from first to last and the same with the sign bit, on every usable "
        "target, against the C library in double precision. References below `flush` in magnitude "
        "count as 0.");
  m.def("sweep_narrow", sweep_narrow, py::arg("dtype"), py::arg("threads") = 1,
        "{target: count}: how many of all float32 a target converts to bfloat16 or float16 "
        "otherwise than IEEE 754 says (nearest even; NaN quiet, with what fits of its payload).");
}

}  // namespace lanewise
