// The norms as other families' ops use them.
#pragma once

#include <tuple>

#include "check.h"

namespace lanewise {

struct NormOptions {
  bool centred;  // layer norm, else root mean square
  double eps;
  double weight_offset;
};

struct NormVectors {
  MaybeTensor weight, bias;
};

// A vector with one entry for each of x's columns, in x's dtype or float32.
void check_columns(const char* op, const char* arg, const Tensor& t, const Tensor& x);

// (norm(x), nothing), or (norm(x + residual), x + residual).
std::tuple<Tensor, MaybeTensor> run_norm(const char* op, const Tensor& x,
                                         const MaybeTensor& residual, const NormVectors& vectors,
                                         const NormOptions& options);

// norm(x) + after, rounded once.
Tensor run_norm_then_add(const char* op, const Tensor& x, const Tensor& after,
                         const NormVectors& vectors, const NormOptions& options);

}  // namespace lanewise
