#include "host.h"

#include <pybind11/stl.h>

#include <optional>

#include "activation/parse.h"
#include "dispatch/cpu.h"
#include "gemm/plan.h"

namespace lanewise {

namespace {

using MaybeArray = std::optional<py::array>;

MatrixRef matrix_ref(const py::array& a) {
  return {a.data(), dtype_of(a), stride(a, 0), stride(a, 1)};
}

VectorRef vector_ref(const MaybeArray& a) {
  return a ? VectorRef{a->data(), dtype_of(*a)} : VectorRef{};
}

// A matrix [k, n], or the panels of one: a 3-dimensional array [panels, k, panel width].
RightRef right_ref(const py::array& b) {
  if (b.ndim() == 3) return {.matrix = {.data = b.data(), .dtype = dtype_of(b)}, .packed = true};
  return {.matrix = matrix_ref(b)};
}

void gemm(const std::string& target, py::array a, py::array b, py::array out, MaybeArray bias,
          MaybeArray residual, MaybeArray gate, MaybeArray gate_bias, const std::string& activation,
          int threads) {
  table(target).gemm({
      .m = out.shape(0),
      .n = out.shape(1),
      .k = a.shape(1),
      .a = matrix_ref(a),
      .b = right_ref(b),
      .gated = gate.has_value(),
      .gate = gate ? right_ref(*gate) : RightRef{},
      .bias = vector_ref(bias),
      .gate_bias = vector_ref(gate_bias),
      .activation = parse_activation("gemm", activation),
      .residual = residual ? matrix_ref(*residual) : MatrixRef{},
      .out = out.mutable_data(),
      .out_dtype = dtype_of(out),
      .out_stride = stride(out, 0),
      .threads = threads,
  });
}

void pack_panels(const std::string& target, py::array b, py::array panels, int threads) {
  table(target).pack_panels({
      .matrix = matrix_ref(b),
      .n = b.shape(1),
      .k = b.shape(0),
      .panels = panels.mutable_data(),
      .threads = threads,
  });
}

void column_sum(const std::string& target, py::array a, py::array out, int threads) {
  table(target).column_sum({
      .a = a.data(),
      .dtype = dtype_of(a),
      .rows = a.shape(0),
      .cols = a.shape(1),
      .row_stride = stride(a, 0),
      .out = out.mutable_data(),
      .out_dtype = dtype_of(out),
      .threads = threads,
  });
}

// By the names of plan.h.
Layout parse_layout(const std::string& name) {
  constexpr const char* kNames[] = {"packed", "columns", "rows", "strided"};
  for (int i = 0; i < 4; ++i)
    if (name == kNames[i]) return static_cast<Layout>(i);
  throw std::invalid_argument("gemm_plan: right must be packed, columns, rows or strided, got '" +
                              name + "'");
}

py::dict plan(int64_t m, int64_t n, int64_t k, const std::string& right, int tile_rows,
              int tile_cols, int64_t l1, int64_t l2, int64_t l3, int threads) {
  constexpr const char* kMethods[] = {"blocked", "dot", "axpy"};
  const GemmPlan p = plan_gemm({m, n, k, parse_layout(right)}, {tile_rows, tile_cols},
                               Caches{l1, l2, l3}, threads);
  return py::dict(py::arg("method") = kMethods[static_cast<int>(p.method)],
                  py::arg("row_threads") = p.row_threads, py::arg("col_threads") = p.col_threads,
                  py::arg("mc") = p.mc, py::arg("nc") = p.nc, py::arg("kc") = p.kc,
                  py::arg("chain") = p.chain, py::arg("far") = p.far);
}

}  // namespace

void bind_gemm(py::module_& m) {
  m.def(
      "panel_width", [](const std::string& target) { return table(target).panel_width; },
      "Columns of a panel of packed weights.");
  m.def("gemm", gemm, py::arg("target"), py::arg("a"), py::arg("b"), py::arg("out"),
        py::arg("bias") = py::none(), py::arg("residual") = py::none(),
        py::arg("gate") = py::none(), py::arg("gate_bias") = py::none(),
        py::arg("activation") = "none", py::arg("threads") = 1,
        "out [m,n] = activation(a [m,k] · b [k,n] + bias) + residual, or with `gate` "
        "activation(a · gate + gate_bias) · (a · b + bias). b and gate may be panels "
        "[panels, k, panel_width] from pack_panels.");
  m.def(
      "pack_panels", pack_panels, py::arg("target"), py::arg("b"), py::arg("panels"),
      py::arg("threads") = 1,
      "Packs b [k,n] into panels [ceil(n / panel_width), k, panel_width]; k is even in bfloat16.");
  m.def("column_sum", column_sum, py::arg("target"), py::arg("a"), py::arg("out"),
        py::arg("threads") = 1, "out [n] = the sum of the rows of a [m,n].");
  m.def("gemm_plan", plan, py::arg("m"), py::arg("n"), py::arg("k"), py::arg("right"),
        py::arg("tile_rows"), py::arg("tile_cols"), py::arg("l1"), py::arg("l2"), py::arg("l3"),
        py::arg("threads"), "How a product is cut into blocks and among threads.");
}

}  // namespace lanewise
