#include <tuple>

#include "check.h"
#include "dispatch/table.h"

namespace lanewise {

namespace {

constexpr int64_t kMaxDim = 512;

HeadStrides strides_of(const Tensor& t) { return {t.stride(0), t.stride(1), t.stride(2)}; }

Tensor as_contiguous_float32(const Tensor& t) {
  return torch::stable::contiguous(torch::stable::to(t, ScalarType::Float));
}

// What a call was given, and the tensors that its pointers need alive.
struct Arguments {
  const char* op;
  const Tensor& q;
  const Tensor& k;
  const Tensor& v;
  const std::optional<Tensor>& bias;
  const std::optional<Tensor>& sinks;
  const std::optional<Tensor>& slopes;
  bool causal;
  int64_t window_left, window_right;
  double softcap;
  std::optional<double> scale;

  std::optional<Tensor> sinks_float32 = std::nullopt;
};

void check_heads(const Arguments& a) {
  const struct {
    const char* name;
    const Tensor& tensor;
  } inputs[] = {{"q", a.q}, {"k", a.k}, {"v", a.v}};
  for (const auto& [name, t] : inputs) {
    require_cpu(a.op, name, t);
    dtype_of(a.op, name, t);
    require(t.scalar_type() == a.q.scalar_type(), a.op, name, " must have q's dtype ",
            name_of(a.q.scalar_type()), ", got ", name_of(t.scalar_type()));
    require_rank(a.op, name, t, 4);
    require(t.size(0) == a.q.size(0), a.op, name, " has batch size ", t.size(0),
            ", which is not q's ", a.q.size(0));
    require(t.size(3) >= 1 && t.size(3) <= kMaxDim, a.op, name, " must have a head size from 1 to ",
            kMaxDim, ", got ", t.size(3));
    require_unit_stride(a.op, name, t);
  }
  require(a.k.size(3) == a.q.size(3), a.op, "k has head size ", a.k.size(3), ", which is not q's ",
          a.q.size(3));
  const int64_t heads = a.q.size(1), kv_heads = a.k.size(1);
  require(kv_heads ? heads % kv_heads == 0 : heads == 0, a.op, "k has ", kv_heads,
          " heads, which does not divide q's ", heads);
  require(a.v.size(1) == a.k.size(1), a.op, "v has ", a.v.size(1), " heads, which is not k's ",
          a.k.size(1));
  require(a.v.size(2) == a.k.size(2), a.op, "v has ", a.v.size(2), " tokens, which is not k's ",
          a.k.size(2));
}

void check_options(const Arguments& a) {
  require(a.window_left >= -1, a.op, "window_left must be at least -1, got ", a.window_left);
  require(a.window_right >= -1, a.op, "window_right must be at least -1, got ", a.window_right);
  require_finite(a.op, "softcap", a.softcap);
  require(a.softcap >= 0, a.op, "softcap must not be negative, got ", a.softcap);
  // It is used in float32, and so is its inverse.
  require(a.softcap == 0 || (a.softcap >= 1e-30 && a.softcap <= 3.4e38), a.op,
          "softcap must be 0 or between 1e-30 and 3.4e38, got ", a.softcap);
  if (a.scale) require_finite(a.op, "scale", *a.scale);
}

BiasType bias_type(const Arguments& a) {
  if (a.bias->scalar_type() == ScalarType::Bool) return BiasType::boolean;
  switch (a.bias->scalar_type()) {
    case ScalarType::Float:
      return BiasType::f32;
    case ScalarType::BFloat16:
      return BiasType::bf16;
    case ScalarType::Half:
      return BiasType::f16;
    default:
      fail(a.op, "bias must be bool, float32, bfloat16 or float16, got ",
           name_of(a.bias->scalar_type()));
  }
}

void describe_bias(const Arguments& a, AttentionParams& p) {
  const Tensor& bias = *a.bias;
  require_cpu(a.op, "bias", bias);
  p.bias_type = bias_type(a);
  p.bias = bias.const_data_ptr();
  const int64_t target[4] = {p.batch, p.heads, p.queries, p.keys};
  int64_t* strides[4] = {&p.bias_batch, &p.bias_head, &p.bias_query, &p.bias_key};
  require(bias.dim() <= 4, a.op, "bias must have at most 4 dimensions, got shape ", shape_of(bias));
  for (int64_t i = 0, d = 4 - bias.dim(); i < bias.dim(); ++i, ++d) {
    require(bias.size(i) == 1 || bias.size(i) == target[d], a.op, "bias of shape ", shape_of(bias),
            " does not broadcast to [", p.batch, ", ", p.heads, ", ", p.queries, ", ", p.keys, "]");
    *strides[d] = bias.size(i) == 1 ? 0 : bias.stride(i);
  }
}

void describe_sinks(Arguments& a, AttentionParams& p) {
  require_cpu(a.op, "sinks", *a.sinks);
  dtype_of(a.op, "sinks", *a.sinks);
  require(a.sinks->dim() == 1 && a.sinks->size(0) == p.heads, a.op, "sinks must have shape [",
          p.heads, "], got ", shape_of(*a.sinks));
  a.sinks_float32 = as_contiguous_float32(*a.sinks);
  p.sinks = a.sinks_float32->const_data_ptr<float>();
}

void describe_slopes(const Arguments& a, AttentionParams& p) {
  const Tensor& slopes = *a.slopes;
  require_cpu(a.op, "alibi_slopes", slopes);
  require_dtype(a.op, "alibi_slopes", slopes, ScalarType::Float);
  const int64_t rank = slopes.dim();
  require(
      (rank == 1 || (rank == 2 && slopes.size(0) == p.batch)) && slopes.size(rank - 1) == p.heads,
      a.op, "alibi_slopes must have shape [", p.heads, "] or [", p.batch, ", ", p.heads, "], got ",
      shape_of(slopes));
  p.slopes = slopes.const_data_ptr<float>();
  p.slopes_batch = rank == 2 ? slopes.stride(0) : 0;
  p.slopes_head = slopes.stride(rank - 1);
}

// Checks everything and describes it to the kernel, but for the outputs.
AttentionParams describe(Arguments& a) {
  check_heads(a);
  check_options(a);
  const int64_t queries = a.q.size(2), keys = a.k.size(2);
  // A window as wide as all positions is none; so no sum with it can overflow.
  const auto bounded = [&](int64_t window) { return window >= queries + keys ? -1 : window; };
  AttentionParams p = {
      .dtype = dtype_of(a.op, "q", a.q),
      .batch = a.q.size(0),
      .heads = a.q.size(1),
      .kv_heads = a.k.size(1),
      .dim = a.q.size(3),
      .value_dim = a.v.size(3),
      .queries = queries,
      .keys = keys,
      .q = a.q.const_data_ptr(),
      .k = a.k.const_data_ptr(),
      .v = a.v.const_data_ptr(),
      .q_strides = strides_of(a.q),
      .k_strides = strides_of(a.k),
      .v_strides = strides_of(a.v),
      .window_left = bounded(a.window_left),
      .window_right = a.causal ? 0 : bounded(a.window_right),
      .softcap = static_cast<float>(a.softcap),
      .scale = static_cast<float>(a.scale.value_or(1 / std::sqrt(double(a.q.size(3))))),
      .lse_batch = a.q.size(1) * queries,
      .lse_head = queries,
      .threads = thread_count(),
  };
  if (a.bias) describe_bias(a, p);
  if (a.sinks) describe_sinks(a, p);
  if (a.slopes) describe_slopes(a, p);
  return p;
}

std::tuple<Tensor, Tensor> attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                     std::optional<Tensor> bias, std::optional<Tensor> sinks,
                                     std::optional<Tensor> alibi_slopes, bool causal,
                                     int64_t window_left, int64_t window_right, double softcap,
                                     std::optional<double> scale) {
  Arguments arguments = {
      "attention",  q,       k,    v, bias, sinks, alibi_slopes, causal, window_left,
      window_right, softcap, scale};
  AttentionParams p = describe(arguments);
  Tensor out = empty_cpu({p.batch, p.heads, p.queries, p.value_dim}, q.scalar_type());
  Tensor lse = empty_cpu({p.batch, p.heads, p.queries}, ScalarType::Float);
  p.out = out.mutable_data_ptr();
  p.out_strides = strides_of(out);
  p.lse = lse.mutable_data_ptr<float>();
  table().attention(p);
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> attention_backward(
    const Tensor& grad_out, std::optional<Tensor> grad_lse, const Tensor& q, const Tensor& k,
    const Tensor& v, std::optional<Tensor> bias, std::optional<Tensor> sinks,
    std::optional<Tensor> alibi_slopes, const Tensor& out, const Tensor& lse, bool causal,
    int64_t window_left, int64_t window_right, double softcap, std::optional<double> scale,
    bool needs_bias, bool needs_sinks) {
  const char* op = "attention_backward";
  Arguments arguments = {
      op, q, k, v, bias, sinks, alibi_slopes, causal, window_left, window_right, softcap, scale};
  AttentionBackwardParams p = {.forward = describe(arguments)};
  AttentionParams& f = p.forward;
  const auto check = [&](const char* name, const Tensor& t, ScalarType type, int64_t rank) {
    require_cpu(op, name, t);
    require_dtype(op, name, t, type);
    bool same = t.dim() == rank;
    const int64_t shape[4] = {f.batch, f.heads, f.queries, f.value_dim};
    for (int64_t i = 0; same && i < rank; ++i) same = t.size(i) == shape[i];
    require(same, op, name, " must have the shape of the forward's output, got ", shape_of(t));
  };
  check("grad_out", grad_out, q.scalar_type(), 4);
  check("out", out, q.scalar_type(), 4);
  check("lse", lse, ScalarType::Float, 3);
  if (grad_lse) check("grad_lse", *grad_lse, ScalarType::Float, 3);
  require(!needs_bias || (bias && f.bias_type != BiasType::boolean), op,
          "needs_bias asks for the gradient of a bias that is not floating");
  require(!needs_sinks || sinks, op, "needs_sinks asks for the gradient of sinks not given");

  const Tensor grad = torch::stable::contiguous(grad_out), output = torch::stable::contiguous(out),
               norms = torch::stable::contiguous(lse);
  std::optional<Tensor> grad_norms;
  if (grad_lse) grad_norms = torch::stable::contiguous(*grad_lse);
  Tensor delta = torch::stable::new_empty(norms, norms.sizes());
  Tensor grad_q = torch::stable::new_empty(q, q.sizes());
  Tensor grad_k = torch::stable::new_empty(k, k.sizes());
  Tensor grad_v = torch::stable::new_empty(v, v.sizes());
  Tensor grad_bias = needs_bias ? torch::stable::new_zeros(*bias, bias->sizes(), ScalarType::Float)
                                : torch::stable::new_empty(norms, {0});
  Tensor grad_sinks = torch::stable::new_zeros(norms, {needs_sinks ? f.heads : 0});

  f.out = const_cast<void*>(output.const_data_ptr());
  f.out_strides = strides_of(output);
  f.lse = const_cast<float*>(norms.const_data_ptr<float>());
  p.grad_out = grad.const_data_ptr();
  p.grad_out_strides = strides_of(grad);
  p.grad_lse = grad_norms ? grad_norms->const_data_ptr<float>() : nullptr;
  p.delta = delta.mutable_data_ptr<float>();
  p.grad_q = grad_q.mutable_data_ptr();
  p.grad_k = grad_k.mutable_data_ptr();
  p.grad_v = grad_v.mutable_data_ptr();
  p.grad_q_strides = strides_of(grad_q);
  p.grad_k_strides = strides_of(grad_k);
  p.grad_v_strides = strides_of(grad_v);
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

STABLE_TORCH_LIBRARY_IMPL(lanewise, CPU, m) {
  m.impl("attention", TORCH_BOX(&attention));
  m.impl("attention_backward", TORCH_BOX(&attention_backward));
}

}  // namespace

}  // namespace lanewise
