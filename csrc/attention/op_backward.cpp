#include "attention/arguments.h"
#include "dispatch/table.h"

namespace lanewise {

namespace {

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

// The forward's outputs, and the gradients that arrive for them.
struct Outputs {
  const Tensor& grad_out;
  const std::optional<Tensor>& grad_lse;
  const Tensor& out;
  const Tensor& lse;
};

void check_outputs(const char* op, const Outputs& given, ScalarType type, const Sizes& out,
                   const Sizes& lse) {
  const auto check = [&](const char* name, const Tensor& t, ScalarType type, const Sizes& shape) {
    require_cpu(op, name, t);
    require_dtype(op, name, t, type);
    require(has_shape(t, shape), op, name, " must have the shape of the forward's output, ",
            shape_of(shape), ", got ", shape_of(t));
  };
  check("grad_out", given.grad_out, type, out);
  check("out", given.out, type, out);
  check("lse", given.lse, ScalarType::Float, lse);
  if (given.grad_lse) check("grad_lse", *given.grad_lse, ScalarType::Float, lse);
}

// `strides_of` tells the strides of a tensor that is laid out as q.
Gradients gradients(const char* op, const AttentionParams& forward, const Tensor& q,
                    const Tensor& k, const Tensor& v, const AttentionOptions& options,
                    const Outputs& outputs, bool needs_bias, bool needs_sinks,
                    HeadStrides (*strides_of)(const Tensor&)) {
  const std::optional<Tensor>& bias = options.bias;
  require(!needs_bias || (bias && forward.bias_type != BiasType::boolean), op,
          "needs_bias asks for the gradient of a bias that is not floating");
  require(!needs_sinks || options.sinks, op,
          "needs_sinks asks for the gradient of sinks not given");

  const Tensor grad = torch::stable::contiguous(outputs.grad_out),
               output = torch::stable::contiguous(outputs.out),
               lse = torch::stable::contiguous(outputs.lse);
  std::optional<Tensor> grad_norms;
  if (outputs.grad_lse) grad_norms = torch::stable::contiguous(*outputs.grad_lse);
  Tensor delta = torch::stable::new_empty(lse, lse.sizes());
  Tensor norms = torch::stable::new_empty(lse, lse.sizes());
  Tensor grad_q = torch::stable::new_empty(q, q.sizes());
  Tensor grad_q_sums = q.scalar_type() == ScalarType::Float
                           ? grad_q
                           : torch::stable::new_empty(q, q.sizes(), ScalarType::Float);
  Tensor grad_k = torch::stable::new_empty(k, k.sizes());
  Tensor grad_v = torch::stable::new_empty(v, v.sizes());
  Tensor grad_bias = needs_bias ? torch::stable::new_zeros(*bias, bias->sizes(), ScalarType::Float)
                                : torch::stable::new_empty(lse, {0});
  Tensor grad_sinks = torch::stable::new_zeros(lse, {needs_sinks ? forward.heads : 0});

  AttentionBackwardParams p = {
      .forward = forward,
      .grad_out = grad.const_data_ptr(),
      .grad_out_strides = strides_of(grad),
      .grad_lse = grad_norms ? grad_norms->const_data_ptr<float>() : nullptr,
      .delta = delta.mutable_data_ptr<float>(),
      .norms = norms.mutable_data_ptr<float>(),
      .grad_q = grad_q.mutable_data_ptr(),
      .grad_k = grad_k.mutable_data_ptr(),
      .grad_v = grad_v.mutable_data_ptr(),
      .grad_q_strides = strides_of(grad_q),
      .grad_k_strides = strides_of(grad_k),
      .grad_v_strides = strides_of(grad_v),
      .grad_q_sums = grad_q_sums.mutable_data_ptr<float>(),
      .grad_q_sums_strides = strides_of(grad_q_sums),
  };
  p.forward.out = const_cast<void*>(output.const_data_ptr());
  p.forward.out_strides = strides_of(output);
  p.forward.lse = const_cast<float*>(lse.const_data_ptr<float>());
  if (needs_bias) {
    p.grad_bias = grad_bias.mutable_data_ptr<float>();
    const auto size = [&](int64_t d) {
      const int64_t i = d - (4 - bias->dim());
      return i < 0 ? 1 : bias->size(i);
    };
    p.bias_batches = size(0);
    p.bias_heads = size(1);
    p.bias_queries = size(2);
    p.bias_keys = size(3);
  }
  if (needs_sinks) p.grad_sinks = grad_sinks.mutable_data_ptr<float>();
  table().attention_backward(p);
  return {grad_q, grad_k, grad_v, grad_bias, grad_sinks};
}

Gradients attention_backward(const Tensor& grad_out, std::optional<Tensor> grad_lse,
                             const Tensor& q, const Tensor& k, const Tensor& v,
                             std::optional<Tensor> bias, std::optional<Tensor> sinks,
                             std::optional<Tensor> alibi_slopes, const Tensor& out,
                             const Tensor& lse, bool causal, int64_t window_left,
                             int64_t window_right, double softcap, std::optional<double> scale,
                             bool needs_bias, bool needs_sinks) {
  const char* op = "attention_backward";
  AttentionOptions options = {bias,        sinks,        alibi_slopes, causal,
                              window_left, window_right, softcap,      scale};
  const AttentionParams p = describe_padded(op, q, k, v, options);
  const Outputs outputs = {grad_out, grad_lse, out, lse};
  check_outputs(op, outputs, q.scalar_type(), {p.batch, p.heads, p.queries, p.value_dim},
                {p.batch, p.heads, p.queries});
  return gradients(op, p, q, k, v, options, outputs, needs_bias, needs_sinks, padded_strides);
}

Gradients attention_varlen_backward(const Tensor& grad_out, std::optional<Tensor> grad_lse,
                                    const Tensor& q, const Tensor& k, const Tensor& v,
                                    const Tensor& cu_seqlens_q, const Tensor& cu_seqlens_k,
                                    std::optional<Tensor> bias, std::optional<Tensor> sinks,
                                    std::optional<Tensor> alibi_slopes, const Tensor& out,
                                    const Tensor& lse, int64_t max_seqlen_q, int64_t max_seqlen_k,
                                    bool causal, int64_t window_left, int64_t window_right,
                                    double softcap, std::optional<double> scale, bool needs_bias,
                                    bool needs_sinks) {
  const char* op = "attention_varlen_backward";
  AttentionOptions options = {bias,        sinks,        alibi_slopes, causal,
                              window_left, window_right, softcap,      scale};
  const PackedCall call(op, q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
                        options);
  const AttentionParams& p = call.params;
  const Outputs outputs = {grad_out, grad_lse, out, lse};
  check_outputs(op, outputs, q.scalar_type(), {q.size(0), p.heads, p.value_dim},
                {p.heads, q.size(0)});
  return gradients(op, p, q, k, v, options, outputs, needs_bias, needs_sinks, packed_strides);
}

STABLE_TORCH_LIBRARY_IMPL(lanewise, CPU, m) {
  m.impl("attention_backward", TORCH_BOX(&attention_backward));
  m.impl("attention_varlen_backward", TORCH_BOX(&attention_varlen_backward));
}

}  // namespace

}  // namespace lanewise
