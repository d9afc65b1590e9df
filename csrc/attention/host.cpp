#include "host.h"

#include <pybind11/stl.h>

#include <optional>

namespace lanewise {

namespace {

using Floats = py::array_t<float>;

HeadStrides strides_of(const py::array& a) { return {stride(a, 0), stride(a, 1), stride(a, 2)}; }

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
};

// The shape of the problem is that of the arrays: the caller gives ones that agree.
AttentionParams describe(const py::array& q, const py::array& k, const py::array& v,
                         const py::array& out, const Floats& lse, const Options& options,
                         int threads) {
  AttentionParams p = {
      .dtype = dtype_of(q),
      .batch = q.shape(0),
      .heads = q.shape(1),
      .kv_heads = k.shape(1),
      .dim = q.shape(3),
      .value_dim = v.shape(3),
      .queries = q.shape(2),
      .keys = k.shape(2),
      .q = q.data(),
      .k = k.data(),
      .v = v.data(),
      .q_strides = strides_of(q),
      .k_strides = strides_of(k),
      .v_strides = strides_of(v),
      .window_left = options.window_left,
      .window_right = options.window_right,
      .softcap = options.softcap,
      .scale = options.scale,
      .out = const_cast<void*>(out.data()),
      .out_strides = strides_of(out),
      .lse = const_cast<float*>(lse.data()),
      .lse_batch = q.shape(1) * q.shape(2),
      .lse_head = q.shape(2),
      .threads = threads,
  };
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
  Floats delta({lse.shape(0), lse.shape(1), lse.shape(2)});
  AttentionBackwardParams p = {
      .forward = describe(q, k, v, out, lse, options, threads),
      .grad_out = grad_out.data(),
      .grad_out_strides = strides_of(grad_out),
      .grad_lse = grad_lse ? grad_lse->data() : nullptr,
      .delta = delta.mutable_data(),
      .grad_q = grad_q.mutable_data(),
      .grad_k = grad_k.mutable_data(),
      .grad_v = grad_v.mutable_data(),
      .grad_q_strides = strides_of(grad_q),
      .grad_k_strides = strides_of(grad_k),
      .grad_v_strides = strides_of(grad_v),
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

}  // namespace

void bind_attention(py::module_& m) {
  py::class_<Options>(m, "AttentionOptions", "What attention adds to plain softmax(q k^T) v.")
      .def(py::init([](std::optional<py::array> bias, std::optional<Floats> sinks,
                       std::optional<Floats> slopes, int64_t window_left, int64_t window_right,
                       float softcap, float scale) {
             return Options{bias, sinks, slopes, window_left, window_right, softcap, scale};
           }),
           py::kw_only(), py::arg("bias") = py::none(), py::arg("sinks") = py::none(),
           py::arg("slopes") = py::none(), py::arg("window_left") = -1,
           py::arg("window_right") = -1, py::arg("softcap") = 0.0f, py::arg("scale") = 1.0f);
  m.def("attention", attention, py::arg("target"), py::arg("q"), py::arg("k"), py::arg("v"),
        py::arg("out").noconvert(), py::arg("lse").noconvert(), py::arg("options"),
        py::arg("threads") = 1,
        "Attention of q [B,H,Sq,D] to k [B,Hkv,Sk,D], v [B,Hkv,Sk,Dv] into out and lse [B,H,Sq].");
  m.def("attention_backward", attention_backward, py::arg("target"), py::arg("grad_out"),
        py::arg("grad_lse"), py::arg("q"), py::arg("k"), py::arg("v"), py::arg("out"),
        py::arg("lse"), py::arg("grad_q").noconvert(), py::arg("grad_k").noconvert(),
        py::arg("grad_v").noconvert(), py::arg("grad_bias").noconvert(),
        py::arg("grad_sinks").noconvert(), py::arg("options"), py::arg("threads") = 1,
        "Gradients of attention; grad_bias (zeroed, in the bias's shape) and grad_sinks may be "
        "None.");
}

}  // namespace lanewise
