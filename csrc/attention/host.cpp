#include "host.h"

#include <pybind11/stl.h>

#include <optional>

namespace lanewise {

namespace {

using Floats = py::array_t<float>;

// Which dimensions of an array are the batch (the block, where paged; -1: none), head and token.
struct Axes {
  int batch, head, token;
};
constexpr Axes kPadded = {0, 1, 2}, kPacked = {-1, 1, 0}, kPaged = {0, 2, 1};

HeadStrides strides_of(const py::array& a, Axes axes) {
  return {axes.batch < 0 ? 0 : stride(a, axes.batch), stride(a, axes.head), stride(a, axes.token)};
}

BiasType bias_type(const py::array& bias) {
  if (bias.dtype().kind() == 'b') return BiasType::boolean;
  switch (dtype_of(bias)) {
    case DType::f32:
      return BiasType::f32;
    case DType::bf16:
      return BiasType::bf16;
    case DType::f16:
      return BiasType::f16;
  }
  return BiasType::none;
}

struct Options {
  std::optional<py::array> bias;  // [B,H,Sq,Sk] or 1 where it broadcasts
  std::optional<Floats> sinks;    // [H]
  std::optional<Floats> slopes;   // [B,H]
  int64_t window_left = -1, window_right = -1;
  float softcap = 0, scale = 1;
  // Packed: q, k and v are [T,H,D]; paged: k and v are [blocks,block_size,H,D].
  std::optional<py::array_t<int64_t>> query_starts, key_starts;
  std::optional<py::array_t<int32_t>> key_counts, block_table;

