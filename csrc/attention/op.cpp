#include "attention/arguments.h"
#include "dispatch/table.h"

namespace lanewise {

namespace {

std::tuple<Tensor, Tensor> attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                     std::optional<Tensor> bias, std::optional<Tensor> sinks,
                                     std::optional<Tensor> alibi_slopes, bool causal,
                                     int64_t window_left, int64_t window_right, double softcap,
                                     std::optional<double> scale) {
  AttentionOptions options = {bias,        sinks,        alibi_slopes, causal,
                              window_left, window_right, softcap,      scale};
  AttentionParams p = describe_padded("attention", q, k, v, options);
  Tensor out = empty_cpu({p.batch, p.heads, p.queries, p.value_dim}, q.scalar_type());
  Tensor lse = empty_cpu({p.batch, p.heads, p.queries}, ScalarType::Float);
  p.out = out.mutable_data_ptr();
  p.out_strides = padded_strides(out);
  p.lse = lse.mutable_data_ptr<float>();
  table().attention(p);
  return {out, lse};
}

std::tuple<Tensor, Tensor> attention_varlen(const Tensor& q, const Tensor& k, const Tensor& v,
                                            const Tensor& cu_seqlens_q, const Tensor& cu_seqlens_k,
                                            int64_t max_seqlen_q, int64_t max_seqlen_k,
                                            std::optional<Tensor> bias, std::optional<Tensor> sinks,
                                            std::optional<Tensor> alibi_slopes, bool causal,
                                            int64_t window_left, int64_t window_right,
                                            double softcap, std::optional<double> scale) {
  AttentionOptions options = {bias,        sinks,        alibi_slopes, causal,
                              window_left, window_right, softcap,      scale};
  PackedCall call("attention_varlen", q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q,
                  max_seqlen_k, options);
  return run_packed(q, call.params, table().attention);
}

STABLE_TORCH_LIBRARY_IMPL(lanewise, CPU, m) {
  m.impl("attention", TORCH_BOX(&attention));
  m.impl("attention_varlen", TORCH_BOX(&attention_varlen));
}

}  // namespace

}  // namespace lanewise
