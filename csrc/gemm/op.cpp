#include "gemm/op.h"

#include <vector>

#include "activation/parse.h"
#include "dispatch/table.h"

namespace lanewise {

namespace {

// A tensor seen as rows of its last dimension. `tensor` keeps a copy alive where the leading
// dimensions do not step evenly.
struct RowsOf {
  Tensor tensor;
  int64_t rows, cols;
  MatrixRef ref;
};

// The one stride of all leading dimensions, or -1 where there is none.
int64_t even_stride(const Tensor& t) {
  int64_t stride = -1, expected = -1;
  for (int64_t d = t.dim() - 2; d >= 0; --d) {
    if (t.size(d) == 1) continue;
    if (stride < 0)
      stride = t.stride(d);
    else if (t.stride(d) != expected)
      return -1;
    expected = t.stride(d) * t.size(d);
  }
  return stride < 0 ? t.size(t.dim() - 1) : stride;
}

RowsOf rows_of(const char* op, const char* arg, const Tensor& given) {
  const DType dtype = dtype_of(op, arg, given);
  const auto sizes = given.sizes();
  const int64_t cols = sizes.back();
  int64_t rows = 1;
  for (size_t d = 0; d + 1 < sizes.size(); ++d) rows *= sizes[d];
  int64_t stride = given.numel() == 0 ? 0 : even_stride(given);
  Tensor t = given;
  if (stride < 0) {
    t = torch::stable::contiguous(given);
    stride = cols;
  }
  return {t, rows, cols, {t.const_data_ptr(), dtype, stride, t.stride(t.dim() - 1)}};
}

// An expanded view can have any size without having memory. Below this one no product of an extent
// with the width of a panel and the size of an element overflows.
constexpr int64_t kMostExtent = int64_t{1} << 46;

void require_extents(const char* op, const char* arg, const Tensor& t) {
  for (const int64_t extent : t.sizes())
    require(extent <= kMostExtent, op, arg, " must have no dimension above 2^46, got shape ",
            shape_of(t));
}

void check_weight(const char* op, const char* arg, const Tensor& w, int64_t in_features,
                  ScalarType type) {
  require_cpu(op, arg, w);
  require_dtype(op, arg, w, type);
  require_rank(op, arg, w, 2);
  require_extents(op, arg, w);
  require(w.size(1) == in_features, op, arg, " has ", w.size(1),
          " input features, which is not x's ", in_features);
}

void check_x(const char* op, const char* arg, const Tensor& x) {
  require_cpu(op, arg, x);
  dtype_of(op, arg, x);
  require(x.dim() >= 1, op, arg, " must have at least 1 dimension, got shape []");
  require_extents(op, arg, x);
}

// weight [n, k] as the right operand [k, n].
RightRef transposed(const Tensor& w, DType dtype) {
  return {.matrix = {w.const_data_ptr(), dtype, w.stride(1), w.stride(0)}};
}

void require_own_or_float(const char* op, const char* arg, const Tensor& t, ScalarType own) {
  require(t.scalar_type() == own || t.scalar_type() == ScalarType::Float, op, arg, " must be ",
          name_of(own), own == ScalarType::Float ? "" : " or float32", ", got ",
          name_of(t.scalar_type()));
}

std::vector<int64_t> with_last(const Tensor& x, int64_t n) {
  std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
  sizes.back() = n;
  return sizes;
}

Tensor empty_float(const Tensor& like, std::vector<int64_t> sizes) {
  return torch::stable::new_empty(like, sizes, ScalarType::Float);
}

}  // namespace

WeightRef weight_argument(const char* op, const char* arg, const Tensor& weight,
                          int64_t in_features, const Tensor& x) {
  const DType dtype = dtype_of(op, "x", x);
  if (weight.scalar_type() == ScalarType::Byte)
    return {unpack_argument(op, arg, weight, in_features, dtype), weight.size(0)};
  check_weight(op, arg, weight, in_features, x.scalar_type());
  return {transposed(weight, dtype), weight.size(0)};
}

VectorRef bias_argument(const char* op, const char* arg, const MaybeTensor& bias, int64_t n,
                        ScalarType type) {
  if (!bias) return {};
  require_cpu(op, arg, *bias);
  require_own_or_float(op, arg, *bias, type);
  require_rank(op, arg, *bias, 1);
  require(bias->size(0) == n, op, arg, " has ", bias->size(0), " elements, which is not the ", n,
          " output features");
  require_unit_stride(op, arg, *bias);
  return {bias->const_data_ptr(), dtype_of(op, arg, *bias)};
}

Tensor run_linear(const char* op, const Tensor& x, const WeightRef& weight, const VectorRef& bias,
                  const MaybeTensor& residual, const std::string& activation) {
  const Activation act = parse_activation(op, activation);
  const int64_t n = weight.out_features;
  const std::vector<int64_t> sizes = with_last(x, n);
  std::optional<RowsOf> added;
  if (residual) {
    require_cpu(op, "residual", *residual);
    require_own_or_float(op, "residual", *residual, x.scalar_type());
    require(has_shape(*residual, sizes), op, "residual must have the output's shape ",
            shape_of(sizes), ", got ", shape_of(*residual));
    require_unit_stride(op, "residual", *residual);
    added = rows_of(op, "residual", *residual);
  }
  const RowsOf rows = rows_of(op, "x", x);
  Tensor out = empty_cpu(sizes, residual ? residual->scalar_type() : x.scalar_type());
  table().gemm({
      .m = rows.rows,
      .n = n,
      .k = rows.cols,
      .a = rows.ref,
      .b = weight.right,
      .bias = bias,
      .activation = act,
      .residual = added && out.numel() ? added->ref : MatrixRef{},
      .out = out.mutable_data_ptr(),
      .out_dtype = added ? added->ref.dtype : rows.ref.dtype,
      .out_stride = n,
      .threads = thread_count(),
  });
  return out;
}

Tensor run_gated(const char* op, const Tensor& x, const WeightRef& gate, const WeightRef& up,
                 const VectorRef& gate_bias, const VectorRef& up_bias,
                 const std::string& activation, const GatedSums* kept) {
  const Activation act = parse_activation(op, activation);
  const int64_t n = gate.out_features;
  require(up.out_features == n, op, "up has ", up.out_features,
          " output features, which is not gate's ", n);
  const RowsOf rows = rows_of(op, "x", x);
  Tensor out = empty_cpu(with_last(x, n), x.scalar_type());
  table().gemm({
      .m = rows.rows,
      .n = n,
      .k = rows.cols,
      .a = rows.ref,
      .b = up.right,
      .gated = true,
      .gate = gate.right,
      .bias = up_bias,
      .gate_bias = gate_bias,
      .activation = act,
      .kept_gate = kept ? static_cast<float*>(kept->gate.mutable_data_ptr()) : nullptr,
      .kept = kept ? static_cast<float*>(kept->up.mutable_data_ptr()) : nullptr,
      .out = out.mutable_data_ptr(),
      .out_dtype = rows.ref.dtype,
      .out_stride = n,
      .threads = thread_count(),
  });
  return out;
}

namespace {

// The weights of one op are all plain, or all packed.
WeightRef plain(const char* op, const char* arg, const Tensor& weight, const Tensor& x) {
  check_weight(op, arg, weight, x.size(x.dim() - 1), x.scalar_type());
  return {transposed(weight, dtype_of(op, arg, weight)), weight.size(0)};
}

WeightRef packed(const char* op, const char* arg, const Tensor& weight, const Tensor& x) {
  const DType dtype = dtype_of(op, "x", x);
  return {unpack_argument(op, arg, weight, x.size(x.dim() - 1), dtype), weight.size(0)};
}

Tensor linear_with(const char* op, const Tensor& x, const WeightRef& weight,
                   const MaybeTensor& bias, const MaybeTensor& residual,
                   const std::string& activation) {
  parse_activation(op, activation);
  const VectorRef vector = bias_argument(op, "bias", bias, weight.out_features, x.scalar_type());
  return run_linear(op, x, weight, vector, residual, activation);
}

Tensor linear(const Tensor& x, const Tensor& weight, const MaybeTensor& bias,
              const MaybeTensor& residual, const std::string& activation) {
  check_x("linear", "x", x);
  return linear_with("linear", x, plain("linear", "weight", weight, x), bias, residual, activation);
}

Tensor linear_packed(const Tensor& x, const Tensor& weight, const MaybeTensor& bias,
                     const MaybeTensor& residual, const std::string& activation) {
  const char* op = "linear_packed";
  check_x(op, "x", x);
  return linear_with(op, x, packed(op, "weight", weight, x), bias, residual, activation);
}

Tensor gated_with(const char* op, const Tensor& x, const WeightRef& gate, const WeightRef& up,
                  const MaybeTensor& gate_bias, const MaybeTensor& up_bias,
                  const std::string& activation, const GatedSums* kept = nullptr) {
  parse_activation(op, activation);
  const int64_t n = gate.out_features;
  const VectorRef gate_vector = bias_argument(op, "gate_bias", gate_bias, n, x.scalar_type());
  const VectorRef up_vector = bias_argument(op, "up_bias", up_bias, n, x.scalar_type());
  return run_gated(op, x, gate, up, gate_vector, up_vector, activation, kept);
}

void check_same_width(const char* op, const Tensor& gate, const Tensor& up) {
  require(gate.size(0) == up.size(0), op, "up has ", up.size(0),
          " output features, which is not gate's ", gate.size(0));
}

void check_gated(const char* op, const Tensor& x, const Tensor& gate, const Tensor& up) {
  check_x(op, "x", x);
  check_weight(op, "gate", gate, x.size(x.dim() - 1), x.scalar_type());
  check_weight(op, "up", up, x.size(x.dim() - 1), x.scalar_type());
  check_same_width(op, gate, up);
}

Tensor gated_linear(const Tensor& x, const Tensor& gate, const Tensor& up,
                    const MaybeTensor& gate_bias, const MaybeTensor& up_bias,
                    const std::string& activation) {
  const char* op = "gated_linear";
  check_gated(op, x, gate, up);
  return gated_with(op, x, plain(op, "gate", gate, x), plain(op, "up", up, x), gate_bias, up_bias,
                    activation);
}

std::tuple<Tensor, Tensor, Tensor> gated_linear_for_backward(const Tensor& x, const Tensor& gate,
                                                             const Tensor& up,
                                                             const MaybeTensor& gate_bias,
                                                             const MaybeTensor& up_bias,
                                                             const std::string& activation) {
  const char* op = "gated_linear";  // which it is to whoever made the mistake
  check_gated(op, x, gate, up);
  const Sizes sizes = with_last(x, gate.size(0));
  const GatedSums kept = {empty_cpu(sizes, ScalarType::Float), empty_cpu(sizes, ScalarType::Float)};
  Tensor out = gated_with(op, x, plain(op, "gate", gate, x), plain(op, "up", up, x), gate_bias,
                          up_bias, activation, &kept);
  return {out, kept.gate, kept.up};
}

Tensor gated_linear_packed(const Tensor& x, const Tensor& gate, const Tensor& up,
                           const MaybeTensor& gate_bias, const MaybeTensor& up_bias,
                           const std::string& activation) {
  const char* op = "gated_linear_packed";
  check_x(op, "x", x);
  const WeightRef gate_panels = packed(op, "gate", gate, x), up_panels = packed(op, "up", up, x);
  check_same_width(op, gate, up);
  return gated_with(op, x, gate_panels, up_panels, gate_bias, up_bias, activation);
}

Tensor pack_weight(const Tensor& weight) {
  const char* op = "pack_weight";
  require_cpu(op, "weight", weight);
  const DType dtype = dtype_of(op, "weight", weight);
  require_rank(op, "weight", weight, 2);
  const int64_t n = weight.size(0), k = weight.size(1);
  const int64_t row = packed_row(n, k, dtype, table().panel_width);
  require(row >= 0, op, "weight is too large to pack, got shape ", shape_of(weight));
  Tensor packed = torch::stable::new_zeros(weight, {n, row}, ScalarType::Byte);
  if (n == 0) return packed;
  char* data = static_cast<char*>(packed.mutable_data_ptr());
  const PackedHeader header = make_header(n, k, dtype);
  std::memcpy(data, &header, sizeof header);
  table().pack_panels({
      .matrix = transposed(weight, dtype).matrix,
      .n = n,
      .k = k,
      .panels = data + sizeof header,
      .threads = thread_count(),
  });
  return packed;
}

// z = x · weightᵀ + bias, what the activation saw, which the forward does not keep.
void recompute(const RowsOf& x, const Tensor& weight, const VectorRef& bias, Tensor& z) {
  table().gemm({
      .m = x.rows,
      .n = weight.size(0),
      .k = x.cols,
      .a = x.ref,
      .b = transposed(weight, x.ref.dtype),
      .bias = bias,
      .out = z.mutable_data_ptr(),
      .out_dtype = DType::f32,
      .out_stride = weight.size(0),
      .threads = thread_count(),
  });
}

// grad_x = dz · weight, plus `residual` where given.
void input_gradient(const RowsOf& dz, const Tensor& weight, const MatrixRef& residual,
                    const Tensor& out, DType out_dtype) {
  table().gemm({
      .m = dz.rows,
      .n = weight.size(1),
      .k = weight.size(0),
      .a = dz.ref,
      .b = {.matrix = {weight.const_data_ptr(), dtype_of("linear", "weight", weight),
                       weight.stride(0), weight.stride(1)}},
      .residual = residual,
      .out = out.mutable_data_ptr(),
      .out_dtype = out_dtype,
      .out_stride = weight.size(1),
      .threads = thread_count(),
  });
}

// grad_weight = dzᵀ · x.
Tensor weight_gradient(const RowsOf& dz, const RowsOf& x, const Tensor& weight) {
  Tensor out = torch::stable::new_empty(weight, {weight.size(0), weight.size(1)});
  table().gemm({
      .m = dz.cols,
      .n = x.cols,
      .k = dz.rows,
      .a = {dz.ref.data, dz.ref.dtype, dz.ref.col_stride, dz.ref.row_stride},
      .b = {.matrix = x.ref},
      .out = out.mutable_data_ptr(),
      .out_dtype = x.ref.dtype,
      .out_stride = x.cols,
      .threads = thread_count(),
  });
  return out;
}

Tensor bias_gradient(const RowsOf& dz, const MaybeTensor& bias, const Tensor& like) {
  Tensor out =
      bias ? torch::stable::new_empty(*bias, {dz.cols}) : torch::stable::new_empty(like, {dz.cols});
  table().column_sum({
      .a = dz.ref.data,
      .dtype = dz.ref.dtype,
      .rows = dz.rows,
      .cols = dz.cols,
      .row_stride = dz.ref.row_stride,
      .out = out.mutable_data_ptr(),
      .out_dtype = dtype_of("linear", "bias", out),
      .threads = thread_count(),
  });
  return out;
}

void check_grad(const char* op, const Tensor& grad, const Tensor& x, int64_t n) {
  require_cpu(op, "grad", grad);
  require_own_or_float(op, "grad", grad, x.scalar_type());
  const std::vector<int64_t> sizes = with_last(x, n);
  require(has_shape(grad, sizes), op, "grad must have the output's shape ", shape_of(sizes),
          ", got ", shape_of(grad));
  require_unit_stride(op, "grad", grad);
}

Tensor nothing(const Tensor& like) { return torch::stable::new_empty(like, {0}); }

RowsOf float_rows(const Tensor& t, int64_t rows, int64_t cols) {
  return {t, rows, cols, {t.const_data_ptr(), DType::f32, cols, 1}};
}

std::tuple<Tensor, Tensor, Tensor> linear_backward(const Tensor& grad, const Tensor& x,
                                                   const Tensor& weight, const MaybeTensor& bias,
                                                   const std::string& activation, bool needs_x,
                                                   bool needs_weight, bool needs_bias) {
  const char* op = "linear_backward";
  check_x(op, "x", x);
  check_weight(op, "weight", weight, x.size(x.dim() - 1), x.scalar_type());
  const int64_t n = weight.size(0);
  check_grad(op, grad, x, n);
  const Activation act = parse_activation(op, activation);
  const VectorRef bias_vector = bias_argument(op, "bias", bias, n, x.scalar_type());

  const RowsOf rows = rows_of(op, "x", x);
  RowsOf dz = rows_of(op, "grad", grad);
  if (act != Activation::none) {
    Tensor z = empty_float(x, {rows.rows, n});
    recompute(rows, weight, bias_vector, z);
    table().activation_backward({
        .activation = act,
        .rows = rows.rows,
        .cols = n,
        .z = z.mutable_data_ptr<float>(),
        .z_row_stride = n,
        .up = nullptr,
        .up_row_stride = 0,
        .grad = dz.ref.data,
        .grad_dtype = dz.ref.dtype,
        .grad_row_stride = dz.ref.row_stride,
        .threads = thread_count(),
    });
    dz = float_rows(z, rows.rows, n);
  }
  Tensor grad_x = nothing(x), grad_weight = nothing(x), grad_bias = nothing(x);
  if (needs_x) {
    grad_x = empty_cpu(x.sizes(), x.scalar_type());
    input_gradient(dz, weight, {}, grad_x, rows.ref.dtype);
  }
  if (needs_weight) grad_weight = weight_gradient(dz, rows, weight);
  if (needs_bias) grad_bias = bias_gradient(dz, bias, x);
  return {grad_x, grad_weight, grad_bias};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> gated_linear_backward(
    const Tensor& grad, const Tensor& x, const Tensor& gate, const Tensor& up,
    const Tensor& gate_sums, const Tensor& up_sums, const MaybeTensor& gate_bias,
    const MaybeTensor& up_bias, const std::string& activation, bool needs_x, bool needs_weight,
    bool needs_bias) {
  const char* op = "gated_linear_backward";
  check_gated(op, x, gate, up);
  const int64_t n = gate.size(0);
  check_grad(op, grad, x, n);
  const Activation act = parse_activation(op, activation);
  bias_argument(op, "gate_bias", gate_bias, n, x.scalar_type());
  bias_argument(op, "up_bias", up_bias, n, x.scalar_type());

  const RowsOf rows = rows_of(op, "x", x);
  const RowsOf dout = rows_of(op, "grad", grad);
  // Copies: what the forward kept may serve another backward.
  const auto copy = [&](const char* arg, const Tensor& sums) {
    require_cpu(op, arg, sums);
    require_dtype(op, arg, sums, ScalarType::Float);
    require(has_shape(sums, with_last(x, n)) && sums.is_contiguous(), op, arg,
            " must be contiguous and have the output's shape ", shape_of(with_last(x, n)), ", got ",
            shape_of(sums));
    return torch::stable::clone(sums);
  };
  Tensor gate_grads = copy("gate_sums", gate_sums), up_grads = copy("up_sums", up_sums);
  table().activation_backward({
      .activation = act,
      .rows = rows.rows,
      .cols = n,
      .z = gate_grads.mutable_data_ptr<float>(),
      .z_row_stride = n,
      .up = up_grads.mutable_data_ptr<float>(),
      .up_row_stride = n,
      .grad = dout.ref.data,
      .grad_dtype = dout.ref.dtype,
      .grad_row_stride = dout.ref.row_stride,
      .threads = thread_count(),
  });
  const RowsOf dgate = float_rows(gate_grads, rows.rows, n);
  const RowsOf dup = float_rows(up_grads, rows.rows, n);

  Tensor grad_x = nothing(x), grad_gate = nothing(x), grad_up = nothing(x);
  Tensor grad_gate_bias = nothing(x), grad_up_bias = nothing(x);
  if (needs_x) {
    // Both halves are summed in float32 and rounded once.
    Tensor half = empty_float(x, {rows.rows, rows.cols});
    grad_x = empty_cpu(x.sizes(), x.scalar_type());
    input_gradient(dgate, gate, {}, half, DType::f32);
    input_gradient(dup, up, {half.const_data_ptr(), DType::f32, rows.cols, 1}, grad_x,
                   rows.ref.dtype);
  }
  if (needs_weight) {
    grad_gate = weight_gradient(dgate, rows, gate);
    grad_up = weight_gradient(dup, rows, up);
  }
  if (needs_bias) {
    grad_gate_bias = bias_gradient(dgate, gate_bias, x);
    grad_up_bias = bias_gradient(dup, up_bias, x);
  }
  return {grad_x, grad_gate, grad_up, grad_gate_bias, grad_up_bias};
}

// The leading dimensions of a matmul, broadcast against each other.
std::vector<int64_t> broadcast_batch(const Tensor& a, const Tensor& b) {
  const int64_t rank = std::max(a.dim(), b.dim()) - 2;
  std::vector<int64_t> sizes(rank);
  const auto size = [&](const Tensor& t, int64_t d) {
    const int64_t own = d - (rank - (t.dim() - 2));
    return own < 0 ? 1 : t.size(own);
  };
  for (int64_t d = 0; d < rank; ++d) {
    const int64_t x = size(a, d), y = size(b, d);
    require(x == y || x == 1 || y == 1, "matmul", "b's batch shape ", shape_of(b),
            " does not broadcast with a's ", shape_of(a));
    sizes[d] = x == 1 ? y : x;
  }
  return sizes;
}

// Where each matrix of the broadcast batch begins in t.
std::vector<int64_t> batch_offsets(const Tensor& t, const std::vector<int64_t>& batch,
                                   int64_t count) {
  const int64_t rank = static_cast<int64_t>(batch.size()), missing = rank - (t.dim() - 2);
  std::vector<int64_t> offsets(count);
  for (int64_t i = 0; i < count; ++i) {
    int64_t rest = i, offset = 0;
    for (int64_t d = rank - 1; d >= missing; --d) {
      const int64_t index = rest % batch[d];
      rest /= batch[d];
      if (t.size(d - missing) > 1) offset += index * t.stride(d - missing);
    }
    offsets[i] = offset;
  }
  return offsets;
}

Tensor matmul(const Tensor& a, const Tensor& b) {
  const char* op = "matmul";
  require_cpu(op, "a", a);
  require_cpu(op, "b", b);
  const DType dtype = dtype_of(op, "a", a);
  require_dtype(op, "b", b, a.scalar_type());
  require(a.dim() >= 2, op, "a must have at least 2 dimensions, got shape ", shape_of(a));
  require(b.dim() >= 2, op, "b must have at least 2 dimensions, got shape ", shape_of(b));
  const int64_t m = a.size(a.dim() - 2), k = a.size(a.dim() - 1), n = b.size(b.dim() - 1);
  require_extents(op, "a", a);
  require_extents(op, "b", b);
  require(b.size(b.dim() - 2) == k, op, "b has ", b.size(b.dim() - 2), " rows, which is not a's ",
          k, " columns");
  const std::vector<int64_t> batch = broadcast_batch(a, b);
  std::vector<int64_t> sizes = batch;
  sizes.insert(sizes.end(), {m, n});
  Tensor out = empty_cpu(sizes, a.scalar_type());
  if (out.numel() == 0) return out;
  int64_t count = 1;
  for (int64_t s : batch) count *= s;
  std::vector<int64_t> a_offsets, b_offsets, out_offsets;
  if (count > 1) {
    a_offsets = batch_offsets(a, batch, count);
    b_offsets = batch_offsets(b, batch, count);
    out_offsets.resize(count);
    for (int64_t i = 0; i < count; ++i) out_offsets[i] = i * m * n;
  }
  table().gemm({
      .batch = count,
      .m = m,
      .n = n,
      .k = k,
      .a = {a.const_data_ptr(), dtype, a.stride(a.dim() - 2), a.stride(a.dim() - 1)},
      .b = {.matrix = {b.const_data_ptr(), dtype, b.stride(b.dim() - 2), b.stride(b.dim() - 1)}},
      .out = out.mutable_data_ptr(),
      .out_dtype = dtype,
      .out_stride = n,
      .a_offsets = count > 1 ? a_offsets.data() : nullptr,
      .b_offsets = count > 1 ? b_offsets.data() : nullptr,
      .out_offsets = count > 1 ? out_offsets.data() : nullptr,
      .threads = thread_count(),
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(lanewise, CPU, m) {
  m.impl("matmul", TORCH_BOX(&matmul));
  m.impl("linear", TORCH_BOX(&linear));
  m.impl("linear_backward", TORCH_BOX(&linear_backward));
  m.impl("gated_linear", TORCH_BOX(&gated_linear));
  m.impl("gated_linear_for_backward", TORCH_BOX(&gated_linear_for_backward));
  m.impl("gated_linear_backward", TORCH_BOX(&gated_linear_backward));
  m.impl("pack_weight", TORCH_BOX(&pack_weight));
  m.impl("linear_packed", TORCH_BOX(&linear_packed));
  m.impl("gated_linear_packed", TORCH_BOX(&gated_linear_packed));
}

}  // namespace

}  // namespace lanewise
