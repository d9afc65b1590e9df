// What every op.cpp says when an argument is wrong: one sentence that names the op, the argument,
// what it must be and what came.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "simd/types.h"

namespace lanewise {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

template <class... Parts>
[[noreturn]] inline void fail(const char* op, const Parts&... parts) {
  std::ostringstream sentence;
  sentence << "lanewise." << op << ": ";
  (sentence << ... << parts);
  throw std::runtime_error(sentence.str());
}

template <class... Parts>
inline void require(bool condition, const char* op, const Parts&... parts) {
  if (!condition) [[unlikely]]
    fail(op, parts...);
}

// Sizes as a message shows them: text only where a message is written, not with every check.
template <class Sizes>
struct ShapeText {
  Sizes sizes;
  friend std::ostream& operator<<(std::ostream& out, const ShapeText& shape) {
    out << "[";
    for (size_t i = 0; i < shape.sizes.size(); ++i) out << (i ? ", " : "") << shape.sizes[i];
    return out << "]";
  }
};

inline auto shape_of(const Tensor& t) { return ShapeText<decltype(t.sizes())>{t.sizes()}; }

using Sizes = std::vector<int64_t>;
inline auto shape_of(const Sizes& sizes) { return ShapeText<const Sizes&>{sizes}; }

inline bool has_shape(const Tensor& t, const Sizes& sizes) {
  return std::ranges::equal(t.sizes(), sizes);
}

inline const char* name_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Bool:
      return "bool";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    default:
      return "another dtype";
  }
}

inline bool is_floating(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half;
}

inline DType dtype_of(const char* op, const char* arg, const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return DType::f32;
    case ScalarType::BFloat16:
      return DType::bf16;
    case ScalarType::Half:
      return DType::f16;
    default:
      fail(op, arg, " must be float32, bfloat16 or float16, got ", name_of(t.scalar_type()));
  }
}

// Bytes of its storage that a tensor's sizes and strides reach. Unsigned, since strides of a tensor
// without elements may be anything.
inline uint64_t bytes_reached(const Tensor& t) {
  const auto sizes = t.sizes();
  int64_t* strides;  // not t.strides(), which asks for the rank once more
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(t.get(), &strides));
  uint64_t last = t.storage_offset();
  for (size_t d = 0; d < sizes.size(); ++d) {
    if (sizes[d] == 0) return 0;
    last += static_cast<uint64_t>(sizes[d] - 1) * static_cast<uint64_t>(strides[d]);
  }
  return (last + 1) * t.element_size();
}

// On the CPU, with memory behind every element: a storage can be resized under its tensors, as FSDP
// does to free parameters. Comes before the first read of any argument.
inline void require_cpu(const char* op, const char* arg, const Tensor& t) {
  require(t.is_cpu(), op, arg, " must be on the CPU like the first argument, got another device");
  int64_t bytes;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(t.get(), &bytes));
  const uint64_t reached = bytes_reached(t);
  require(reached <= static_cast<uint64_t>(bytes), op, arg, " of shape ", shape_of(t),
          " must have a storage of at least ", reached, " bytes, got ", bytes,
          ": it was freed or resized");
}

inline void require_dtype(const char* op, const char* arg, const Tensor& t, ScalarType type) {
  require(t.scalar_type() == type, op, arg, " must be ", name_of(type), ", got ",
          name_of(t.scalar_type()));
}

inline void require_rank(const char* op, const char* arg, const Tensor& t, int64_t rank) {
  require(t.dim() == rank, op, arg, " must have ", rank, " dimensions, got shape ", shape_of(t));
}

// The innermost dimension must be contiguous; one of at most one element is, whatever its stride.
inline void require_unit_stride(const char* op, const char* arg, const Tensor& t) {
  if (t.dim() == 0 || t.numel() == 0) return;
  const int64_t last = t.dim() - 1;
  require(t.size(last) <= 1 || t.stride(last) == 1, op, arg,
          " must have stride 1 in its last dimension, got stride ", t.stride(last));
}

// Finite as the kernels see it, in float32.
inline void require_finite(const char* op, const char* arg, double value) {
  require(std::isfinite(static_cast<float>(value)), op, arg, " must be finite in float32, got ",
          value);
}

// A dense uninitialised CPU tensor. Unlike torch::stable::new_empty this is a direct call: the way
// through the dispatcher costs more than the kernel of a small op.
inline Tensor empty_cpu(torch::headeronly::IntHeaderOnlyArrayRef size, ScalarType dtype) {
  std::vector<int64_t> strides(size.size());
  int64_t stride = 1;
  for (size_t d = size.size(); d-- > 0;) {
    strides[d] = stride;
    stride *= size[d] > 0 ? size[d] : 1;
  }
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(size.size()), size.data(), strides.data(),
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)),
      aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

inline int thread_count() { return static_cast<int>(torch::stable::get_num_threads()); }

}  // namespace lanewise
