#include "host.h"

namespace lanewise {

namespace {

void rope(const std::string& target, py::array x, py::array_t<float> cos, py::array_t<float> sin,
          py::array out, bool interleaved, bool inverse, int threads) {
  table(target).rope({
      .dtype = dtype_of(x),
      .batch = x.shape(0),
      .heads = x.shape(1),
      .seq = x.shape(2),
      .dim = x.shape(3),
      .half = cos.shape(1),
      .interleaved = interleaved,
      .inverse = inverse,
      .x = x.data(),
      .x_batch = stride(x, 0),
      .x_head = stride(x, 1),
      .x_seq = stride(x, 2),
      .cos = cos.data(),
      .sin = sin.data(),
      .cos_batch = 0,
      .cos_seq = stride(cos, 0),
      .sin_batch = 0,
      .sin_seq = stride(sin, 0),
      .out = out.mutable_data(),
      .out_batch = stride(out, 0),
      .out_head = stride(out, 1),
      .out_seq = stride(out, 2),
      .threads = threads,
  });
}

}  // namespace

void bind_rope(py::module_& m) {
  m.def("rope", rope, py::arg("target"), py::arg("x"), py::arg("cos"), py::arg("sin"),
        py::arg("out"), py::arg("interleaved") = false, py::arg("inverse") = false,
        py::arg("threads") = 1, "Rotates x [B,H,S,D] by cos, sin [S,R/2] into out [B,H,S,D].");
}

}  // namespace lanewise
