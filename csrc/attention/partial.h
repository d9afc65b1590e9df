// Where the keys of a head are cut into pieces: what each piece leaves, and how they are joined.
#pragma once

#include "attention/blocks.h"
#include "attention/softmax.h"

namespace lanewise::LANEWISE_TARGET {

// The sums of one piece over its keys, for the columns n of a query stack: nothing normalised yet.
struct Partial {
  float* max;  // [columns]
  float* sum;
  float* out;  // [columns][value_dim]
};

// The pieces of one head.
class Partials {
 public:
  Partials(float* data, int64_t columns, int64_t value_dim)
      : data_(data), columns_(columns), value_dim_(value_dim) {}

  static int64_t floats(int64_t columns, int64_t value_dim, int64_t pieces) {
    return pieces * columns * (value_dim + 2);
  }

  Partial operator[](int64_t piece) const {
    float* max = data_ + piece * columns_ * (value_dim_ + 2);
    return {max, max + columns_, max + 2 * columns_};
  }

  // Joins the pieces in their order, whoever made them, and normalises.
  template <class T>
  void join(const QueryStack& stack, int64_t pieces) const {
    for (int64_t n0 = 0; n0 < columns_; n0 += kPanelCols)
      join_columns<T>(stack, n0, static_cast<int>(smaller(kPanelCols, columns_ - n0)), pieces);
  }

 private:
  template <class T>
  void join_columns(const QueryStack& stack, int64_t n0, int count, int64_t pieces) const {
    const AttentionParams& p = stack.p;
    Softmax softmax;
    softmax.start();
    float* total = (*this)[0].out + n0 * value_dim_;  // the first piece becomes their sum
    for (int64_t i = 0; i < pieces; ++i) {
      const Partial piece = (*this)[i];
      float max[kPanelCols], sum[kPanelCols], weight[kPanelCols];
      fill(max, kPanelCols, -__builtin_inff());
      fill(sum, kPanelCols, 0.0f);
      for (int c = 0; c < count; ++c) {
        max[c] = piece.max[n0 + c];
        sum[c] = piece.sum[n0 + c];
      }
      softmax.join(max, sum, weight);
      const float* from = piece.out + n0 * value_dim_;
      for (int c = 0; c < count; ++c)
        for (int64_t d = 0; d < value_dim_; ++d) {
          float& to = total[c * value_dim_ + d];
          to = i == 0 ? to * weight[c]
                      : to * softmax.factor[c] + from[c * value_dim_ + d] * weight[c];
        }
    }
    float sink[kPanelCols], lse[kPanelCols];
    stack.sinks(n0, count, sink);
    softmax.finish(sink, lse);
    T* rows[kPanelCols];
    stack.rows(static_cast<T*>(p.out), p.out_strides, n0, count, rows);
    for (int c = 0; c < count; ++c) {
      p.lse[stack.stats(n0 + c)] = lse[c];
      const bool nothing = lse[c] == -__builtin_inff();
      const float* from = total + c * value_dim_;
      for (int64_t d = 0; d < value_dim_; d += kLanes)
        store_some(
            rows[c] + d,
            nothing ? broadcast(0.0f) : load_some(from + d, value_dim_ - d) * softmax.factor[c],
            value_dim_ - d);
    }
  }

  float* data_;
  int64_t columns_, value_dim_;
};

}  // namespace lanewise::LANEWISE_TARGET
