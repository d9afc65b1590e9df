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

// The bias of one panel, widened; where there is none -0, which changes no sum, not even -0.
struct PanelBias {
  float values[kTileCols];
  PanelBias(const VectorRef& bias, int64_t col, int cols) {
    for (int c = 0; c < kTileCols; ++c) values[c] = -0.0f;
    if (!bias.data) return;
    with_dtype(bias.dtype, [&](auto element) {
      convert_row(static_cast<const decltype(element)*>(bias.data) + col, values, cols);
    });
  }
  f32v vector(int v) const { return load(values + v * kLanes); }
};

// One pass from the sums to the output; `residual`, where given, has the output's type.
template <Activation A, bool kGated, class T>
void finish_rows(const GemmParams& p, const float* c, const float* gate, int64_t ldc,
                 const PanelBias& bias, const PanelBias& gate_bias, const T* residual,
                 const Patch& patch) {
  T* out = static_cast<T*>(p.out) + patch.row * p.out_stride + patch.col;
  if (residual) residual += patch.row * p.residual.row_stride + patch.col;
  const int64_t first = patch.row * p.n + patch.col;
  float* kept = p.kept ? p.kept + first : nullptr;
  float* kept_gate = p.kept_gate ? p.kept_gate + first : nullptr;
  for (int r = 0; r < patch.rows; ++r, c += ldc, out += p.out_stride) {
    const auto step = [&](int v, auto... count) {
      const int at = v * kLanes;
      f32v s = load(c + at) + bias.vector(v);
      if constexpr (kGated) {
        const f32v z = load(gate + at) + gate_bias.vector(v);
        if (kept) {
          store(kept + at, s, count...);
          store(kept_gate + at, z, count...);
        }
        s *= activate<A>(z);
      } else {
        s = activate<A>(s);
      }
      if (residual) s += load(residual + at, count...);
      store(out + at, s, count...);
    };
    for (int v = 0; v < kTileVectors; ++v) {
      const int left = patch.cols - v * kLanes;
      if (left >= kLanes)
        step(v);
      else if (left > 0)
        step(v, left);
    }
    if constexpr (kGated) gate += ldc;
    if (kept) {
      kept += p.n;
      kept_gate += p.n;
    }
    if (residual) residual += p.residual.row_stride;
  }
}

// Nothing to do but to store float32: the register tile may write the output itself.
inline bool is_plain(const GemmParams& p) {
  return !p.gated && !p.bias.data && !p.residual.data && p.activation == Activation::none &&
         p.out_dtype == DType::f32;
}

// Asks for the lines of the output that a patch will be written to: their rows lie far apart.
inline void prefetch_patch(const GemmParams& p, const Patch& patch) {
  const int64_t size = p.out_dtype == DType::f32 ? 4 : 2;
  const char* row = static_cast<const char*>(p.out) + (patch.row * p.out_stride + patch.col) * size;
  for (int r = 0; r < patch.rows; ++r, row += p.out_stride * size)
    for (int64_t byte = 0; byte < kTileCols * size; byte += 64) __builtin_prefetch(row + byte, 1);
}

// A residual of another type than the output, which has no activation then, joins the sums first.
inline void add_other_residual(const GemmParams& p, float* c, int64_t ldc, const Patch& patch) {
  with_dtype(p.residual.dtype, [&](auto element) {
    using R = decltype(element);
    const R* from =
        static_cast<const R*>(p.residual.data) + patch.row * p.residual.row_stride + patch.col;
    for (int r = 0; r < patch.rows; ++r, c += ldc, from += p.residual.row_stride)
      for (int i = 0; i < patch.cols; ++i) c[i] += to_float(from[i]);
  });
}

inline void finish_tile(const GemmParams& p, float* c, const float* gate, int64_t ldc,
                        const PanelBias& bias, const PanelBias& gate_bias, const Patch& patch) {
  const bool own = p.residual.dtype == p.out_dtype;
  if (p.residual.data && !own) add_other_residual(p, c, ldc, patch);
  with_dtype(p.out_dtype, [&](auto element) {
    using T = decltype(element);
    const T* residual = own ? static_cast<const T*>(p.residual.data) : nullptr;
    with_activation(p.activation, [&](auto tag) {
      constexpr Activation A = decltype(tag)::value;
      if (gate)
        finish_rows<A, true, T>(p, c, gate, ldc, bias, gate_bias, residual, patch);
      else
        finish_rows<A, false, T>(p, c, nullptr, ldc, bias, gate_bias, residual, patch);
    });
  });
}

}  // namespace lanewise::LANEWISE_TARGET
