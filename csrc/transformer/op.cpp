// A whole decoder layer over a paged cache, made of the other families' ops: at one token a layer,
// the way through Python would take longer than the products.
#include "attention/op.h"

#include <cstring>

#include "activation/parse.h"
#include "dispatch/table.h"
#include "gemm/op.h"
#include "norm/op.h"

namespace lanewise {

namespace {

constexpr const char* kOp = "decoder_layer";

// Another shape over the same memory, from element `offset` of t on; a direct call, as in
// empty_cpu.
Tensor view_of(const Tensor& t, const std::vector<int64_t>& sizes,
               const std::vector<int64_t>& strides, int64_t offset = 0) {
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(
      t.get(), static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), offset, &handle));
  return Tensor(handle);
}

// The heads [tokens, heads, dim] that begin at column `first` of dense rows [tokens, width].
Tensor heads_of(const Tensor& rows, int64_t first, int64_t heads, int64_t dim) {
  return view_of(rows, {rows.size(0), heads, dim}, {rows.size(1), dim, 1}, first);
}

// Rotates heads [tokens, heads, dim] in place.
void rotate(const Tensor& x, const Tensor& cos, const Tensor& sin, bool interleaved) {
  if (x.numel() == 0) return;
  table().rope({
      .dtype = dtype_of(kOp, "x", x),
      .batch = 1,
      .heads = x.size(1),
      .seq = x.size(0),
      .dim = x.size(2),
      .half = cos.size(1),
      .interleaved = interleaved,
      .inverse = false,
      .x = x.const_data_ptr(),
      .x_batch = 0,
      .x_head = x.stride(1),
      .x_seq = x.stride(0),
      .cos = cos.const_data_ptr<float>(),
      .sin = sin.const_data_ptr<float>(),
      .cos_batch = 0,
      .cos_seq = cos.stride(0),
      .sin_batch = 0,
      .sin_seq = sin.stride(0),
      .out = x.mutable_data_ptr(),
      .out_batch = 0,
      .out_head = x.stride(1),
      .out_seq = x.stride(0),
      .threads = thread_count(),
  });
}

void check_angles(const char* arg, const Tensor& t, int64_t tokens, int64_t dim) {
  require_cpu(kOp, arg, t);
  require_dtype(kOp, arg, t, ScalarType::Float);
  require(t.dim() == 2 && t.size(0) == tokens && 2 * t.size(1) <= dim, kOp, arg,
          " must have shape [", tokens, ", at most ", dim / 2, "], got ", shape_of(t));
  require_unit_stride(kOp, arg, t);
}

// The row of each sequence's last token, dense.
Tensor last_rows(const Tensor& x, const Tensor& starts) {
  const Indices<int64_t> at(starts);
  const int64_t batch = starts.size(0) - 1, width = x.size(1);
  Tensor out = empty_cpu({batch, width}, x.scalar_type());
  const int64_t element = x.scalar_type() == ScalarType::Float ? 4 : 2;
  char* to = static_cast<char*>(out.mutable_data_ptr());
  const char* from = static_cast<const char*>(x.const_data_ptr());
  for (int64_t b = 0; b < batch; ++b)
    std::memcpy(to + b * width * element, from + (at[b + 1] - 1) * x.stride(0) * element,
                width * element);
  return out;
}

Tensor one_query_each(int64_t batch) {
  Tensor starts = empty_cpu({batch + 1}, ScalarType::Long);
  int64_t* at = starts.mutable_data_ptr<int64_t>();
  for (int64_t b = 0; b <= batch; ++b) at[b] = b;
  return starts;
}

void require_width(const char* arg, const WeightRef& weight, int64_t width, const char* whose) {
  require(weight.out_features == width, kOp, arg, " has ", weight.out_features,
          " output features, which is not ", whose, " ", width);
}

