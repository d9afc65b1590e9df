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

// What a line in memory is read by: 32 bits, two elements in bfloat16; or one float16, widened.
template <class T>
struct LineWord {
  using Type = T;
};
template <>
struct LineWord<bf16> {
  using Type = bf16x2;
};

// rows[w] = word w of kLanes lines, w < kLanes: a block transposed. Its halves change places while
// they are loaded, which costs no shuffle where a load can insert half a vector.
template <class W>
LANEWISE_INLINE void transposed_block(const W* const (&line)[kLanes], int64_t at,
                                      f32v (&rows)[kLanes]) {
  constexpr bool kHalves = kLanes >= 8 && sizeof(W) == 4;
  if constexpr (kHalves) {
#pragma GCC unroll 16
    for (int r = 0; r < kLanes; ++r) {
      const int first = r % (kLanes / 2), half = r - first;
      rows[r] = load_halves(line[first] + at + half, line[first + kLanes / 2] + at + half);
    }
  } else {
#pragma GCC unroll 16
    for (int r = 0; r < kLanes; ++r) rows[r] = reinterpret_cast<f32v>(load(line[r] + at));
  }
#pragma GCC unroll 4
  for (int r = 0; r < kLanes; r += 4) transpose_fours(rows + r);
  if constexpr (kLanes == 16 || (kLanes == 8 && !kHalves)) exchange_blocks<4>(rows);
  if constexpr (kLanes == 16 && !kHalves) exchange_blocks<8>(rows);
}

// Lines that are contiguous in k, kLanes lines by kLanes words at a time.
template <int WIDTH, class Word, class T>
void pack_contiguous_lines(const T* src, int64_t line_stride, int lines, int64_t k, Word* panel) {
  using W = typename LineWord<T>::Type;
  constexpr int kDepth = kDepthOf<W>, kBlock = kLanes * kDepth;
  for (int group = 0; group < WIDTH; group += kLanes) {
    const int at = group && group + kLanes > WIDTH ? WIDTH - kLanes : group;
    const T* line[kLanes];
    for (int r = 0; r < kLanes; ++r)
      line[r] = src + (at + r < lines ? at + r : lines - 1) * line_stride;
    Word* to = panel + at;
    // The first `count` elements of k of a block that was read.
    const auto store_block = [&](const f32v(&rows)[kLanes], int count) LANEWISE_LAMBDA {
      float* word = reinterpret_cast<float*>(to);
#pragma GCC unroll 16
      for (int w = 0; w < kLanes; ++w) {
        if (w * kDepth >= count) break;
        if constexpr (kDepth > kDepthOf<Word>) {
          const pairs both = as_uint(rows[w]);
          store(word + 2 * w * WIDTH, widen_even(both));
          if (2 * w + 1 < count) store(word + (2 * w + 1) * WIDTH, widen_odd(both));
        } else {
          store(word + w * WIDTH, rows[w]);
        }
      }
      to += kBlock / kDepthOf<Word> * WIDTH;
    };
    const W* words[kLanes];
    f32v rows[kLanes];
    for (int r = 0; r < kLanes; ++r) words[r] = reinterpret_cast<const W*>(line[r]);
    int64_t i = 0;
    for (; i + kBlock <= k; i += kBlock) {
      transposed_block<W>(words, i / kDepth, rows);
      store_block(rows, kBlock);
    }
    if (i == k) continue;
    T rest[kLanes][kBlock] = {};
    for (int r = 0; r < kLanes; ++r) {
      __builtin_memcpy(rest[r], line[r] + i, static_cast<size_t>(k - i) * sizeof(T));
      words[r] = reinterpret_cast<const W*>(rest[r]);
    }
    transposed_block<W>(words, 0, rows);
    store_block(rows, static_cast<int>(k - i));
  }
}

// Lines that lie side by side: word i of all of them is one row of the source, or two. Of the
// `there` lines that there are from src on, more than are wanted may be read.
template <int WIDTH, class Word, class T>
void pack_adjacent_lines(const T* src, int64_t k_stride, int64_t there, int lines, int64_t k,
                         Word* panel) {
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
      float* to = reinterpret_cast<float*>(panel) + at;
      store(to, there - at >= kLanes ? words(row + at) : words(row + at, lines - at));
    }
  }
}

// panel[i · WIDTH + l] = word i of line l, i < ⌈k / depth of a word⌉; an odd k ends in half a word
// of zero. `src` points to the first element of the first line, from which on there are `there`
// lines, of which `wanted` are packed; strides count elements.
//
// Every store is a whole vector: where the panel's width is no multiple of it, stores run over into
// the next word's place, and the last one past the end by less than a vector: there must be room.
// Lines beyond `lines` hold what happens to be there: what they are multiplied into is never kept.
template <int WIDTH, class Word, class T>
void pack_panel(const T* src, int64_t line_stride, int64_t k_stride, int64_t there, int wanted,
                int64_t k, Word* panel) {
  const int lines = static_cast<int>(there < wanted ? there : wanted);
  if (k_stride == 1) return pack_contiguous_lines<WIDTH>(src, line_stride, lines, k, panel);
  if (line_stride == 1) return pack_adjacent_lines<WIDTH>(src, k_stride, there, lines, k, panel);
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
