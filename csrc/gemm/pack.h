// Packing: lines of a matrix (rows of A, columns of B) side by side in a panel, k outermost, so
// that the register tile reads memory in order.
#pragma once

#include "gemm/words.h"

namespace lanewise::LANEWISE_TARGET {

// Copies `count` elements, widened or narrowed.
template <class S, class D>
LANEWISE_INLINE void convert_row(const S* src, D* dst, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(dst + i, load(src + i));
  if (i < count) {
    const int rest = static_cast<int>(count - i);
    store(dst + i, load(src + i, rest), rest);
  }
}

// Words [i, i + kLanes) of a line, as 32-bit lanes; or `left` elements of k, zeros after them.
template <class Word, class T>
struct Line;
template <class T>
struct Line<float, T> {
  static LANEWISE_INLINE f32v words(const T* line, int64_t i) { return load(line + i); }
  static LANEWISE_INLINE f32v last_words(const T* line, int64_t i, int left) {
    return load(line + i, left);
  }
};
template <>
struct Line<bf16x2, bf16> {
  static LANEWISE_INLINE f32v words(const bf16* line, int64_t i) {
    return as_float(load(reinterpret_cast<const bf16x2*>(line + 2 * i)));
  }
  static LANEWISE_INLINE f32v last_words(const bf16* line, int64_t i, int left) {
    bf16x2 copy[kLanes] = {};
    __builtin_memcpy(copy, line + 2 * i, sizeof(bf16) * left);
    return as_float(load(copy));
  }
};

// Transposes the four lanes of every quarter of 128 bits: lane 4 q + c of row r goes to lane 4 q +
// r of row c.
LANEWISE_INLINE void transpose_fours(f32v* rows) {
  const f32v a = shuffle_fours<0, 4, 1, 5>(rows[0], rows[1]);
  const f32v b = shuffle_fours<2, 6, 3, 7>(rows[0], rows[1]);
  const f32v c = shuffle_fours<0, 4, 1, 5>(rows[2], rows[3]);
  const f32v d = shuffle_fours<2, 6, 3, 7>(rows[2], rows[3]);
  rows[0] = shuffle_fours<0, 1, 4, 5>(a, c);
  rows[1] = shuffle_fours<2, 3, 6, 7>(a, c);
  rows[2] = shuffle_fours<0, 1, 4, 5>(b, d);
  rows[3] = shuffle_fours<2, 3, 6, 7>(b, d);
}

// Rows kBlock apart exchange blocks of kBlock lanes: a transposition of blocks.
template <int kBlock>
LANEWISE_INLINE void exchange_blocks(f32v (&rows)[kLanes]) {
#pragma GCC unroll 16
  for (int r = 0; r < kLanes; ++r) {
    if (r & kBlock) continue;
    const f32v a = rows[r], b = rows[r + kBlock];
    rows[r] = alternate_blocks<kBlock>(a, b, false);
    rows[r + kBlock] = alternate_blocks<kBlock>(a, b, true);
  }
}

LANEWISE_INLINE void transpose(f32v (&rows)[kLanes]) {
#pragma GCC unroll 4
  for (int r = 0; r < kLanes; r += 4) transpose_fours(rows + r);
  if constexpr (kLanes >= 8) exchange_blocks<4>(rows);
  if constexpr (kLanes >= 16) exchange_blocks<8>(rows);
}

// Lines that are contiguous in k, kLanes lines by kLanes words at a time.
template <int WIDTH, class Word, class T>
void pack_contiguous_lines(const T* src, int64_t line_stride, int lines, int64_t k, Word* panel) {
  const int64_t words = k / kDepthOf<Word>, whole = words - words % kLanes;
  const int left = static_cast<int>(k - whole * kDepthOf<Word>);
  for (int group = 0; group < WIDTH; group += kLanes) {
    const int at = group && group + kLanes > WIDTH ? WIDTH - kLanes : group;
    const T* line[kLanes];
    for (int r = 0; r < kLanes; ++r)
      line[r] = src + (at + r < lines ? at + r : lines - 1) * line_stride;
    float* to = reinterpret_cast<float*>(panel) + at;
    f32v rows[kLanes];
    for (int64_t i = 0; i < whole; i += kLanes, to += kLanes * WIDTH) {
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r) rows[r] = Line<Word, T>::words(line[r], i);
      transpose(rows);
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r) store(to + r * WIDTH, rows[r]);
    }
    if (left == 0) continue;
    for (int r = 0; r < kLanes; ++r) rows[r] = Line<Word, T>::last_words(line[r], whole, left);
    transpose(rows);
    for (int r = 0; r * kDepthOf<Word> < left; ++r) store(to + r * WIDTH, rows[r]);
  }
}

// Lines that lie side by side: word i of all of them is one row of the source, or two.
template <int WIDTH, class Word, class T>
void pack_adjacent_lines(const T* src, int64_t k_stride, int lines, int64_t k, Word* panel) {
  for (int64_t i = 0; i < k; i += kDepthOf<Word>, panel += WIDTH) {
    const T* row = src + i * k_stride;
    const auto words = [&](const T* from, auto... count) LANEWISE_LAMBDA {
      if constexpr (kDepthOf<Word> == 1) {
        return load(from, count...);
      } else {
        const pairs even = zero_extend(load_u16(from, count...));
        if (i + 1 == k) return as_float(even);
        return as_float(even | zero_extend(load_u16(from + k_stride, count...)) << 16);
      }
    };
    for (int at = 0; at < WIDTH && at < lines; at += kLanes) {
      const int count = lines - at;
      float* to = reinterpret_cast<float*>(panel) + at;
      store(to, count >= kLanes ? words(row + at) : words(row + at, count));
    }
  }
}

// panel[i · WIDTH + l] = word i of line l, i < ⌈k / depth of a word⌉; an odd k ends in half a word
// of zero. `src` points to the first element of the first line; strides count elements.
//
// Every store is a whole vector: where the panel's width is no multiple of it, stores run over into
// the next word's place, and the last one past the end by less than a vector: there must be room.
// Lines beyond `lines` hold what happens to be there: what they are multiplied into is never kept.
template <int WIDTH, class Word, class T>
void pack_panel(const T* src, int64_t line_stride, int64_t k_stride, int lines, int64_t k,
                Word* panel) {
  if (k_stride == 1) return pack_contiguous_lines<WIDTH>(src, line_stride, lines, k, panel);
  if (line_stride == 1) return pack_adjacent_lines<WIDTH>(src, k_stride, lines, k, panel);
  for (int64_t i = 0; i < k; i += kDepthOf<Word>, panel += WIDTH)
    for (int l = 0; l < lines; ++l) {
      const T* from = src + l * line_stride + i * k_stride;
      if constexpr (kDepthOf<Word> == 1)
        panel[l] = to_float(*from);
      else
        panel[l].bits = from->bits | uint32_t{i + 1 < k ? from[k_stride].bits : uint16_t{0}} << 16;
    }
}

}  // namespace lanewise::LANEWISE_TARGET