Tensor decoder_layer(const Tensor& x, Tensor k_cache, Tensor v_cache, const Tensor& cu_seqlens_q,
                     const Tensor& block_table, const Tensor& context_lens, const Tensor& slots,
                     int64_t max_seqlen_q, const Tensor& qkv, const Tensor& o, const Tensor& up,
                     const Tensor& down, MaybeTensor gate, MaybeTensor qkv_bias, MaybeTensor o_bias,
                     MaybeTensor gate_bias, MaybeTensor up_bias, MaybeTensor down_bias,
                     MaybeTensor attention_norm, MaybeTensor attention_norm_bias,
                     MaybeTensor mlp_norm, MaybeTensor mlp_norm_bias,
                     MaybeTensor attention_post_norm, MaybeTensor mlp_post_norm, MaybeTensor q_norm,
                     MaybeTensor k_norm, MaybeTensor cos, MaybeTensor sin, MaybeTensor sinks,
                     std::string norm, double eps, double weight_offset, std::string activation,
                     bool interleaved, int64_t window_left, double softcap,
                     std::optional<double> scale, bool last_only) {
  require_cpu(kOp, "x", x);
  dtype_of(kOp, "x", x);
  require_rank(kOp, "x", x, 2);
  require_unit_stride(kOp, "x", x);
  require_rank(kOp, "k_cache", k_cache, 4);
  require_rank(kOp, "v_cache", v_cache, 4);
  require(norm == "rms" || norm == "layer", kOp, "norm must be rms or layer, got '", norm, "'");
  const int64_t tokens = x.size(0), width = x.size(1);
  const int64_t kv_heads = k_cache.size(2), dim = k_cache.size(3), value_dim = v_cache.size(3);

  const WeightRef qkv_ref = weight_argument(kOp, "qkv", qkv, width, x);
  const int64_t kv_width = kv_heads * (dim + value_dim);
  const int64_t q_width = qkv_ref.out_features - kv_width;
  require(q_width > 0 && dim > 0 && q_width % dim == 0, kOp, "qkv has ", qkv_ref.out_features,
          " output features, which are not heads of ", dim, " before the cache's keys and values, ",
          kv_width);
  const int64_t heads = q_width / dim;
  const WeightRef o_ref = weight_argument(kOp, "o", o, heads * value_dim, x);
  require_width("o", o_ref, width, "x's");
  const WeightRef up_ref = weight_argument(kOp, "up", up, width, x);
  std::optional<WeightRef> gate_ref;
  if (gate) {
    gate_ref = weight_argument(kOp, "gate", *gate, width, x);
    require_width("up", up_ref, gate_ref->out_features, "gate's");
  }
  const WeightRef down_ref = weight_argument(kOp, "down", down, up_ref.out_features, x);
  require_width("down", down_ref, width, "x's");
  const auto bias_of = [&](const char* arg, const MaybeTensor& bias, const WeightRef& weight) {
    return bias_argument(kOp, arg, bias, weight.out_features, x.scalar_type());
  };
  const VectorRef qkv_vector = bias_of("qkv_bias", qkv_bias, qkv_ref);
  const VectorRef o_vector = bias_of("o_bias", o_bias, o_ref);
  const VectorRef up_vector = bias_of("up_bias", up_bias, up_ref);
  const VectorRef down_vector = bias_of("down_bias", down_bias, down_ref);
  const VectorRef gate_vector = gate_ref ? bias_of("gate_bias", gate_bias, *gate_ref) : VectorRef{};
  require(gate || !gate_bias, kOp, "gate_bias must come with gate");

  const struct {
    const char* name;
    const MaybeTensor& vector;
  } columns[] = {{"attention_norm", attention_norm},
                 {"attention_norm_bias", attention_norm_bias},
                 {"mlp_norm", mlp_norm},
                 {"mlp_norm_bias", mlp_norm_bias},
                 {"attention_post_norm", attention_post_norm},
                 {"mlp_post_norm", mlp_post_norm}};
  for (const auto& [name, vector] : columns)
    if (vector) check_columns(kOp, name, *vector, x);
  require(cos.has_value() == sin.has_value(), kOp, "cos and sin must come together");
  if (cos) {
    check_angles("cos", *cos, tokens, dim);
    check_angles("sin", *sin, tokens, dim);
    require(cos->size(1) == sin->size(1), kOp, "sin has ", sin->size(1),
            " pairs, which is not cos's ", cos->size(1));
  }
  require(norm == "layer" || !attention_norm_bias, kOp,
          "attention_norm_bias must come with norm 'layer', got norm 'rms'");
  require(norm == "layer" || !mlp_norm_bias, kOp,
          "mlp_norm_bias must come with norm 'layer', got norm 'rms'");
  parse_activation(kOp, activation);
  const NormOptions norm_options = {norm == "layer", eps, weight_offset};

  // The heads.
  const Tensor normed =
      std::get<0>(run_norm(kOp, x, {}, {attention_norm, attention_norm_bias}, norm_options));
  const Tensor projected = run_linear(kOp, normed, qkv_ref, qkv_vector, {}, "none");
  Tensor q = heads_of(projected, 0, heads, dim);
  Tensor k = heads_of(projected, q_width, kv_heads, dim);
  const Tensor v = heads_of(projected, q_width + kv_heads * dim, kv_heads, value_dim);
  if (q_norm) check_columns(kOp, "q_norm", *q_norm, q);
  if (k_norm) check_columns(kOp, "k_norm", *k_norm, k);
  if (q_norm) q = std::get<0>(run_norm(kOp, q, {}, {q_norm, {}}, norm_options));
  if (k_norm) k = std::get<0>(run_norm(kOp, k, {}, {k_norm, {}}, norm_options));
  if (cos) {
    rotate(q, *cos, *sin, interleaved);
    rotate(k, *cos, *sin, interleaved);
  }

  // From here on only the tokens whose output is wanted.
  PagedSequences sequences = {k_cache,     v_cache,      cu_seqlens_q,
                              block_table, context_lens, max_seqlen_q};
  Tensor stream = x;
  const Starts starts(kOp, {"cu_seqlens_q", "max_seqlen_q", "x"}, cu_seqlens_q, max_seqlen_q,
                      tokens);
  if (last_only) {
    for (int64_t b = 0; b < starts.batch; ++b)
      require(starts.at[b + 1] > starts.at[b], kOp, "last_only needs a token of every sequence, ",
              "cu_seqlens_q has none of sequence ", b);
  }
  if (last_only && starts.batch < tokens) {
    stream = last_rows(x, cu_seqlens_q);
    const Tensor q_rows = view_of(q, {tokens, q_width}, {q.stride(0), 1});
    q = heads_of(last_rows(q_rows, cu_seqlens_q), 0, heads, dim);
    sequences.cu_seqlens_q = one_query_each(starts.batch);
    sequences.max_seqlen_q = 1;
  }
  AttentionOptions options = {{}, sinks, {}, true, window_left, -1, softcap, scale};
  const Tensor attended = std::get<0>(run_paged_attention(
      kOp, q, sequences, options, [&] { run_cache_write(kOp, k, v, k_cache, v_cache, slots); }));
  const Tensor mixed =
      view_of(attended, {attended.size(0), heads * value_dim}, {heads * value_dim, 1});

  // The two residuals: in the product's epilogue, or after the norm that follows it.
  if (attention_post_norm) {
    const Tensor out = run_linear(kOp, mixed, o_ref, o_vector, {}, "none");
    stream = run_norm_then_add(kOp, out, stream, {attention_post_norm, {}}, norm_options);
  } else {
    stream = run_linear(kOp, mixed, o_ref, o_vector, stream, "none");
  }
  const Tensor mlp_in =
      std::get<0>(run_norm(kOp, stream, {}, {mlp_norm, mlp_norm_bias}, norm_options));
  const Tensor hidden =
      gate_ref ? run_gated(kOp, mlp_in, *gate_ref, up_ref, gate_vector, up_vector, activation)
               : run_linear(kOp, mlp_in, up_ref, up_vector, {}, activation);
  if (!mlp_post_norm) return run_linear(kOp, hidden, down_ref, down_vector, stream, "none");
  const Tensor out = run_linear(kOp, hidden, down_ref, down_vector, {}, "none");
  return run_norm_then_add(kOp, out, stream, {mlp_post_norm, {}}, norm_options);
}

STABLE_TORCH_LIBRARY_IMPL(lanewise, CPU, m) { m.impl("decoder_layer", TORCH_BOX(&decoder_layer)); }

}  // namespace

}  // namespace lanewise
