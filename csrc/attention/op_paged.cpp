#include "attention/op.h"
#include "dispatch/table.h"

namespace lanewise {

namespace {

// --- the cache: [block, token of the block, head, element] ---------------------------------------

constexpr int64_t kCacheRank = 4, kCacheHeads = 2;

HeadStrides cache_strides(const Tensor& t) { return {t.stride(0), t.stride(2), t.stride(1)}; }

void check_same_blocks(const char* op, const Tensor& k_cache, const Tensor& v_cache) {
  require(k_cache.size(1) >= 1, op, "k_cache must have blocks of at least 1 token, got shape ",
          shape_of(k_cache));
  require(v_cache.size(0) == k_cache.size(0), op, "v_cache has ", v_cache.size(0),
          " blocks, which is not k_cache's ", k_cache.size(0));
  require(v_cache.size(1) == k_cache.size(1), op, "v_cache has blocks of ", v_cache.size(1),
          " tokens, which is not k_cache's ", k_cache.size(1));
}

// Tokens of `blocks` blocks, the largest number where they are more (expanded views may be huge).
int64_t tokens_of(int64_t blocks, int64_t block_size) {
  int64_t tokens;
  return __builtin_mul_overflow(blocks, block_size, &tokens) ? INT64_MAX : tokens;
}

// --- paged_attention -----------------------------------------------------------------------------

// Which blocks hold each sequence's keys; only the entries that its keys need are read.
struct Pages {
  Tensor table;
  Indices<int32_t> contexts;
  int64_t longest = 0;

  Pages(const char* op, const Tensor& block_table, const Tensor& context_lens, int64_t batch)
      : table(checked_table(op, block_table, batch)),
        contexts(checked_contexts(op, context_lens, batch)) {}

  void check(const char* op, const Starts& queries, int64_t blocks, int64_t block_size) {
    const int32_t* row = table.const_data_ptr<int32_t>();
    const int64_t entries = table.size(1), row_stride = table.stride(0);
    for (int64_t b = 0; b < queries.batch; ++b, row += row_stride) {
      const int64_t context = contexts[b], own = queries.at[b + 1] - queries.at[b];
      require(context >= 0, op, "context_lens must not be negative, got ", context,
              " for sequence ", b);
      require(context >= own, op, "context_lens counts ", context, " keys for sequence ", b,
              ", fewer than its ", own, " queries");
      const int64_t needed = (context + block_size - 1) / block_size;
      require(needed <= entries, op, "context_lens counts ", context, " keys for sequence ", b,
              ", more than block_table's ", entries, " blocks of ", block_size, " hold");
      for (int64_t i = 0; i < needed; ++i)
        require(row[i] >= 0 && row[i] < blocks, op, "block_table must hold indices of k_cache's ",
                blocks, " blocks, got ", row[i], " for block ", i, " of sequence ", b);
      longest = std::max(longest, context);
    }
  }

