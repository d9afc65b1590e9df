// Shared by the NumPy faces (csrc/*/host.cpp) of the module `lanewise._host`.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "dispatch/table.h"

namespace lanewise {

namespace py = pybind11;

// NumPy has no bfloat16: uint16 stands for its bits.
inline DType dtype_of(const py::array& a) {
  if (a.dtype().is(py::dtype::of<float>())) return DType::f32;
  if (a.dtype().is(py::dtype::of<uint16_t>())) return DType::bf16;
  if (a.dtype().kind() == 'f' && a.itemsize() == 2) return DType::f16;
  throw std::invalid_argument("dtype must be float32, float16 or uint16 (bfloat16's bits)");
}

// The stride of a dimension in elements.
inline int64_t stride(const py::array& a, int dim) { return a.strides(dim) / a.itemsize(); }

// Each family adds its functions; the first argument of every kernel is the target's name.
void bind_activation(py::module_& m);
void bind_attention(py::module_& m);
void bind_gemm(py::module_& m);
void bind_norm(py::module_& m);
void bind_probe(py::module_& m);
void bind_rope(py::module_& m);
void bind_simd(py::module_& m);

}  // namespace lanewise
