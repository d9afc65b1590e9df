// The matrix products as other families' ops use them.
#pragma once

#include "check.h"
#include "gemm/packed.h"

namespace lanewise {

// A weight as the right operand [in_features, out_features].
struct WeightRef {
  RightRef right;
  int64_t out_features;
};

// A weight of x's dtype: plain [out_features, in_features], or what pack_weight made of one.
WeightRef weight_argument(const char* op, const char* arg, const Tensor& weight,
                          int64_t in_features, const Tensor& x);

VectorRef bias_argument(const char* op, const char* arg, const MaybeTensor& bias, int64_t n,
                        ScalarType type);

// activation(x · weight + bias) + residual over a fresh output: of x's dtype, or of the residual's
// where that is the wider float32, as the sum would be.
Tensor run_linear(const char* op, const Tensor& x, const WeightRef& weight, const VectorRef& bias,
                  const MaybeTensor& residual, const std::string& activation);

// The sums of both products with their biases, float32 of the output's shape.
struct GatedSums {
  Tensor gate, up;
};

// activation(x · gate + gate_bias) · (x · up + up_bias); `kept` receives the two sums.
Tensor run_gated(const char* op, const Tensor& x, const WeightRef& gate, const WeightRef& up,
                 const VectorRef& gate_bias, const VectorRef& up_bias,
                 const std::string& activation, const GatedSums* kept = nullptr);

}  // namespace lanewise
