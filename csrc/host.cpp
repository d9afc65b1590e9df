// `lanewise._host`: the torch-free face of the kernels. NumPy in, NumPy out; facts about the CPU.
#include "host.h"

#include <pybind11/stl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "dispatch/cpu.h"

namespace lanewise {

namespace {

py::dict cache_sizes() {
  const Caches& c = caches();
  return py::dict(py::arg("l1") = c.l1, py::arg("l2") = c.l2, py::arg("l3") = c.l3);
}

// A buffer that touches an unmapped page: a kernel that reads or writes one byte too many dies of
// it.
py::array guarded(int64_t nbytes, bool at_start) {
  if (nbytes < 0) throw std::invalid_argument("nbytes must not be negative");
  const int64_t page = sysconf(_SC_PAGESIZE);
  const int64_t inside = (nbytes + page - 1) / page * page, mapped = inside + 2 * page;
  void* memory = mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  char* first = static_cast<char*>(memory) + page;
  if (inside && mprotect(first, inside, PROT_READ | PROT_WRITE)) throw std::bad_alloc();
  struct Mapping {
    void* memory;
    int64_t size;
    ~Mapping() { munmap(memory, size); }
  };
  py::capsule owner(new Mapping{memory, mapped}, [](void* m) { delete static_cast<Mapping*>(m); });
  return py::array_t<uint8_t>(
      nbytes, reinterpret_cast<uint8_t*>(first) + (at_start ? 0 : inside - nbytes), owner);
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
  m.def("guarded", guarded, py::arg("nbytes"), py::arg("at_start") = false,
        "A uint8 buffer whose end (or start) abuts an unmapped page, zeroed.");
  bind_activation(m);
  bind_attention(m);
  bind_gemm(m);
  bind_norm(m);
  bind_probe(m);
  bind_rope(m);
  bind_simd(m);
}

}  // namespace lanewise
