#include "host.h"

#include <pybind11/stl.h>

#include <optional>

#include "activation/parse.h"

namespace lanewise {

namespace {

void activation_backward(const std::string& target, const std::string& activation,
                         py::array_t<float> z, std::optional<py::array_t<float>> up, py::array grad,
                         int threads) {
  table(target).activation_backward({
      .activation = parse_activation("activation_backward", activation),
      .rows = z.shape(0),
      .cols = z.shape(1),
      .z = z.mutable_data(),
      .z_row_stride = stride(z, 0),
      .up = up ? up->mutable_data() : nullptr,
      .up_row_stride = up ? stride(*up, 0) : 0,
      .grad = grad.data(),
      .grad_dtype = dtype_of(grad),
      .grad_row_stride = stride(grad, 0),
      .threads = threads,
  });
}

}  // namespace

void bind_activation(py::module_& m) {
  m.def("activation_backward", activation_backward, py::arg("target"), py::arg("activation"),
        py::arg("z").noconvert(), py::arg("up").noconvert(), py::arg("grad"),
        py::arg("threads") = 1,
        "Turns z [rows, cols], and up where it is given, into their gradients from that of "
        "act(z) or act(z)·up.");
}

}  // namespace lanewise