  Axes query_axes() const { return query_starts ? kPacked : kPadded; }
  Axes key_axes() const { return block_table ? kPaged : key_starts ? kPacked : kPadded; }
};

// The shape of the problem is that of the arrays: the caller gives ones that agree.
AttentionParams describe(const py::array& q, const py::array& k, const py::array& v,
                         const py::array& out, const Floats& lse, const Options& options,
                         int threads) {
  const Axes of_q = options.query_axes(), of_k = options.key_axes();
  const auto last = [](const py::array& a) { return a.shape(static_cast<int>(a.ndim()) - 1); };
  AttentionParams p = {
      .dtype = dtype_of(q),
      .batch = q.shape(0),
      .heads = q.shape(of_q.head),
      .kv_heads = k.shape(of_k.head),
      .dim = last(q),
      .value_dim = last(v),
      .queries = q.shape(of_q.token),
      .keys = k.shape(of_k.token),
      .q = q.data(),
      .k = k.data(),
      .v = v.data(),
      .q_strides = strides_of(q, of_q),
      .k_strides = strides_of(k, of_k),
      .v_strides = strides_of(v, of_k),
      .window_left = options.window_left,
      .window_right = options.window_right,
      .softcap = options.softcap,
      .scale = options.scale,
      .out = const_cast<void*>(out.data()),
      .out_strides = strides_of(out, of_q),
      .lse = const_cast<float*>(lse.data()),
      .lse_batch = options.query_starts ? 0 : q.shape(1) * q.shape(2),
      .lse_head = q.shape(of_q.token),
      .threads = threads,
  };
  if (options.query_starts) {
    p.batch = options.query_starts->size() - 1;
    p.query_starts = options.query_starts->data();
  }
  if (options.key_starts) p.key_starts = options.key_starts->data();
  if (options.block_table) {
    p.key_counts = options.key_counts->data();
    p.block_table = options.block_table->data();
    p.table_stride = options.block_table->shape(1);
    p.block_size = k.shape(of_k.token);
    p.keys = p.table_stride * p.block_size;
  }
  if (const auto& bias = options.bias) {
    const auto broadcast_stride = [&](int d) { return bias->shape(d) == 1 ? 0 : stride(*bias, d); };
    p.bias_type = bias_type(*bias);
    p.bias = bias->data();
    p.bias_batch = broadcast_stride(0);
    p.bias_head = broadcast_stride(1);
    p.bias_query = broadcast_stride(2);
    p.bias_key = broadcast_stride(3);
  }
  if (options.sinks) p.sinks = options.sinks->data();
  if (options.slopes) {
    p.slopes = options.slopes->data();
    p.slopes_batch = stride(*options.slopes, 0);
    p.slopes_head = stride(*options.slopes, 1);
  }
  return p;
}

void attention(const std::string& target, py::array q, py::array k, py::array v, py::array out,
               Floats lse, const Options& options, int threads) {
  table(target).attention(describe(q, k, v, out, lse, options, threads));
}

void attention_backward(const std::string& target, py::array grad_out,
                        std::optional<Floats> grad_lse, py::array q, py::array k, py::array v,
                        py::array out, Floats lse, py::array grad_q, py::array grad_k,
                        py::array grad_v, std::optional<Floats> grad_bias,
                        std::optional<Floats> grad_sinks, const Options& options, int threads) {
  Floats delta(lse.size()), norms(lse.size());
  Floats sums =
      grad_q.itemsize() == sizeof(float)
          ? Floats(grad_q)
          : Floats(std::vector<py::ssize_t>(grad_q.shape(), grad_q.shape() + grad_q.ndim()));
  const Axes of_q = options.query_axes(), of_k = options.key_axes();
  AttentionBackwardParams p = {
      .forward = describe(q, k, v, out, lse, options, threads),
      .grad_out = grad_out.data(),
      .grad_out_strides = strides_of(grad_out, of_q),
      .grad_lse = grad_lse ? grad_lse->data() : nullptr,
      .delta = delta.mutable_data(),
      .norms = norms.mutable_data(),
      .grad_q = grad_q.mutable_data(),
      .grad_k = grad_k.mutable_data(),
      .grad_v = grad_v.mutable_data(),
      .grad_q_strides = strides_of(grad_q, of_q),
      .grad_k_strides = strides_of(grad_k, of_k),
      .grad_v_strides = strides_of(grad_v, of_k),
      .grad_q_sums = sums.mutable_data(),
      .grad_q_sums_strides = strides_of(sums, of_q),
  };
  if (grad_bias) {
    p.grad_bias = grad_bias->mutable_data();
    p.bias_batches = grad_bias->shape(0);
    p.bias_heads = grad_bias->shape(1);
    p.bias_queries = grad_bias->shape(2);
    p.bias_keys = grad_bias->shape(3);
  }
  if (grad_sinks) p.grad_sinks = grad_sinks->mutable_data();
  table(target).attention_backward(p);
}

void paged_cache_write(const std::string& target, py::array k, py::array v, py::array k_cache,
                       py::array v_cache, py::array_t<int64_t> slots, int threads) {
  table(target).paged_cache_write({
      .element_size = k.itemsize(),
      .tokens = k.shape(0),
      .heads = k.shape(1),
      .dim = k.shape(2),
      .value_dim = v.shape(2),
      .block_size = k_cache.shape(1),
      .slots = slots.data(),
      .k = k.data(),
      .v = v.data(),
      .k_strides = strides_of(k, kPacked),
      .v_strides = strides_of(v, kPacked),
      .k_cache = k_cache.mutable_data(),
      .v_cache = v_cache.mutable_data(),
      .k_cache_strides = strides_of(k_cache, kPaged),
      .v_cache_strides = strides_of(v_cache, kPaged),
      .threads = threads,
  });
}

}  // namespace

void bind_attention(py::module_& m) {
  py::class_<Options>(m, "AttentionOptions",
                      "What attention adds to plain softmax(q k^T) v, and how sequences lie.")
      .def(py::init([](std::optional<py::array> bias, std::optional<Floats> sinks,
                       std::optional<Floats> slopes, int64_t window_left, int64_t window_right,
                       float softcap, float scale, std::optional<py::array_t<int64_t>> query_starts,
                       std::optional<py::array_t<int64_t>> key_starts,
                       std::optional<py::array_t<int32_t>> key_counts,
                       std::optional<py::array_t<int32_t>> block_table) {
             return Options{bias,  sinks,        slopes,     window_left, window_right, softcap,
                            scale, query_starts, key_starts, key_counts,  block_table};
           }),
           py::kw_only(), py::arg("bias") = py::none(), py::arg("sinks") = py::none(),
           py::arg("slopes") = py::none(), py::arg("window_left") = -1,
           py::arg("window_right") = -1, py::arg("softcap") = 0.0f, py::arg("scale") = 1.0f,
           py::arg("query_starts") = py::none(), py::arg("key_starts") = py::none(),
           py::arg("key_counts") = py::none(), py::arg("block_table") = py::none());
  m.def("attention", attention, py::arg("target"), py::arg("q"), py::arg("k"), py::arg("v"),
        py::arg("out").noconvert(), py::arg("lse").noconvert(), py::arg("options"),
        py::arg("threads") = 1,
        "Attention of q [B,H,Sq,D] to k [B,Hkv,Sk,D], v [B,Hkv,Sk,Dv] into out and lse [B,H,Sq]; "
        "or of packed or paged sequences, as the options say.");
  m.def("attention_backward", attention_backward, py::arg("target"), py::arg("grad_out"),
        py::arg("grad_lse"), py::arg("q"), py::arg("k"), py::arg("v"), py::arg("out"),
        py::arg("lse"), py::arg("grad_q").noconvert(), py::arg("grad_k").noconvert(),
        py::arg("grad_v").noconvert(), py::arg("grad_bias").noconvert(),
        py::arg("grad_sinks").noconvert(), py::arg("options"), py::arg("threads") = 1,
        "Gradients of attention; grad_bias (zeroed, in the bias's shape) and grad_sinks may be "
        "None.");
  m.def("paged_cache_write", paged_cache_write, py::arg("target"), py::arg("k"), py::arg("v"),
        py::arg("k_cache").noconvert(), py::arg("v_cache").noconvert(), py::arg("slots"),
        py::arg("threads") = 1,
        "Copies k [T,H,D] and v [T,H,Dv] to their slots in caches [blocks,block_size,H,D].");
}

}  // namespace lanewise
