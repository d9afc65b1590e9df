#include "norm/op.h"

#include <algorithm>
#include <tuple>

#include "dispatch/table.h"

namespace lanewise {

namespace {

// Neighbouring dimensions that one stride serves are one level of rows; nullopt where more than
// three levels remain.
std::optional<Rows> find_rows(const Tensor& t) {
  if (t.numel() == 0) return Rows{1, 1, 0, 0, 0};
  int64_t size[3] = {1, 1, 1}, stride[3] = {0, 0, 0};
  int level = 2;  // filled from the innermost
  bool started = false;
  for (int64_t d = t.dim() - 2; d >= 0; --d) {
    if (t.size(d) == 1) continue;
    if (started && t.stride(d) == stride[level] * size[level]) {
      size[level] *= t.size(d);
      continue;
    }
    if (started && --level < 0) return std::nullopt;
    started = true;
    size[level] = t.size(d);
    stride[level] = t.stride(d);
  }
  return Rows{size[1], size[2], stride[0], stride[1], stride[2]};
}

// A tensor and where its rows lie; it is a dense copy if they lie in no simpler order.
struct RowsOf {
  Tensor tensor;
  Rows rows;

  explicit RowsOf(const Tensor& t) : tensor(t) {
    std::optional<Rows> found = find_rows(t);
    if (!found) {
      tensor = torch::stable::contiguous(t);
      found = find_rows(tensor);
    }
    rows = *found;
  }

