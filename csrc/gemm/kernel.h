// Matrix products with fused epilogues: the torch-free face. All strides count elements.
#pragma once

#include <cstdint>

#include "activation/kernel.h"
#include "simd/types.h"

namespace lanewise {

// Element (i, j) at data[i · row_stride + j · col_stride].
struct MatrixRef {
  const void* data = nullptr;
  DType dtype = DType::f32;
  int64_t row_stride = 0;
  int64_t col_stride = 0;
};

struct VectorRef {
  const void* data = nullptr;  // contiguous; null where there is none
  DType dtype = DType::f32;
};

// The right operand [k, n]: a matrix, or panels that pack_panels made of one.
struct RightRef {
  MatrixRef matrix;
  bool packed = false;
};

//   out = activation(a · b + bias) + residual
//   out = activation(a · gate + gate_bias) * (a · b + bias)      where gated
// for every matrix of a batch. Sums run in float32, in an order that does not depend on threads.
struct GemmParams {
  int64_t batch = 1;
  int64_t m, n, k;
  MatrixRef a;
  RightRef b;
  bool gated = false;
  RightRef gate;
  VectorRef bias;
  VectorRef gate_bias;
  Activation activation = Activation::none;
  MatrixRef residual;  // [m, n], col_stride 1; of out_dtype, or of any where there is no activation
  // Where gated, a · gate + gate_bias and a · b + bias, dense [m, n]; null where nobody needs them.
  float* kept_gate = nullptr;
  float* kept = nullptr;
  void* out;
  DType out_dtype;
  int64_t out_stride;  // of rows; columns are contiguous
  // Where each matrix of the batch begins, in elements; null for a batch of one.
  const int64_t* a_offsets = nullptr;
  const int64_t* b_offsets = nullptr;
  const int64_t* out_offsets = nullptr;
  int threads = 1;
};

// Panels [⌈n / width⌉][k][width] of a right operand [k, n] in its own dtype, width = panel_width of
// the target. In bfloat16 two neighbours in k are one word of 32 bits, the even one in its lower
// half: [⌈n / width⌉][⌈k / 2⌉][width][2], where an odd k ends in zeros.
struct PackParams {
  MatrixRef matrix;
  int64_t n, k;
  void* panels;
  int threads = 1;
};

// out[j] = Σ_i a[i][j], rows contiguous.
struct ColumnSumParams {
  const void* a;
  DType dtype;
  int64_t rows, cols, row_stride;
  void* out;
  DType out_dtype;
  int threads = 1;
};

#ifdef LANEWISE_TARGET
namespace LANEWISE_TARGET {
void gemm(const GemmParams& p);
void pack_panels(const PackParams& p);
void column_sum(const ColumnSumParams& p);
}  // namespace LANEWISE_TARGET
#endif

}  // namespace lanewise
