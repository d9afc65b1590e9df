// The machine's limits, measured by the same code generator and threads as the kernels.
#include "host.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <vector>

namespace lanewise {

namespace {

void require_positive(const char* name, double value) {
  if (!(value > 0)) throw std::invalid_argument(std::string(name) + " must be positive");
}

// The shortest time of one call of f, in seconds, over calls that fill `seconds` (three at least):
// machines are shared, so that the best is the one that was left alone.
template <class F>
double best_time(double seconds, F&& f) {
  using Clock = std::chrono::steady_clock;
  const auto since = [](Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  const Clock::time_point begin = Clock::now();
  f();  // wakes the threads and maps the pages
  double best = 1e30;
  for (int calls = 0; calls < 3 || since(begin) < seconds; ++calls) {
    const Clock::time_point start = Clock::now();
    f();
    best = std::min(best, since(start));
  }
  return best;
}

// GFLOP/s of a probe.
double rate_of(void (*probe)(const FmaProbe&), int64_t round_flops, int threads, double seconds) {
  require_positive("threads", threads);
  constexpr int64_t kRounds = 1 << 17;  // at least 0.3 ms: a region's 1.2 µs do not show
  std::vector<float> sink(threads);
  py::gil_scoped_release release;
  const double best =
      best_time(seconds, [&] { probe({kRounds, 0.9f, 0.1f, sink.data(), threads}); });
  return static_cast<double>(round_flops) * kRounds * threads / best * 1e-9;
}

double fma_rate(const std::string& target, int threads, double seconds) {
  const Table& t = table(target);
  return rate_of(t.fma_probe, t.fma_round_flops(), threads, seconds);
}

double pair_rate(const std::string& target, int threads, double seconds) {
  const Table& t = table(target);
  return rate_of(t.pair_probe, t.pair_round_flops(), threads, seconds);
}

double read_bandwidth(const std::string& target, int threads, int64_t bytes, double seconds) {
  require_positive("threads", threads);
  require_positive("bytes", bytes);
  const Table& t = table(target);
  const int64_t count = bytes / static_cast<int64_t>(sizeof(float));
  const std::unique_ptr<float[]> x(new float[count]);
  std::fill_n(x.get(), count, 1.0f);
  std::vector<float> sink(threads);
  // A small array is read many times in one region, which would otherwise be what is measured.
  constexpr int64_t kEnough = 16 << 20;
  const int64_t rounds = std::max(int64_t{1}, kEnough / bytes);
  py::gil_scoped_release release;
  const double best =
      best_time(seconds, [&] { t.read_probe({x.get(), count, rounds, sink.data(), threads}); });
  return static_cast<double>(bytes) * static_cast<double>(rounds) / best * 1e-9;
}

// A chain of instructions of one cycle each, all of which wait for the one before. Additions of a
// constant would not do: some CPUs fold them while renaming registers.
double clock_rate(double seconds) {
  require_positive("seconds", seconds);
  constexpr int kChain = 16;
  constexpr int64_t kRounds = 1 << 16;  // some 0.3 ms
  py::gil_scoped_release release;
  const double best = best_time(seconds, [&] {
    uint64_t x = 1;
    const uint64_t other = 0x9E3779B97F4A7C15u;
    for (int64_t i = 0; i < kRounds; ++i) {
      for (int j = 0; j < kChain; ++j) {
#if defined(__x86_64__)
        asm volatile("xorq %1, %0" : "+r"(x) : "r"(other));
#elif defined(__aarch64__)
        asm volatile("eor %0, %0, %1" : "+r"(x) : "r"(other));
#else
#error "which instruction takes one cycle here?"
#endif
      }
    }
  });
  return static_cast<double>(kChain) * kRounds / best * 1e-9;
}

}  // namespace

void bind_probe(py::module_& m) {
  m.def("clock_rate", clock_rate, py::arg("seconds") = 0.05,
        "GHz of one core, the best over `seconds`: cycles of a chain of dependent instructions.");
  m.def("fma_rate", fma_rate, py::arg("target"), py::arg("threads") = 1, py::arg("seconds") = 0.2,
        "GFLOP/s of independent multiply-adds in registers, the best over `seconds`: the limit of "
        "whatever computes.");
  m.def("pair_rate", pair_rate, py::arg("target"), py::arg("threads") = 1, py::arg("seconds") = 0.2,
        "GFLOP/s of bfloat16 products summed in float32, by the target's own instruction where it "
        "has one, else as `fma_rate`.");
  m.def("read_bandwidth", read_bandwidth, py::arg("target"), py::arg("threads") = 1,
        py::arg("bytes") = int64_t{200} << 20, py::arg("seconds") = 0.2,
        "GB/s of reading an array of `bytes`, the best over `seconds`: the limit of whatever "
        "streams.");
}

}  // namespace lanewise
