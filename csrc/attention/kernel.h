// Attention: the torch-free face.
#pragma once

#include <cstdint>

#include "simd/types.h"

namespace lanewise {

// Strides of a [batch, head, token, element] array in elements; the innermost is 1.
struct HeadStrides {
  int64_t batch, head, token;
};

enum class BiasType : int { none, f32, bf16, f16, boolean };

// Query i of a sequence stands at key position i + keys − queries. It attends key j where
// −window_left ≤ j − position ≤ window_right (−1: unbounded); causal is window_right 0. Its score
// is
//   softcap · tanh(scale · q·k / softcap) − slope · |position − j| + bias,  −inf where masked.
struct AttentionParams {
  DType dtype;  // of q, k, v, out
  int64_t batch, heads, kv_heads, queries, keys, dim, value_dim;
  const void* q;
  const void* k;
  const void* v;
  HeadStrides q_strides, k_strides, v_strides;
  BiasType bias_type;
  const void* bias;  // one byte an element where boolean: nonzero attends
  int64_t bias_batch, bias_head, bias_query, bias_key;  // strides, 0 where broadcast
  const float* sinks;                                   // [heads], or null
  const float* slopes;                                  // ALiBi, [heads] or [batch, heads], or null
  int64_t slopes_batch, slopes_head;                    // strides
  int64_t window_left, window_right;
  float softcap;  // 0: none
  float scale;
  void* out;
  HeadStrides out_strides;
  float* lse;  // [batch, heads, queries]: natural log of the sum of exponentials, sink included
  int threads;
};

// Gradients of `forward`, whose out and lse are inputs here.
struct AttentionBackwardParams {
  AttentionParams forward;
  const void* grad_out;
  HeadStrides grad_out_strides;
  const float* grad_lse;  // [batch, heads, queries], or null
  float* delta;           // [batch, heads, queries], working memory
  void* grad_q;           // these three in the forward's dtype
  void* grad_k;
  void* grad_v;
  HeadStrides grad_q_strides, grad_k_strides, grad_v_strides;
  // The bias's gradient, contiguous in the bias's own shape (1 where it broadcasts), zeroed by the
  // caller; null where it is not wanted.
  float* grad_bias;
  int64_t bias_batches, bias_heads, bias_queries, bias_keys;
  float* grad_sinks;  // [heads], or null
};

#ifdef LANEWISE_TARGET
namespace LANEWISE_TARGET {
void attention(const AttentionParams& p);
void attention_backward(const AttentionBackwardParams& p);
}  // namespace LANEWISE_TARGET
#endif

}  // namespace lanewise
