// What the attention ops share: their arguments, the checks of these, and the kernel's description
// of a call, all but its outputs.
#pragma once

#include <tuple>

#include "attention/kernel.h"
#include "check.h"

namespace lanewise {

inline constexpr int64_t kMaxHeadSize = 512;

// q, k or v by its name in the schema: how many dimensions it must have, and which one counts the
// heads. The last is the head's size.
struct Operand {
  const char* name;
  const Tensor& tensor;
  int64_t rank, heads_at;

  int64_t heads() const { return tensor.size(heads_at); }
  int64_t head_size() const { return tensor.size(rank - 1); }
};

struct AttentionOptions {
  const std::optional<Tensor>& bias;
  const std::optional<Tensor>& sinks;
  const std::optional<Tensor>& slopes;
  bool causal;
  int64_t window_left, window_right;
  double softcap;
  std::optional<double> scale;

  std::optional<Tensor> sinks_float32 = std::nullopt;  // which the kernel reads instead
};

// An int32 or int64 tensor of one dimension as the kernel reads it: where it lies, or a copy where
// its dtype or stride is another. (Not through the dispatcher, which costs more than a small call.)
template <class T>
class Indices {
 public:
  explicit Indices(const Tensor& t) {
    const int64_t size = t.size(0), stride = t.stride(0);
    const bool wide = t.scalar_type() == ScalarType::Long;
    if (wide == (sizeof(T) == 8) && (stride == 1 || size <= 1)) {
      in_place_ = static_cast<const T*>(t.const_data_ptr());
      return;
    }
    copy_.resize(size);
    const void* from = t.const_data_ptr();
    for (int64_t i = 0; i < size; ++i)
      copy_[i] = static_cast<T>(wide ? static_cast<const int64_t*>(from)[i * stride]
                                     : static_cast<const int32_t*>(from)[i * stride]);
  }

  const T* data() const { return in_place_ ? in_place_ : copy_.data(); }
  T operator[](int64_t i) const { return data()[i]; }

