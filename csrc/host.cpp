// `lanewise._host`: the torch-free face of the kernels. NumPy in, NumPy out; facts about the CPU.
#include "host.h"

#include <pybind11/stl.h>

#include "dispatch/cpu.h"

namespace lanewise {

namespace {

py::dict cache_sizes() {
  const Caches& c = caches();
  return py::dict(py::arg("l1") = c.l1, py::arg("l2") = c.l2, py::arg("l3") = c.l3);
}

}  // namespace

PYBIND11_MODULE(_host, m) {
  m.doc() = "The torch-free kernels of lanewise, and facts about this CPU.";
  m.def(
      "targets",
      [] {
        py::dict usable;
        for (const Table* t : tables()) usable[t->target] = cpu_runs(t->target);
        return usable;
      },
      "Every target built, lowest level first, and whether this CPU runs it. 'wide' is the 16-lane "
      "source lowered to 8-lane registers: built for tests, never chosen.");
  m.def(
      "isa", [] { return table().target; },
      "The instruction set in use; raises RuntimeError where LANEWISE_ISA asks for one that is "
      "unknown or cannot run here.");
  m.def(
      "lanes", [](const std::string& target) { return table(target).lanes; },
      "float32 lanes of a target's vectors.");
  m.def("cache_sizes", cache_sizes, "Bytes of the data caches: l1 and l2 of a core, l3 shared.");
  bind_activation(m);
  bind_attention(m);
  bind_gemm(m);
  bind_norm(m);
  bind_rope(m);
  bind_simd(m);
}

}  // namespace lanewise
