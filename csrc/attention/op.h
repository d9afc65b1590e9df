// Attention over a paged cache as other families' ops use it.
#pragma once

#include <functional>
#include <tuple>

#include "attention/arguments.h"

namespace lanewise {

// A cache of keys and values, and the sequences in it whose queries come.
struct PagedSequences {
  Tensor k_cache, v_cache, cu_seqlens_q, block_table, context_lens;
  int64_t max_seqlen_q;
};

// (out, lse) of packed queries [tokens, heads, dim]. `write` puts the new keys and values into the
// cache, once all arguments were found to be right.
std::tuple<Tensor, Tensor> run_paged_attention(const char* op, const Tensor& q,
                                               const PagedSequences& sequences,
                                               AttentionOptions& options,
                                               const std::function<void()>& write = nullptr);

// Copies k, v [tokens, heads, dim] to their slots in the caches.
void run_cache_write(const char* op, const Tensor& k, const Tensor& v, Tensor& k_cache,
                     Tensor& v_cache, const Tensor& slots);

}  // namespace lanewise
