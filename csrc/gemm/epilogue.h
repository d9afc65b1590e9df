// What happens to a tile of sums while it is still in L1: bias, activation or gate, residual,
// rounding, storing.
#pragma once

#include "activation/functions.h"
#include "gemm/kernel.h"
#include "gemm/pack.h"
#include "gemm/tile.h"

namespace lanewise::LANEWISE_TARGET {

// The part of the output that one tile covers.
struct Patch {
  int64_t row, col;
  int rows, cols;  // cols ≤ kTileCols
};

// The bias of one panel, widened; zero where there is none.
struct PanelBias {
  float values[kTileCols];
  PanelBias(const VectorRef& bias, int64_t col, int cols) {
    for (int c = 0; c < kTileCols; ++c) values[c] = 0.0f;
    if (!bias.data) return;
    with_dtype(bias.dtype, [&](auto element) {
      convert_row(static_cast<const decltype(element)*>(bias.data) + col, values, cols);
    });
  }
  f32v vector(int v) const { return load(values + v * kLanes); }
};

template <Activation A>
void activate_tile(float* c, int64_t ldc, int rows, const PanelBias& bias) {
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < kTileVectors; ++v) {
      float* p = c + r * ldc + v * kLanes;
      store(p, activate<A>(load(p) + bias.vector(v)));
    }
}

template <Activation A>
void gate_tile(float* c, const float* gate, int64_t ldc, int rows, const PanelBias& bias,
               const PanelBias& gate_bias) {
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < kTileVectors; ++v) {
      const int64_t at = r * ldc + v * kLanes;
      const f32v g = activate<A>(load(gate + at) + gate_bias.vector(v));
      store(c + at, g * (load(c + at) + bias.vector(v)));
    }
}

template <class R>
void add_residual(float* c, int64_t ldc, const MatrixRef& residual, const Patch& patch) {
  const R* from =
      static_cast<const R*>(residual.data) + patch.row * residual.row_stride + patch.col;
  for (int r = 0; r < patch.rows; ++r, c += ldc, from += residual.row_stride) {
    for (int v = 0; v < kTileVectors; ++v) {
      const int left = patch.cols - v * kLanes;
      if (left <= 0) break;
      float* p = c + v * kLanes;
      const R* q = from + v * kLanes;
      store(p, load(p) + (left >= kLanes ? load(q) : load(q, left)));
    }
  }
}

template <class T>
void store_tile(const float* c, int64_t ldc, T* out, int64_t out_stride, const Patch& patch) {
  out += patch.row * out_stride + patch.col;
  for (int r = 0; r < patch.rows; ++r) convert_row(c + r * ldc, out + r * out_stride, patch.cols);
}

// Nothing to do but to store float32: the register tile may write the output itself.
inline bool is_plain(const GemmParams& p) {
  return !p.gated && !p.bias.data && !p.residual.data && p.activation == Activation::none &&
         p.out_dtype == DType::f32;
}

inline void finish_tile(const GemmParams& p, float* c, const float* gate, int64_t ldc,
                        const PanelBias& bias, const PanelBias& gate_bias, const Patch& patch) {
  with_activation(p.activation, [&](auto tag) {
    constexpr Activation A = decltype(tag)::value;
    if (gate)
      gate_tile<A>(c, gate, ldc, patch.rows, bias, gate_bias);
    else if (A != Activation::none || p.bias.data)
      activate_tile<A>(c, ldc, patch.rows, bias);
  });
  if (p.residual.data)
    with_dtype(p.residual.dtype,
               [&](auto element) { add_residual<decltype(element)>(c, ldc, p.residual, patch); });
  with_dtype(p.out_dtype, [&](auto element) {
    store_tile(c, ldc, static_cast<decltype(element)*>(p.out), p.out_stride, patch);
  });
}

}  // namespace lanewise::LANEWISE_TARGET
