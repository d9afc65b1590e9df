// Every op of lanewise on one page. Shapes, meanings and errors: docs/ops.md.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(lanewise, m) {
  // attention
  m.def(
      "attention(Tensor q, Tensor k, Tensor v, Tensor? bias=None, Tensor? sinks=None, "
      "Tensor? alibi_slopes=None, *, bool causal=False, SymInt window_left=-1, "
      "SymInt window_right=-1, float softcap=0.0, float? scale=None) -> (Tensor out, Tensor lse)");
  m.def(
      "attention_backward(Tensor grad_out, Tensor? grad_lse, Tensor q, Tensor k, Tensor v, "
      "Tensor? bias, Tensor? sinks, Tensor? alibi_slopes, Tensor out, Tensor lse, *, "
      "bool causal=False, SymInt window_left=-1, SymInt window_right=-1, float softcap=0.0, "
      "float? scale=None, bool needs_bias=False, bool needs_sinks=False) "
      "-> (Tensor grad_q, Tensor grad_k, Tensor grad_v, Tensor grad_bias, Tensor grad_sinks)");
  m.def(
      "attention_varlen(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, Tensor cu_seqlens_k, "
      "SymInt max_seqlen_q, SymInt max_seqlen_k, Tensor? bias=None, Tensor? sinks=None, "
      "Tensor? alibi_slopes=None, *, bool causal=False, SymInt window_left=-1, "
      "SymInt window_right=-1, float softcap=0.0, float? scale=None) -> (Tensor out, Tensor lse)");
  m.def(
      "attention_varlen_backward(Tensor grad_out, Tensor? grad_lse, Tensor q, Tensor k, Tensor v, "
      "Tensor cu_seqlens_q, Tensor cu_seqlens_k, Tensor? bias, Tensor? sinks, "
      "Tensor? alibi_slopes, Tensor out, Tensor lse, *, SymInt max_seqlen_q, SymInt max_seqlen_k, "
      "bool causal=False, SymInt window_left=-1, SymInt window_right=-1, float softcap=0.0, "
      "float? scale=None, bool needs_bias=False, bool needs_sinks=False) "
      "-> (Tensor grad_q, Tensor grad_k, Tensor grad_v, Tensor grad_bias, Tensor grad_sinks)");
  m.def(
      "paged_attention(Tensor q, Tensor k_cache, Tensor v_cache, Tensor cu_seqlens_q, "
      "Tensor block_table, Tensor context_lens, SymInt max_seqlen_q, Tensor? bias=None, "
      "Tensor? sinks=None, Tensor? alibi_slopes=None, *, bool causal=False, "
      "SymInt window_left=-1, SymInt window_right=-1, float softcap=0.0, float? scale=None) "
      "-> (Tensor out, Tensor lse)");
  m.def(
      "paged_cache_write(Tensor k, Tensor v, Tensor(a!) k_cache, Tensor(b!) v_cache, "
      "Tensor slots) -> ()");

  // gemm
  m.def("matmul(Tensor a, Tensor b) -> Tensor");
  m.def(
      "linear(Tensor x, Tensor weight, Tensor? bias=None, Tensor? residual=None, *, "
      "str activation=\"none\") -> Tensor");
  m.def(
      "linear_backward(Tensor grad, Tensor x, Tensor weight, Tensor? bias, *, str activation, "
      "bool needs_x, bool needs_weight, bool needs_bias) "
      "-> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)");
  m.def(
      "gated_linear(Tensor x, Tensor gate, Tensor up, Tensor? gate_bias=None, "
      "Tensor? up_bias=None, *, str activation=\"silu\") -> Tensor");
  // gated_linear that also keeps the two sums its gradient needs, in float32.
  m.def(
      "gated_linear_for_backward(Tensor x, Tensor gate, Tensor up, Tensor? gate_bias=None, "
      "Tensor? up_bias=None, *, str activation=\"silu\") "
      "-> (Tensor out, Tensor gate_sums, Tensor up_sums)");
  m.def(
      "gated_linear_backward(Tensor grad, Tensor x, Tensor gate, Tensor up, Tensor gate_sums, "
      "Tensor up_sums, Tensor? gate_bias, Tensor? up_bias, *, str activation, bool needs_x, "
      "bool needs_weight, bool needs_bias) "
      "-> (Tensor grad_x, Tensor grad_gate, Tensor grad_up, Tensor grad_gate_bias, "
      "Tensor grad_up_bias)");
  m.def("pack_weight(Tensor weight) -> Tensor");
  m.def(
      "linear_packed(Tensor x, Tensor weight, Tensor? bias=None, Tensor? residual=None, *, "
      "str activation=\"none\") -> Tensor");
  m.def(
      "gated_linear_packed(Tensor x, Tensor gate, Tensor up, Tensor? gate_bias=None, "
      "Tensor? up_bias=None, *, str activation=\"silu\") -> Tensor");

  // norm
  m.def(
      "rms_norm(Tensor x, Tensor? weight=None, *, float eps=1e-6, float weight_offset=0.0) "
      "-> Tensor");
  m.def(
      "layer_norm(Tensor x, Tensor? weight=None, Tensor? bias=None, *, float eps=1e-5) -> Tensor");
  m.def(
      "add_rms_norm(Tensor x, Tensor residual, Tensor? weight=None, *, float eps=1e-6, "
      "float weight_offset=0.0) -> (Tensor y, Tensor sum)");
  m.def(
      "add_layer_norm(Tensor x, Tensor residual, Tensor? weight=None, Tensor? bias=None, *, "
      "float eps=1e-5) -> (Tensor y, Tensor sum)");
  // The gradient of both forms of a norm: with `residual`, x + residual is what was normalised and
  // `grad_sum` reaches it directly; grad_x is then the gradient of either summand.
  m.def(
      "rms_norm_backward(Tensor grad, Tensor? grad_sum, Tensor x, Tensor? residual, "
      "Tensor? weight, *, float eps, float weight_offset) -> (Tensor grad_x, Tensor grad_weight)");
  m.def(
      "layer_norm_backward(Tensor grad, Tensor? grad_sum, Tensor x, Tensor? residual, "
      "Tensor? weight, *, float eps) -> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)");

  // rope
  m.def("rope(Tensor x, Tensor cos, Tensor sin, *, bool interleaved=False) -> Tensor");
  m.def("rope_backward(Tensor grad, Tensor cos, Tensor sin, *, bool interleaved) -> Tensor");

  // transformer
  // A pre-norm decoder layer over a paged cache; weights plain or packed.
  m.def(
      "decoder_layer(Tensor x, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor cu_seqlens_q, "
      "Tensor block_table, Tensor context_lens, Tensor slots, SymInt max_seqlen_q, Tensor qkv, "
      "Tensor o, Tensor up, Tensor down, Tensor? gate=None, Tensor? qkv_bias=None, "
      "Tensor? o_bias=None, Tensor? gate_bias=None, Tensor? up_bias=None, Tensor? down_bias=None, "
      "Tensor? attention_norm=None, Tensor? attention_norm_bias=None, Tensor? mlp_norm=None, "
      "Tensor? mlp_norm_bias=None, Tensor? attention_post_norm=None, Tensor? mlp_post_norm=None, "
      "Tensor? q_norm=None, Tensor? k_norm=None, Tensor? cos=None, Tensor? sin=None, "
      "Tensor? sinks=None, *, str norm=\"rms\", float eps=1e-6, float weight_offset=0.0, "
      "str activation=\"silu\", bool interleaved=False, SymInt window_left=-1, "
      "float softcap=0.0, float? scale=None, bool last_only=False) -> Tensor");
}