 private:
  static Tensor checked_table(const char* op, const Tensor& t, int64_t batch) {
    require_cpu(op, "block_table", t);
    require_dtype(op, "block_table", t, ScalarType::Int);
    require(t.dim() == 2 && t.size(0) == batch, op, "block_table must have shape [", batch,
            ", blocks of a sequence], got ", shape_of(t));
    return t.size(1) <= 1 || t.stride(1) == 1 ? t : torch::stable::contiguous(t);
  }
  static const Tensor& checked_contexts(const char* op, const Tensor& t, int64_t batch) {
    require_cpu(op, "context_lens", t);
    require_dtype(op, "context_lens", t, ScalarType::Int);
    require(t.dim() == 1 && t.size(0) == batch, op, "context_lens must have shape [", batch,
            "], got ", shape_of(t));
    return t;
  }
};

}  // namespace

std::tuple<Tensor, Tensor> run_paged_attention(const char* op, const Tensor& q,
                                               const PagedSequences& sequences,
                                               AttentionOptions& options,
                                               const std::function<void()>& write) {
  const auto& [k_cache, v_cache, cu_seqlens_q, block_table, context_lens, max_seqlen_q] = sequences;
  AttentionParams p =
      describe_operands(op, {"q", q, 3, 1}, {"k_cache", k_cache, kCacheRank, kCacheHeads},
                        {"v_cache", v_cache, kCacheRank, kCacheHeads});
  check_same_blocks(op, k_cache, v_cache);
  const Starts queries(op, kPackedQueries, cu_seqlens_q, max_seqlen_q, q.size(0));
  Pages pages(op, block_table, context_lens, queries.batch);
  pages.check(op, queries, k_cache.size(0), k_cache.size(1));

  p.batch = queries.batch;
  p.queries = queries.longest;
  p.keys = pages.longest;
  p.query_starts = queries.at.data();
  p.key_counts = pages.contexts.data();
  p.block_table = pages.table.const_data_ptr<int32_t>();
  p.table_stride = pages.table.stride(0);
  p.block_size = k_cache.size(1);
  p.q_strides = packed_strides(q);
  p.k_strides = cache_strides(k_cache);
  p.v_strides = cache_strides(v_cache);
  p.lse_head = q.size(0);
  describe_options(op, options, max_seqlen_q, tokens_of(pages.table.size(1), p.block_size), p);
  if (write) write();
  return run_packed(q, p, table().attention);
}

namespace {

std::tuple<Tensor, Tensor> paged_attention(const Tensor& q, const Tensor& k_cache,
                                           const Tensor& v_cache, const Tensor& cu_seqlens_q,
                                           const Tensor& block_table, const Tensor& context_lens,
                                           int64_t max_seqlen_q, std::optional<Tensor> bias,
                                           std::optional<Tensor> sinks,
                                           std::optional<Tensor> alibi_slopes, bool causal,
                                           int64_t window_left, int64_t window_right,
                                           double softcap, std::optional<double> scale) {
  AttentionOptions options = {bias,        sinks,        alibi_slopes, causal,
                              window_left, window_right, softcap,      scale};
  return run_paged_attention(
      "paged_attention", q,
      {k_cache, v_cache, cu_seqlens_q, block_table, context_lens, max_seqlen_q}, options);
}

// --- paged_cache_write ---------------------------------------------------------------------------

void check_written(const char* op, const char* name, const Tensor& cache) {
  for (int64_t d = 0; d < kCacheRank; ++d)
    require(cache.size(d) <= 1 || cache.stride(d) != 0, op, name,
            " must not be expanded, since it is written, got stride 0 in dimension ", d);
}

// Each slot is a place in the cache, or -1; none but -1 comes twice.
void check_slots(const char* op, const Indices<int64_t>& slots, int64_t tokens, int64_t places) {
  bool ascending = true;
  int64_t last = -1;
  for (int64_t t = 0; t < tokens; ++t) {
    const int64_t slot = slots[t];
    require(slot >= -1 && slot < places, op, "slots must be -1 or one of the cache's ", places,
            " places, got ", slot, " for token ", t);
    if (slot < 0) continue;
    ascending &= slot > last;
    last = slot;
  }
  if (ascending) return;
  std::vector<std::pair<int64_t, int64_t>> sorted;
  sorted.reserve(tokens);
  for (int64_t t = 0; t < tokens; ++t)
    if (slots[t] >= 0) sorted.emplace_back(slots[t], t);
  std::ranges::sort(sorted);
  for (size_t i = 1; i < sorted.size(); ++i)
    require(sorted[i].first != sorted[i - 1].first, op, "slots must not repeat, got ",
            sorted[i].first, " for tokens ", sorted[i - 1].second, " and ", sorted[i].second);
}

}  // namespace

void run_cache_write(const char* op, const Tensor& k, const Tensor& v, Tensor& k_cache,
                     Tensor& v_cache, const Tensor& slots) {
  const struct {
    const char *name, *cache_name;
    const Tensor &tensor, &cache;
  } halves[] = {{"k", "k_cache", k, k_cache}, {"v", "v_cache", v, v_cache}};
  for (const auto& [name, cache_name, t, cache] : halves) {
    require_cpu(op, name, t);
    require_cpu(op, cache_name, cache);
    dtype_of(op, name, t);
    require(t.scalar_type() == k.scalar_type(), op, name, " must have k's dtype ",
            name_of(k.scalar_type()), ", got ", name_of(t.scalar_type()));
    require(cache.scalar_type() == t.scalar_type(), op, cache_name, " must have ", name,
            "'s dtype ", name_of(t.scalar_type()), ", got ", name_of(cache.scalar_type()));
    require_rank(op, name, t, 3);
    require_rank(op, cache_name, cache, kCacheRank);
    require(t.size(0) == k.size(0), op, name, " has ", t.size(0), " tokens, which is not k's ",
            k.size(0));
    require(t.size(1) == k.size(1), op, name, " has ", t.size(1), " heads, which is not k's ",
            k.size(1));
    require(cache.size(2) == t.size(1), op, cache_name, " has ", cache.size(2),
            " heads, which is not ", name, "'s ", t.size(1));
    require(cache.size(3) == t.size(2), op, cache_name, " has head size ", cache.size(3),
            ", which is not ", name, "'s ", t.size(2));
    require_unit_stride(op, name, t);
    require_unit_stride(op, cache_name, cache);
    check_written(op, cache_name, cache);
  }
  check_same_blocks(op, k_cache, v_cache);
  require_cpu(op, "slots", slots);
  require_dtype(op, "slots", slots, ScalarType::Long);
  require(slots.dim() == 1 && slots.size(0) == k.size(0), op, "slots must have shape [", k.size(0),
          "], got ", shape_of(slots));
  const Indices<int64_t> places(slots);
  check_slots(op, places, k.size(0), tokens_of(k_cache.size(0), k_cache.size(1)));

  table().paged_cache_write({
      .element_size = k.scalar_type() == ScalarType::Float ? 4 : 2,
      .tokens = k.size(0),
      .heads = k.size(1),
      .dim = k.size(2),
      .value_dim = v.size(2),
      .block_size = k_cache.size(1),
      .slots = places.data(),
      .k = k.const_data_ptr(),
      .v = v.const_data_ptr(),
      .k_strides = packed_strides(k),
      .v_strides = packed_strides(v),
      .k_cache = k_cache.mutable_data_ptr(),
      .v_cache = v_cache.mutable_data_ptr(),
      .k_cache_strides = cache_strides(k_cache),
      .v_cache_strides = cache_strides(v_cache),
      .threads = thread_count(),
  });
}

namespace {

void paged_cache_write(const Tensor& k, const Tensor& v, Tensor k_cache, Tensor v_cache,
                       const Tensor& slots) {
  run_cache_write("paged_cache_write", k, v, k_cache, v_cache, slots);
}

STABLE_TORCH_LIBRARY_IMPL(lanewise, CPU, m) {
  m.impl("paged_attention", TORCH_BOX(&paged_attention));
  m.impl("paged_cache_write", TORCH_BOX(&paged_cache_write));
}

}  // namespace

}  // namespace lanewise
