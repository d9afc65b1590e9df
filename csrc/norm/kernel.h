// Root mean square and layer norm, with or without the addition of a residual: the torch-free face.
#pragma once

#include <cstdint>

#include "simd/types.h"

namespace lanewise {

// Where the rows of a tensor lie: row ((o · middle) + m) · inner + i begins at o · outer_stride +
// m · middle_stride + i · inner_stride. Strides count elements.
struct Rows {
  int64_t middle, inner;
  int64_t outer_stride, middle_stride, inner_stride;
};

struct NormParams {
  DType dtype;   // of x, residual, y and sum
  bool centred;  // layer norm: subtract the mean first
  int64_t rows, cols;
  float eps;
  float weight_offset;
  const void* x;
  Rows x_rows;
  const void* residual;  // nullptr: normalise x alone
  Rows residual_rows;
  const void* weight;  // [cols], nullptr: one
  DType weight_dtype;
  const void* bias;  // [cols], nullptr: zero
  DType bias_dtype;
  const void* after;  // added to the normalised rows, nullptr: nothing
  Rows after_rows;
  void* y;    // [rows, cols], dense
  void* sum;  // [rows, cols], dense; x + residual, only with a residual
  int threads;
};

// The rows are cut into this many chunks at most, whatever the number of threads; each sums its
// part of the weight's gradient, so that the result does not depend on who computes what.
inline constexpr int64_t kNormChunks = 32;

struct NormBackwardParams {
  DType dtype;  // of grad, grad_sum, x, residual and grad_x
  bool centred;
  int64_t rows, cols;
  float eps;
  float weight_offset;
  const void* grad;
  Rows grad_rows;
  const void* grad_sum;  // nullptr: zero
  Rows grad_sum_rows;
  const void* x;
  Rows x_rows;
  const void* residual;
  Rows residual_rows;
  const void* weight;
  DType weight_dtype;
  void* grad_x;       // [rows, cols], dense
  void* grad_weight;  // [cols] of weight_dtype, nullptr: not wanted
  float* grad_bias;   // [cols], nullptr: not wanted
  float* partials;    // [chunks, 2, cols], working memory
  int64_t chunks;     // 1 to kNormChunks
  int threads;
};

#ifdef LANEWISE_TARGET
namespace LANEWISE_TARGET {
void norm(const NormParams& p);
void norm_backward(const NormBackwardParams& p);
}  // namespace LANEWISE_TARGET
#endif

}  // namespace lanewise