 private:
  const T* in_place_ = nullptr;
  std::vector<T> copy_;
};

// --- q, k and v ----------------------------------------------------------------------------------

inline void check_operands(const char* op, const Operand& q, const Operand& k, const Operand& v) {
  const ScalarType type = q.tensor.scalar_type();
  for (const Operand* o : {&q, &k, &v}) {
    const Tensor& t = o->tensor;
    require_cpu(op, o->name, t);
    dtype_of(op, o->name, t);
    require(t.scalar_type() == type, op, o->name, " must have q's dtype ", name_of(type), ", got ",
            name_of(t.scalar_type()));
    require_rank(op, o->name, t, o->rank);
    require(o->head_size() >= 1 && o->head_size() <= kMaxHeadSize, op, o->name,
            " must have a head size from 1 to ", kMaxHeadSize, ", got ", o->head_size());
    require_unit_stride(op, o->name, t);
  }
  require(k.head_size() == q.head_size(), op, k.name, " has head size ", k.head_size(),
          ", which is not q's ", q.head_size());
  require(k.heads() ? q.heads() % k.heads() == 0 : q.heads() == 0, op, k.name, " has ", k.heads(),
          " heads, which does not divide q's ", q.heads());
  require(v.heads() == k.heads(), op, v.name, " has ", v.heads(), " heads, which is not ", k.name,
          "'s ", k.heads());
}

inline AttentionParams describe_operands(const char* op, const Operand& q, const Operand& k,
                                         const Operand& v) {
  check_operands(op, q, k, v);
  return {
      .dtype = dtype_of(op, q.name, q.tensor),
      .heads = q.heads(),
      .kv_heads = k.heads(),
      .dim = q.head_size(),
      .value_dim = v.head_size(),
      .q = q.tensor.const_data_ptr(),
      .k = k.tensor.const_data_ptr(),
      .v = v.tensor.const_data_ptr(),
      .threads = thread_count(),
  };
}

// --- options -------------------------------------------------------------------------------------

inline BiasType bias_type(const char* op, const Tensor& bias) {
  switch (bias.scalar_type()) {
    case ScalarType::Bool:
      return BiasType::boolean;
    case ScalarType::Float:
      return BiasType::f32;
    case ScalarType::BFloat16:
      return BiasType::bf16;
    case ScalarType::Half:
      return BiasType::f16;
    default:
      fail(op, "bias must be bool, float32, bfloat16 or float16, got ",
           name_of(bias.scalar_type()));
  }
}

// `queries` and `keys`: the extents to which a bias broadcasts.
inline void describe_bias(const char* op, const Tensor& bias, int64_t queries, int64_t keys,
                          AttentionParams& p) {
  require_cpu(op, "bias", bias);
  p.bias_type = bias_type(op, bias);
  p.bias = bias.const_data_ptr();
  const int64_t target[4] = {p.batch, p.heads, queries, keys};
  int64_t* strides[4] = {&p.bias_batch, &p.bias_head, &p.bias_query, &p.bias_key};
  require(bias.dim() <= 4, op, "bias must have at most 4 dimensions, got shape ", shape_of(bias));
  for (int64_t i = 0, d = 4 - bias.dim(); i < bias.dim(); ++i, ++d) {
    require(bias.size(i) == 1 || bias.size(i) == target[d], op, "bias of shape ", shape_of(bias),
            " does not broadcast to [", p.batch, ", ", p.heads, ", ", queries, ", ", keys, "]");
    *strides[d] = bias.size(i) == 1 ? 0 : bias.stride(i);
  }
}

inline void describe_sinks(const char* op, AttentionOptions& o, AttentionParams& p) {
  require_cpu(op, "sinks", *o.sinks);
  const DType dtype = dtype_of(op, "sinks", *o.sinks);
  require(o.sinks->dim() == 1 && o.sinks->size(0) == p.heads, op, "sinks must have shape [",
          p.heads, "], got ", shape_of(*o.sinks));
  o.sinks_float32 = dtype == DType::f32 && o.sinks->is_contiguous()
                        ? *o.sinks
                        : torch::stable::contiguous(torch::stable::to(*o.sinks, ScalarType::Float));
  p.sinks = o.sinks_float32->const_data_ptr<float>();
}

inline void describe_slopes(const char* op, const Tensor& slopes, AttentionParams& p) {
  require_cpu(op, "alibi_slopes", slopes);
  require_dtype(op, "alibi_slopes", slopes, ScalarType::Float);
  const int64_t rank = slopes.dim();
  require(
      (rank == 1 || (rank == 2 && slopes.size(0) == p.batch)) && slopes.size(rank - 1) == p.heads,
      op, "alibi_slopes must have shape [", p.heads, "] or [", p.batch, ", ", p.heads, "], got ",
      shape_of(slopes));
  p.slopes = slopes.const_data_ptr<float>();
  p.slopes_batch = rank == 2 ? slopes.stride(0) : 0;
  p.slopes_head = slopes.stride(rank - 1);
}

// `queries` and `keys`: the extents to which a bias broadcasts.
inline void describe_options(const char* op, AttentionOptions& o, int64_t queries, int64_t keys,
                             AttentionParams& p) {
  require(o.window_left >= -1, op, "window_left must be at least -1, got ", o.window_left);
  require(o.window_right >= -1, op, "window_right must be at least -1, got ", o.window_right);
  require_finite(op, "softcap", o.softcap);
  require(o.softcap >= 0, op, "softcap must not be negative, got ", o.softcap);
  // It is used in float32, and so is its inverse.
  require(o.softcap == 0 || (o.softcap >= 1e-30 && o.softcap <= 1e30), op,
          "softcap must be 0 or between 1e-30 and 1e30, got ", o.softcap);
  if (o.scale) require_finite(op, "scale", *o.scale);

  // A window as wide as all positions is none; so no sum with it can overflow.
  const auto bounded = [&](int64_t window) { return window >= p.queries + p.keys ? -1 : window; };
  p.window_left = bounded(o.window_left);
  p.window_right = o.causal ? 0 : bounded(o.window_right);
  p.softcap = static_cast<float>(o.softcap);
  p.scale = o.scale.value_or(1 / std::sqrt(static_cast<double>(p.dim)));
  // The factor of the products (scores.h).
  const double factor = p.softcap != 0 ? p.scale / o.softcap : p.scale;
  require(std::isfinite(static_cast<float>(factor)), op, "scale is too large for float32, got ",
          p.scale);
  if (o.bias) describe_bias(op, *o.bias, queries, keys, p);
  if (o.sinks) describe_sinks(op, o, p);
  if (o.slopes) describe_slopes(op, *o.slopes, p);
}

// --- padded sequences: [batch, head, token, element] ---------------------------------------------

inline HeadStrides padded_strides(const Tensor& t) {
  return {t.stride(0), t.stride(1), t.stride(2)};
}

inline AttentionParams describe_padded(const char* op, const Tensor& q, const Tensor& k,
                                       const Tensor& v, AttentionOptions& options) {
  AttentionParams p = describe_operands(op, {"q", q, 4, 1}, {"k", k, 4, 1}, {"v", v, 4, 1});
  p.batch = q.size(0);
  p.queries = q.size(2);
  p.keys = k.size(2);
  require(k.size(0) == p.batch, op, "k has batch size ", k.size(0), ", which is not q's ", p.batch);
  require(v.size(0) == p.batch, op, "v has batch size ", v.size(0), ", which is not q's ", p.batch);
  require(v.size(2) == p.keys, op, "v has ", v.size(2), " tokens, which is not k's ", p.keys);
  p.q_strides = padded_strides(q);
  p.k_strides = padded_strides(k);
  p.v_strides = padded_strides(v);
  p.lse_batch = p.heads * p.queries;
  p.lse_head = p.queries;
  describe_options(op, options, p.queries, p.keys, p);
  return p;
}

// --- packed sequences: [token, head, element] ----------------------------------------------------

inline HeadStrides packed_strides(const Tensor& t) { return {0, t.stride(1), t.stride(0)}; }

// Which of an op's arguments say how sequences are packed.
struct PackedNames {
  const char *starts, *longest, *tokens;
};
inline constexpr PackedNames kPackedQueries = {"cu_seqlens_q", "max_seqlen_q", "q"};
inline constexpr PackedNames kPackedKeys = {"cu_seqlens_k", "max_seqlen_k", "k"};

// Where sequences start among `tokens` tokens, and the tokens of the longest one.
struct Starts {
  Indices<int64_t> at;
  int64_t batch, longest = 0;

