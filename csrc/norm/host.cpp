#include "host.h"

#include <pybind11/stl.h>

#include <optional>

namespace lanewise {

namespace {

using MaybeArray = std::optional<py::array>;

Rows rows_of(const py::array& a) { return {1, a.shape(0), 0, 0, stride(a, 0)}; }
Rows rows_of(const MaybeArray& a) { return a ? rows_of(*a) : Rows{1, 1, 0, 0, 0}; }
const void* data(const MaybeArray& a) { return a ? a->data() : nullptr; }
DType dtype_or_f32(const MaybeArray& a) { return a ? dtype_of(*a) : DType::f32; }

void norm(const std::string& target, bool centred, py::array x, MaybeArray residual,
          MaybeArray weight, MaybeArray bias, py::array y, std::optional<py::array> sum, float eps,
          float weight_offset, int threads) {
  table(target).norm({
      .dtype = dtype_of(x),
      .centred = centred,
      .rows = x.shape(0),
      .cols = x.shape(1),
      .eps = eps,
      .weight_offset = weight_offset,
      .x = x.data(),
      .x_rows = rows_of(x),
      .residual = data(residual),
      .residual_rows = rows_of(residual),
      .weight = data(weight),
      .weight_dtype = dtype_or_f32(weight),
      .bias = data(bias),
      .bias_dtype = dtype_or_f32(bias),
      .after = nullptr,
      .after_rows = {},
      .y = y.mutable_data(),
      .sum = sum ? sum->mutable_data() : nullptr,
      .threads = threads,
  });
}

void norm_backward(const std::string& target, bool centred, py::array grad, MaybeArray grad_sum,
                   py::array x, MaybeArray residual, MaybeArray weight, py::array grad_x,
                   std::optional<py::array> grad_weight,
                   std::optional<py::array_t<float>> grad_bias, float eps, float weight_offset,
                   int threads) {
  const int64_t rows = x.shape(0), cols = x.shape(1);
  const int64_t chunks = rows < 1 ? 1 : rows < kNormChunks ? rows : kNormChunks;
  std::vector<float> partials(chunks * 2 * cols);
  table(target).norm_backward({
      .dtype = dtype_of(x),
      .centred = centred,
      .rows = rows,
      .cols = cols,
      .eps = eps,
      .weight_offset = weight_offset,
      .grad = grad.data(),
      .grad_rows = rows_of(grad),
      .grad_sum = data(grad_sum),
      .grad_sum_rows = rows_of(grad_sum),
      .x = x.data(),
      .x_rows = rows_of(x),
      .residual = data(residual),
      .residual_rows = rows_of(residual),
      .weight = data(weight),
      .weight_dtype = dtype_or_f32(weight),
      .grad_x = grad_x.mutable_data(),
      .grad_weight = grad_weight ? grad_weight->mutable_data() : nullptr,
      .grad_bias = grad_bias ? grad_bias->mutable_data() : nullptr,
      .partials = partials.data(),
      .chunks = chunks,
      .threads = threads,
  });
}

}  // namespace

void bind_norm(py::module_& m) {
  m.def("norm", norm, py::arg("target"), py::arg("centred"), py::arg("x"), py::arg("residual"),
        py::arg("weight"), py::arg("bias"), py::arg("y"), py::arg("sum"), py::arg("eps"),
        py::arg("weight_offset") = 0.0f, py::arg("threads") = 1,
        "Normalises the rows of x [rows, cols], or of x + residual, into y, the sum into sum.");
  m.def("norm_backward", norm_backward, py::arg("target"), py::arg("centred"), py::arg("grad"),
        py::arg("grad_sum"), py::arg("x"), py::arg("residual"), py::arg("weight"),
        py::arg("grad_x"), py::arg("grad_weight"), py::arg("grad_bias").noconvert(), py::arg("eps"),
        py::arg("weight_offset") = 0.0f, py::arg("threads") = 1,
        "The gradients of norm; grad_bias is float32, grad_weight of weight's dtype.");
}

}  // namespace lanewise