  const void* data() const { return tensor.const_data_ptr(); }
};

int64_t cols_of(const Tensor& x) { return x.size(x.dim() - 1); }
int64_t rows_of(const Tensor& x) {
  int64_t rows = 1;
  for (int64_t d = 0; d < x.dim() - 1; ++d) rows *= x.size(d);
  return rows;
}

DType check_x(const char* op, const Tensor& x) {
  require_cpu(op, "x", x);
  const DType dtype = dtype_of(op, "x", x);
  require(x.dim() >= 1, op, "x must have at least one dimension, got shape ", shape_of(x));
  require_unit_stride(op, "x", x);
  return dtype;
}

// A tensor of x's shape and dtype.
void check_like_x(const char* op, const char* arg, const Tensor& t, const Tensor& x) {
  require_cpu(op, arg, t);
  require_dtype(op, arg, t, x.scalar_type());
  require(std::ranges::equal(t.sizes(), x.sizes()), op, arg, " must have x's shape ", shape_of(x),
          ", got ", shape_of(t));
  require_unit_stride(op, arg, t);
}

void check_eps(const char* op, double eps) {
  require_finite(op, "eps", eps);
  require(eps >= 0, op, "eps must not be negative, got ", eps);
}

const void* data(const MaybeTensor& t) { return t ? t->const_data_ptr() : nullptr; }
DType dtype_or_f32(const char* op, const char* arg, const MaybeTensor& t) {
  return t ? dtype_of(op, arg, *t) : DType::f32;
}

std::tuple<Tensor, MaybeTensor> forward(const char* op, const Tensor& x,
                                        const MaybeTensor& residual, const MaybeTensor& after,
                                        const NormVectors& vectors, const NormOptions& options) {
  const auto& [weight, bias] = vectors;
  const DType dtype = check_x(op, x);
  if (residual) check_like_x(op, "residual", *residual, x);
  if (after) check_like_x(op, "after", *after, x);
  if (weight) check_columns(op, "weight", *weight, x);
  if (bias) check_columns(op, "bias", *bias, x);
  check_eps(op, options.eps);
  require_finite(op, "weight_offset", options.weight_offset);

  Tensor y = empty_cpu(x.sizes(), x.scalar_type());
  MaybeTensor sum;
  if (residual) sum = empty_cpu(x.sizes(), x.scalar_type());
  if (x.numel() == 0) return {y, sum};
  const RowsOf x_rows(x), residual_rows(residual ? *residual : x), after_rows(after ? *after : x);
  table().norm({
      .dtype = dtype,
      .centred = options.centred,
      .rows = rows_of(x),
      .cols = cols_of(x),
      .eps = static_cast<float>(options.eps),
      .weight_offset = static_cast<float>(options.weight_offset),
      .x = x_rows.data(),
      .x_rows = x_rows.rows,
      .residual = residual ? residual_rows.data() : nullptr,
      .residual_rows = residual_rows.rows,
      .weight = data(weight),
      .weight_dtype = dtype_or_f32(op, "weight", weight),
      .bias = data(bias),
      .bias_dtype = dtype_or_f32(op, "bias", bias),
      .after = after ? after_rows.data() : nullptr,
      .after_rows = after_rows.rows,
      .y = y.mutable_data_ptr(),
      .sum = sum ? sum->mutable_data_ptr() : nullptr,
      .threads = thread_count(),
  });
  return {y, sum};
}

}  // namespace

void check_columns(const char* op, const char* arg, const Tensor& t, const Tensor& x) {
  require_cpu(op, arg, t);
  require(t.scalar_type() == ScalarType::Float || t.scalar_type() == x.scalar_type(), op, arg,
          " must be float32 or x's ", name_of(x.scalar_type()), ", got ", name_of(t.scalar_type()));
  require(t.dim() == 1 && t.size(0) == cols_of(x), op, arg, " must have shape [", cols_of(x),
          "] like x's last dimension, got ", shape_of(t));
  require_unit_stride(op, arg, t);
}

std::tuple<Tensor, MaybeTensor> run_norm(const char* op, const Tensor& x,
                                         const MaybeTensor& residual, const NormVectors& vectors,
                                         const NormOptions& options) {
  return forward(op, x, residual, {}, vectors, options);
}

Tensor run_norm_then_add(const char* op, const Tensor& x, const Tensor& after,
                         const NormVectors& vectors, const NormOptions& options) {
  return std::get<0>(forward(op, x, {}, after, vectors, options));
}

namespace {

// (grad_x, grad_weight, grad_bias); the gradient of an absent weight has no elements, that of the
// bias is float32, since the bias's own dtype is not known here.
std::tuple<Tensor, Tensor, Tensor> backward(const char* op, const Tensor& grad,
                                            const MaybeTensor& grad_sum, const Tensor& x,
                                            const MaybeTensor& residual, const MaybeTensor& weight,
                                            const NormOptions& options) {
  const DType dtype = check_x(op, x);
  check_like_x(op, "grad", grad, x);
  if (grad_sum) check_like_x(op, "grad_sum", *grad_sum, x);
  if (residual) check_like_x(op, "residual", *residual, x);
  if (weight) check_columns(op, "weight", *weight, x);
  check_eps(op, options.eps);
  require_finite(op, "weight_offset", options.weight_offset);

  const int64_t rows = rows_of(x), cols = cols_of(x);
  const int64_t chunks = std::clamp<int64_t>(rows, 1, kNormChunks);
  Tensor grad_x = empty_cpu(x.sizes(), x.scalar_type());
  Tensor grad_weight =
      empty_cpu({weight ? cols : 0}, weight ? weight->scalar_type() : x.scalar_type());
  Tensor grad_bias = empty_cpu({options.centred ? cols : 0}, ScalarType::Float);
  Tensor partials = empty_cpu({chunks, 2, cols}, ScalarType::Float);
  const RowsOf grad_rows(grad), grad_sum_rows(grad_sum ? *grad_sum : grad), x_rows(x),
      residual_rows(residual ? *residual : x);
  table().norm_backward({
      .dtype = dtype,
      .centred = options.centred,
      .rows = rows,
      .cols = cols,
      .eps = static_cast<float>(options.eps),
      .weight_offset = static_cast<float>(options.weight_offset),
      .grad = grad_rows.data(),
      .grad_rows = grad_rows.rows,
      .grad_sum = grad_sum ? grad_sum_rows.data() : nullptr,
      .grad_sum_rows = grad_sum_rows.rows,
      .x = x_rows.data(),
      .x_rows = x_rows.rows,
      .residual = residual ? residual_rows.data() : nullptr,
      .residual_rows = residual_rows.rows,
      .weight = data(weight),
      .weight_dtype = dtype_or_f32(op, "weight", weight),
      .grad_x = grad_x.mutable_data_ptr(),
      .grad_weight = weight ? grad_weight.mutable_data_ptr() : nullptr,
      .grad_bias = options.centred ? grad_bias.mutable_data_ptr<float>() : nullptr,
      .partials = partials.mutable_data_ptr<float>(),
      .chunks = chunks,
      .threads = thread_count(),
  });
  return {grad_x, grad_weight, grad_bias};
}

Tensor rms_norm(const Tensor& x, const MaybeTensor& weight, double eps, double weight_offset) {
  return std::get<0>(run_norm("rms_norm", x, {}, {weight, {}}, {false, eps, weight_offset}));
}

Tensor layer_norm(const Tensor& x, const MaybeTensor& weight, const MaybeTensor& bias, double eps) {
  return std::get<0>(run_norm("layer_norm", x, {}, {weight, bias}, {true, eps, 0.0}));
}

std::tuple<Tensor, Tensor> add_rms_norm(const Tensor& x, const Tensor& residual,
                                        const MaybeTensor& weight, double eps,
                                        double weight_offset) {
  const auto [y, sum] =
      run_norm("add_rms_norm", x, residual, {weight, {}}, {false, eps, weight_offset});
  return {y, *sum};
}

std::tuple<Tensor, Tensor> add_layer_norm(const Tensor& x, const Tensor& residual,
                                          const MaybeTensor& weight, const MaybeTensor& bias,
                                          double eps) {
  const auto [y, sum] = run_norm("add_layer_norm", x, residual, {weight, bias}, {true, eps, 0.0});
  return {y, *sum};
}

std::tuple<Tensor, Tensor> rms_norm_backward(const Tensor& grad, const MaybeTensor& grad_sum,
                                             const Tensor& x, const MaybeTensor& residual,
                                             const MaybeTensor& weight, double eps,
                                             double weight_offset) {
  const auto [grad_x, grad_weight, _] = backward("rms_norm_backward", grad, grad_sum, x, residual,
                                                 weight, {false, eps, weight_offset});
  return {grad_x, grad_weight};
}

std::tuple<Tensor, Tensor, Tensor> layer_norm_backward(const Tensor& grad,
                                                       const MaybeTensor& grad_sum, const Tensor& x,
                                                       const MaybeTensor& residual,
                                                       const MaybeTensor& weight, double eps) {
  return backward("layer_norm_backward", grad, grad_sum, x, residual, weight, {true, eps, 0.0});
}

STABLE_TORCH_LIBRARY_IMPL(lanewise, CPU, m) {
  m.impl("rms_norm", TORCH_BOX(&rms_norm));
  m.impl("layer_norm", TORCH_BOX(&layer_norm));
  m.impl("add_rms_norm", TORCH_BOX(&add_rms_norm));
  m.impl("add_layer_norm", TORCH_BOX(&add_layer_norm));
  m.impl("rms_norm_backward", TORCH_BOX(&rms_norm_backward));
  m.impl("layer_norm_backward", TORCH_BOX(&layer_norm_backward));
}

}  // namespace

}  // namespace lanewise