  Starts(const char* op, const PackedNames& names, const Tensor& starts, int64_t most,
         int64_t tokens)
      : at(checked(op, names, starts)), batch(starts.size(0) - 1) {
    require(most >= 0, op, names.longest, " must not be negative, got ", most);
    require(at[0] == 0, op, names.starts, " must start at 0, got ", at[0]);
    for (int64_t b = 0; b < batch; ++b) {
      require(at[b + 1] >= at[b], op, names.starts, " must not decrease, got ", at[b], " before ",
              at[b + 1]);
      longest = std::max(longest, at[b + 1] - at[b]);
    }
    require(at[batch] == tokens, op, names.starts, " must end at ", names.tokens, "'s ", tokens,
            " tokens, got ", at[batch]);
    require(longest <= most, op, names.starts, " has a sequence of ", longest,
            " tokens, more than ", names.longest, ", ", most);
  }

 private:
  static const Tensor& checked(const char* op, const PackedNames& names, const Tensor& starts) {
    require_cpu(op, names.starts, starts);
    require(starts.scalar_type() == ScalarType::Int || starts.scalar_type() == ScalarType::Long, op,
            names.starts, " must be int32 or int64, got ", name_of(starts.scalar_type()));
    require(starts.dim() == 1 && starts.size(0) >= 1, op, names.starts,
            " must have shape [batch + 1], got ", shape_of(starts));
    return starts;
  }
};

// A call over packed sequences, and the starts that its description points to.
struct PackedCall {
  AttentionParams params;
  Starts queries, keys;

  PackedCall(const char* op, const Tensor& q, const Tensor& k, const Tensor& v,
             const Tensor& cu_seqlens_q, const Tensor& cu_seqlens_k, int64_t max_seqlen_q,
             int64_t max_seqlen_k, AttentionOptions& options)
      : params(describe_operands(op, {"q", q, 3, 1}, {"k", k, 3, 1}, {"v", v, 3, 1})),
        queries(op, kPackedQueries, cu_seqlens_q, max_seqlen_q, q.size(0)),
        keys(op, kPackedKeys, cu_seqlens_k, max_seqlen_k, k.size(0)) {
    require(v.size(0) == k.size(0), op, "v has ", v.size(0), " tokens, which is not k's ",
            k.size(0));
    require(keys.batch == queries.batch, op, "cu_seqlens_k has ", keys.batch,
            " sequences, which is not cu_seqlens_q's ", queries.batch);
    params.batch = queries.batch;
    params.queries = queries.longest;
    params.keys = keys.longest;
    params.query_starts = queries.at.data();
    params.key_starts = keys.at.data();
    params.q_strides = packed_strides(q);
    params.k_strides = packed_strides(k);
    params.v_strides = packed_strides(v);
    params.lse_head = q.size(0);
    describe_options(op, options, max_seqlen_q, max_seqlen_k, params);
  }
};

// The outputs of packed queries.
inline std::tuple<Tensor, Tensor> run_packed(const Tensor& q, AttentionParams& p,
                                             void (*kernel)(const AttentionParams&)) {
  Tensor out = empty_cpu({q.size(0), p.heads, p.value_dim}, q.scalar_type());
  Tensor lse = empty_cpu({p.heads, q.size(0)}, ScalarType::Float);
  p.out = out.mutable_data_ptr();
  p.out_strides = packed_strides(out);
  p.lse = lse.mutable_data_ptr<float>();
  kernel(p);
  return {out, lse};
}

}  // namespace lanewise
