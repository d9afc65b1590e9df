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

// A batch of sequences. Their tokens are padded to one length, [batch, head, token, element], or
// packed one sequence behind the other (batch strides are 0 then, and starts say where each
// begins), or, keys and values only, paged: in blocks of block_size tokens that a table assigns.
//
// Query i of a sequence stands at key position i + keys − queries. It attends key j where
// −window_left ≤ j − position ≤ window_right (−1: unbounded); causal is window_right 0. Its score
// is
//   softcap · tanh(scale · q·k / softcap) − slope · |position − j| + bias,  −inf where masked.
struct AttentionParams {
  DType dtype;  // of q, k, v, out
  int64_t batch, heads, kv_heads, dim, value_dim;
  int64_t queries, keys;        // of every sequence; where they differ, the most of any
  const int64_t* query_starts;  // [batch + 1], packed; or null
  const int64_t* key_starts;    // [batch + 1], packed; or null
  const int32_t* key_counts;    // [batch], paged; or null
  // Paged: token t of sequence b is token t % block_size of block
  // block_table[b · table_stride + t / block_size]. The batch stride of k and v is that from one
  // block to the next.
  const int32_t* block_table;
  int64_t table_stride, block_size;
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
  double scale;   // so that its quotient by softcap is rounded once
  void* out;
  HeadStrides out_strides;
  float* lse;                   // natural log of the sum of exponentials, sink included
  int64_t lse_batch, lse_head;  // strides; from one query to the next it is 1
  int threads;
};

// Gradients of `forward`, whose out and lse are inputs here.
struct AttentionBackwardParams {
  AttentionParams forward;
  const void* grad_out;
  HeadStrides grad_out_strides;
  const float* grad_lse;  // laid out as lse, or null
  float* delta;           // laid out as lse, working memory, and so is the next
  float* norms;           // lse of scores as panels make them
  void* grad_q;           // these three in the forward's dtype
  void* grad_k;
  void* grad_v;
  HeadStrides grad_q_strides, grad_k_strides, grad_v_strides;
  // Where grad_q is summed: grad_q itself where that is float32, else working memory of its shape.
  float* grad_q_sums;
  HeadStrides grad_q_sums_strides;
  // The bias's gradient, contiguous in the bias's own shape (1 where it broadcasts), zeroed by the
  // caller; null where it is not wanted.
  float* grad_bias;
  int64_t bias_batches, bias_heads, bias_queries, bias_keys;
  float* grad_sinks;  // [heads], or null
};

// Copies the keys and values of tokens, [token, head, element], to their slots in a paged cache.
struct PagedCacheWriteParams {
  int64_t element_size;  // bytes
  int64_t tokens, heads, dim, value_dim, block_size;
  const int64_t* slots;  // [tokens]: block · block_size + place in the block; -1: not written
  const void* k;
  const void* v;
  HeadStrides k_strides, v_strides;
  void* k_cache;
  void* v_cache;
  HeadStrides k_cache_strides, v_cache_strides;  // batch: from one block to the next
  int threads;
};

#ifdef LANEWISE_TARGET
namespace LANEWISE_TARGET {
void attention(const AttentionParams& p);
void attention_backward(const AttentionBackwardParams& p);
void paged_cache_write(const PagedCacheWriteParams& p);
}  // namespace LANEWISE_TARGET
#endif

}  // namespace lanewise
