// The buffer that pack_weight makes: a header that says what it holds, then the panels.
//
// It travels as a uint8 tensor [out_features, bytes], so that a shape is enough to know the op's
// output. The header is untrusted when it comes back: everything is checked before the panels are
// read.
#pragma once

#include <algorithm>
#include <cstring>

#include "check.h"
#include "dispatch/table.h"

namespace lanewise {

struct PackedHeader {
  char magic[8];
  uint32_t version;
  uint32_t dtype;
  int64_t out_features;
  int64_t in_features;
  uint32_t panel_width;
  uint32_t reserved;
  char target[24];
};
static_assert(sizeof(PackedHeader) == 64);  // keeps the panels aligned to a cache line

inline constexpr char kPackedMagic[8] = {'l', 'a', 'n', 'e', 'w', 'i', 's', 'e'};
inline constexpr uint32_t kPackedVersion = 2;

inline int64_t element_size(DType dtype) { return dtype == DType::f32 ? 4 : 2; }

// Bytes of each of the tensor's rows, which together hold header and panels; -1 where that many
// bytes cannot be counted.
inline int64_t packed_row(int64_t out_features, int64_t in_features, DType dtype, int64_t width) {
  if (out_features == 0) return 0;
  if (dtype == DType::bf16) in_features += in_features % 2;  // its panels hold pairs
  const int64_t columns = (out_features + width - 1) / width * width;
  int64_t bytes;
  if (__builtin_mul_overflow(columns, in_features, &bytes) ||
      __builtin_mul_overflow(bytes, element_size(dtype), &bytes) ||
      __builtin_add_overflow(bytes, static_cast<int64_t>(sizeof(PackedHeader)), &bytes))
    return -1;
  return (bytes - 1) / out_features + 1;
}

inline PackedHeader make_header(int64_t out_features, int64_t in_features, DType dtype) {
  PackedHeader h{};
  std::memcpy(h.magic, kPackedMagic, sizeof h.magic);
  h.version = kPackedVersion;
  h.dtype = static_cast<uint32_t>(dtype);
  h.out_features = out_features;
  h.in_features = in_features;
  h.panel_width = static_cast<uint32_t>(table().panel_width);
  std::strncpy(h.target, table().target, sizeof h.target - 1);
  return h;
}

// Whether a header's text can go into a message: terminated, and lower case letters and digits
// only.
template <size_t N>
inline bool is_name(const char (&text)[N]) {
  const size_t length = strnlen(text, N);
  const auto plain = [](char c) { return ('a' <= c && c <= 'z') || ('0' <= c && c <= '9'); };
  return 0 < length && length < N && std::all_of(text, text + length, plain);
}

// The panels of a packed argument as a right operand [in_features, out_features].
inline RightRef unpack_argument(const char* op, const char* arg, const Tensor& packed,
                                int64_t in_features, DType dtype) {
  require_cpu(op, arg, packed);
  require_dtype(op, arg, packed, ScalarType::Byte);
  require(packed.dim() == 2 && packed.is_contiguous(), op, arg,
          " must be the contiguous 2-dimensional buffer that pack_weight returned, got shape ",
          shape_of(packed));
  RightRef right{.matrix = {.dtype = dtype}, .packed = true};
  if (packed.size(0) == 0) return right;

  PackedHeader h;
  require(packed.numel() >= static_cast<int64_t>(sizeof h), op, arg,
          " is truncated: ", packed.numel(), " bytes cannot hold a header of ", sizeof h);
  const char* bytes = static_cast<const char*>(packed.const_data_ptr());
  std::memcpy(&h, bytes, sizeof h);
  require(std::memcmp(h.magic, kPackedMagic, sizeof h.magic) == 0, op, arg,
          " was not made by pack_weight: its header does not begin with 'lanewise'");
  require(h.version == kPackedVersion, op, arg, " has format version ", h.version,
          ", this build reads version ", kPackedVersion, ": pack the weight again");
  require(is_name(h.target), op, arg, " names no instruction set: the buffer is damaged");
  require(std::strcmp(h.target, table().target) == 0 &&
              h.panel_width == static_cast<uint32_t>(table().panel_width),
          op, arg, " was packed for instruction set '", h.target, "', this process runs '",
          table().target, "': pack the weight again");
  require(h.dtype <= static_cast<uint32_t>(DType::f16) && h.reserved == 0, op, arg,
          " has an unknown dtype in its header: the buffer is damaged");
  constexpr const char* kNames[] = {"float32", "bfloat16", "float16"};
  require(h.dtype == static_cast<uint32_t>(dtype), op, arg, " holds ", kNames[h.dtype],
          " weights, x is ", kNames[static_cast<int>(dtype)]);
  require(h.out_features == packed.size(0), op, arg, " is truncated or damaged: it has ",
          packed.size(0), " rows, its header says ", h.out_features);
  require(h.in_features == in_features, op, arg, " has ", h.in_features,
          " input features, which is not x's ", in_features);
  // A size that overflows is -1, which no shape has.
  const int64_t row = packed_row(h.out_features, in_features, dtype, h.panel_width);
  require(packed.size(1) == row, op, arg, " is truncated or damaged: its rows have ",
          packed.size(1), " bytes, its header means ", row);
  right.matrix.data = bytes + sizeof h;
  return right;
}

}  // namespace lanewise
