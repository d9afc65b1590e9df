#include "check.h"
#include "dispatch/table.h"

namespace lanewise {

namespace {

void check_table(const char* op, const char* arg, const Tensor& table, const Tensor& x) {
  require_cpu(op, arg, table);
  require_dtype(op, arg, table, ScalarType::Float);
  require(table.dim() == 2 || table.dim() == 3, op, arg,
          " must have shape [seq, pairs] or [batch, seq, pairs], got ", shape_of(table));
  const int64_t seq = table.size(table.dim() - 2), pairs = table.size(table.dim() - 1);
  require(seq == x.size(2), op, arg, " has ", seq, " positions, which is not x's ", x.size(2));
  require(table.dim() == 2 || table.size(0) == x.size(0), op, arg, " has batch size ",
          table.size(0), ", which is not x's ", x.size(0));
  require(2 * pairs <= x.size(3), op, arg, " rotates ", 2 * pairs, " elements, more than x's ",
          x.size(3));
  require_unit_stride(op, arg, table);
}

Tensor rotate(const char* op, const char* arg, const Tensor& x, const Tensor& cos,
              const Tensor& sin, bool interleaved, bool inverse) {
  require_cpu(op, arg, x);
  const DType dtype = dtype_of(op, arg, x);
  require_rank(op, arg, x, 4);
  require_unit_stride(op, arg, x);
  check_table(op, "cos", cos, x);
  check_table(op, "sin", sin, x);
  const int64_t half = cos.size(cos.dim() - 1);
  require(sin.size(sin.dim() - 1) == half, op, "sin has ", sin.size(sin.dim() - 1),
          " pairs, which is not cos's ", half);

  Tensor out = empty_cpu(x.sizes(), x.scalar_type());
  if (x.numel() == 0) return out;
  const auto batch_stride = [](const Tensor& t) { return t.dim() == 3 ? t.stride(0) : 0; };
  table().rope({
      .dtype = dtype,
      .batch = x.size(0),
      .heads = x.size(1),
      .seq = x.size(2),
      .dim = x.size(3),
      .half = half,
      .interleaved = interleaved,
      .inverse = inverse,
      .x = x.const_data_ptr(),
      .x_batch = x.stride(0),
      .x_head = x.stride(1),
      .x_seq = x.stride(2),
      .cos = cos.const_data_ptr<float>(),
      .sin = sin.const_data_ptr<float>(),
      .cos_batch = batch_stride(cos),
      .cos_seq = cos.stride(cos.dim() - 2),
      .sin_batch = batch_stride(sin),
      .sin_seq = sin.stride(sin.dim() - 2),
      .out = out.mutable_data_ptr(),
      .out_batch = out.stride(0),
      .out_head = out.stride(1),
      .out_seq = out.stride(2),
      .threads = thread_count(),
  });
  return out;
}

Tensor rope(const Tensor& x, const Tensor& cos, const Tensor& sin, bool interleaved) {
  return rotate("rope", "x", x, cos, sin, interleaved, false);
}

Tensor rope_backward(const Tensor& grad, const Tensor& cos, const Tensor& sin, bool interleaved) {
  return rotate("rope_backward", "grad", grad, cos, sin, interleaved, true);
}

STABLE_TORCH_LIBRARY_IMPL(lanewise, CPU, m) {
  m.impl("rope", TORCH_BOX(&rope));
  m.impl("rope_backward", TORCH_BOX(&rope_backward));
}

}  // namespace

}  // namespace lanewise
