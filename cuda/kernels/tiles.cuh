// A block's tile of a matrix product, A [rows][depth] @ B [depth][columns]. The operands come by
// way of shared memory, a stage of the depth at a time: while one is multiplied, each thread has
// its part of the next on the way from global memory to its registers.
//
// float32 and float64 are multiplied by the threads, TF32 and bfloat16 by the matrix units, whose
// operands and sums are spread over the lanes of a warp. All add up chains of the depth, as the
// CPU's kernels do (kernels/table.hpp). Within a chain of TF32 and bfloat16, the unit has its own
// order and rounding: those of the card.
#pragma once

#include "kernels/rounding.cuh"

namespace charrnn_fast {
namespace cuda {

constexpr int panel_units = 32;  // columns of a panel of packed weights, one a lane of a warp
constexpr int thread_rows = 8;   // threads of a block along the rows: its warps
constexpr int stage_words = 16;  // words of a row's depth that a stage has
constexpr int unit_words = 8;    //   of which a matrix unit takes so many at once
constexpr unsigned gemm_threads = panel_units * thread_rows;

inline dim3 gemm_block() { return dim3(panel_units, thread_rows); }

// tile_rows: rows of a thread; G: columns of a thread, panel_units apart.
template <int tile_rows, int G>
struct TileShape {
  static constexpr int thread_rows_of = tile_rows, groups = G;
  static constexpr int rows = tile_rows * thread_rows, columns = G * panel_units;
  // Of a word of the depth to the next. With these, the lanes of a matrix unit's operands, and
  // those that store a stage, access different banks.
  static constexpr int a_stride = rows % 32 == 8 ? rows : rows + 8, b_stride = columns + 8;
  static constexpr int b_begin = stage_words * a_stride;
  static constexpr int stage = b_begin + stage_words * b_stride;  // words of one of two stages
  static constexpr int words = 2 * stage > rows* b_stride ? 2 * stage : rows * b_stride;
};

inline __device__ int thread_of_block() {
  return static_cast<int>(threadIdx.y * panel_units + threadIdx.x);
}

// ---- kinds of products --------------------------------------------------------------------
// Raw: what is read of an operand, before it is rounded. Word: what shared memory holds, `depth`
// terms of the sum. Sum: of products.

template <class T>
struct PlainProducts {
  using Number = T;
  using Raw = T;
  using Word = T;
  static constexpr int depth = 1;

  template <class At>
  static __device__ Raw read(const At& at, Index k, Index end) {
    return k < end ? at(k) : T(0);
  }
  static __device__ Word word(Raw raw) { return raw; }
  // Of a word of weights that are stored as bfloat16.
  static __device__ Word half_word(std::uint32_t bits, bool odd) {
    return T(float_of_bits(odd ? bits & 0xffff0000u : bits << 16));
  }
};

struct Tf32Products {
  using Number = float;
  using Raw = float;
  using Word = std::uint32_t;
  static constexpr int depth = 1;

  template <class At>
  static __device__ Raw read(const At& at, Index k, Index end) {
    return PlainProducts<float>::read(at, k, end);
  }
  static __device__ Word word(Raw raw) { return bits_of(operand(raw, Compute::tf32)); }
  static __device__ Word half_word(std::uint32_t bits, bool odd) {
    return odd ? bits & 0xffff0000u : bits << 16;
  }
  static __device__ void multiply(float (&d)[4], const std::uint32_t (&a)[4],
                                  const std::uint32_t (&b)[2]) {
    mma_tf32(d, a, b);
  }
};

struct Bfloat16Products {
  using Number = float;
  struct Raw {
    float even, odd;
  };
  using Word = std::uint32_t;
  static constexpr int depth = 2;

  template <class At>
  static __device__ Raw read(const At& at, Index k, Index end) {
    return {k < end ? at(k) : 0.0f, k + 1 < end ? at(k + 1) : 0.0f};
  }
  static __device__ Word word(Raw raw) { return pack_bf16(raw.even, raw.odd); }
  static __device__ void multiply(float (&d)[4], const std::uint32_t (&a)[4],
                                  const std::uint32_t (&b)[2]) {
    mma_bf16(d, a, b);
  }
};

// ---- operands -----------------------------------------------------------------------------
// A thread's part of a stage: `count` words. read(k, end, raw) reads those from depth k on, zeros
// from `end` on; store(raw, to) puts them to their places in shared memory.

// A by its rows, each contiguous along the depth. Eight rows by four words for a warp: whole
// sectors of global memory, different banks of shared memory.
template <class Products, class Shape>
struct RowsOperand {
  using Number = typename Products::Number;
  static constexpr int rows_at_once = gemm_threads / stage_words;
  static constexpr int count = (Shape::rows + rows_at_once - 1) / rows_at_once;
  const Number* from[count];

  // row_of(row): of the tile; null: zeros.
  template <class RowOf>
  __device__ explicit RowsOperand(const RowOf& row_of) {
    CHARRNN_UNROLL
    for (int i = 0; i < count; ++i) from[i] = row(i) < Shape::rows ? row_of(row(i)) : nullptr;
  }
  static __device__ int row(int i) {
    const int thread = thread_of_block();
    return thread % 8 + thread / (8 * stage_words) * 8 + i * rows_at_once;
  }
  static __device__ int word() { return thread_of_block() / 8 % stage_words; }

  __device__ void read(Index k, Index end, typename Products::Raw (&raw)[count]) const {
    CHARRNN_UNROLL
    for (int i = 0; i < count; ++i) {
      const Number* const row = from[i];
      raw[i] = Products::read([&](Index at) { return row[at]; }, k + word() * Products::depth,
                              row ? end : 0);
    }
  }
  __device__ void store(const typename Products::Raw (&raw)[count],
                        typename Products::Word* to) const {
    CHARRNN_UNROLL
    for (int i = 0; i < count; ++i)
      if (row(i) < Shape::rows) to[word() * Shape::a_stride + row(i)] = Products::word(raw[i]);
  }
};

// A matrix [depth][stride] of which the tile takes `lines` neighbouring columns, the first `given`
// of which there are.
template <class Products, int lines, int word_stride>
struct ColumnsOperand {
  using Number = typename Products::Number;
  static constexpr int count = stage_words * lines / static_cast<int>(gemm_threads);
  static_assert(stage_words * lines % gemm_threads == 0, "a thread would be without a word");
  const Number* data;
  Index stride, given;

  static __device__ int line(int i) { return (thread_of_block() + i * int(gemm_threads)) % lines; }
  static __device__ int word(int i) { return (thread_of_block() + i * int(gemm_threads)) / lines; }

  __device__ void read(Index k, Index end, typename Products::Raw (&raw)[count]) const {
    CHARRNN_UNROLL
    for (int i = 0; i < count; ++i)
      raw[i] = Products::read([&](Index at) { return data[at * stride + line(i)]; },
                              k + word(i) * Products::depth, line(i) < given ? end : 0);
  }
  __device__ void store(const typename Products::Raw (&raw)[count],
                        typename Products::Word* to) const {
    CHARRNN_UNROLL
    for (int i = 0; i < count; ++i) to[word(i) * word_stride + line(i)] = Products::word(raw[i]);
  }
};

// B from packed weights. A thread's columns are those of the gates of one panel, or of neighbouring
// panels.
template <class Products, class Shape>
struct PanelsOperand {
  using Number = typename Products::Number;
  using Raw = typename Products::Raw;
  static constexpr int count = stage_words * Shape::columns / static_cast<int>(gemm_threads);
  const Number* data;
  Index depth_stride, group_stride;
  bool halves;                    // stored as bfloat16
  Index units, units_of_a_group;  // columns that there are: of the first group, less of each later

  static __device__ int column(int i) {
    return (thread_of_block() + i * int(gemm_threads)) % Shape::columns;
  }
  static __device__ int word(int i) {
    return (thread_of_block() + i * int(gemm_threads)) / Shape::columns;
  }
  __device__ Index at(int i) const {
    return column(i) / panel_units * group_stride + column(i) % panel_units;
  }
  __device__ bool given(int i) const {
    return column(i) % panel_units < units - column(i) / panel_units * units_of_a_group;
  }

  __device__ void read(Index k, Index end, Raw (&raw)[count]) const {
    // Of terms the stored words; of a thread's word to its next the terms.
    const auto stored = [&](Index terms) { return halves ? terms >> 1 : terms; };
    constexpr int terms_apart = static_cast<int>(gemm_threads) / Shape::columns * Products::depth;
    static_assert(gemm_threads % Shape::columns != 0 || terms_apart % 2 == 0);
    const Number* from = data + at(0) + stored(k + word(0) * Products::depth) * depth_stride;
    CHARRNN_UNROLL
    for (int i = 0; i < count; ++i) {
      const Index first = k + word(i) * Products::depth;
      if constexpr (gemm_threads % Shape::columns != 0)
        from = data + at(i) + stored(first) * depth_stride;
      const Index last = given(i) ? end : 0;
      if constexpr (sizeof(Number) == 4) {
        if (halves) {  // as they are: store() takes them apart, when they have come
          const float bits = first < last ? *from : 0.0f;
          memcpy(&raw[i], &bits, sizeof bits);
        }
      }
      if (sizeof(Number) != 4 || !halves)
        raw[i] = Products::read([&](Index at) { return from[(at - first) * depth_stride]; }, first,
                                last);
      from += stored(terms_apart) * depth_stride;
    }
  }
  __device__ void store(const Raw (&raw)[count], typename Products::Word* to) const {
    CHARRNN_UNROLL
    for (int i = 0; i < count; ++i) {
      typename Products::Word* const at = to + word(i) * Shape::b_stride + column(i);
      if constexpr (sizeof(Number) == 4) {
        if (halves) {
          std::uint32_t bits;
          memcpy(&bits, &raw[i], sizeof bits);
          if constexpr (Products::depth == 2)
            *at = bits;
          else
            *at = Products::half_word(bits, word(i) % 2);
          continue;
        }
      }
      *at = Products::word(raw[i]);
    }
  }
};

// ---- sums ---------------------------------------------------------------------------------
// A thread's sums of the tile, `count` of them: row(i), column(i) are the i-th one's place, which
// is in the tile if has(i).

template <class Products, class Shape>
struct TileSums {
  using Number = typename Products::Number;
  static constexpr int count = Shape::thread_rows_of * Shape::groups;

  static __device__ bool has(int) { return true; }
  static __device__ int row(int i) {
    return static_cast<int>(threadIdx.y) * Shape::thread_rows_of + i / Shape::groups;
  }
  static __device__ int column(int i) {
    return i % Shape::groups * panel_units + static_cast<int>(threadIdx.x);
  }
  // acc += A @ B of the `words` of a stage
  static __device__ void multiply(const Number* stage, int words, Number (&acc)[count]) {
    const Number* const a = stage + row(0);
    const Number* const b = stage + Shape::b_begin + threadIdx.x;
    for (int at = 0; at < words; ++at) {
      Number left[Shape::thread_rows_of];
      load_shared(a + at * Shape::a_stride, left);
      CHARRNN_UNROLL
      for (int g = 0; g < Shape::groups; ++g) {
        const Number right = b[at * Shape::b_stride + g * panel_units];
        CHARRNN_UNROLL
        for (int m = 0; m < Shape::thread_rows_of; ++m)
          acc[m * Shape::groups + g] = fma(left[m], right, acc[m * Shape::groups + g]);
      }
    }
  }
};

// By the matrix units: a warp has m_tiles x n_tiles products of 16 rows and 8 columns. A unit's
// operands and sums are numbered as in mma_tf32, by words of the depth.
template <class Products, class Shape>
struct UnitSums {
  static constexpr int row_warps = Shape::rows > 16 ? 2 : 1, column_warps = thread_rows / row_warps;
  static constexpr int m_tiles = (Shape::rows + 15) / 16 / row_warps;
  static constexpr int all_n_tiles = Shape::columns / 8;
  static constexpr int n_tiles = (all_n_tiles + column_warps - 1) / column_warps;
  static constexpr int count = m_tiles * n_tiles * 4;
  static constexpr bool half = Shape::rows < 16;  // the lower rows of a product are not there

  static __device__ bool has(int i) { return row(i) < Shape::rows && column(i) < Shape::columns; }
  static __device__ int warp_row() { return int(threadIdx.y) % row_warps * m_tiles * 16; }
  static __device__ int first_n_tile() { return int(threadIdx.y) / row_warps * n_tiles; }
  static __device__ int row(int i) {
    return warp_row() + i / 4 / n_tiles * 16 + i / 2 % 2 * 8 + int(threadIdx.x) / 4;
  }
  static __device__ int column(int i) {
    return (first_n_tile() + i / 4 % n_tiles) * 8 + int(threadIdx.x) % 4 * 2 + i % 2;
  }
  static __device__ void multiply(const std::uint32_t* stage, int words, float (&acc)[count]) {
    const int lane_row = int(threadIdx.x) / 4, lane_word = int(threadIdx.x) % 4;
    const std::uint32_t* const a = stage + lane_word * Shape::a_stride + warp_row() + lane_row;
    const std::uint32_t* const b =
        stage + Shape::b_begin + lane_word * Shape::b_stride + first_n_tile() * 8 + lane_row;
    CHARRNN_UNROLL
    for (int at = 0; at < stage_words; at += unit_words) {
      if (at >= words) break;
      const std::uint32_t* const upper = a + at * Shape::a_stride;
      const std::uint32_t* const lower = upper + unit_words / 2 * Shape::a_stride;
      std::uint32_t left[m_tiles][4];
      CHARRNN_UNROLL
      for (int m = 0; m < m_tiles; ++m) {
        left[m][0] = upper[m * 16], left[m][2] = lower[m * 16];
        left[m][1] = half ? 0 : upper[m * 16 + 8], left[m][3] = half ? 0 : lower[m * 16 + 8];
      }
      CHARRNN_UNROLL
      for (int n = 0; n < n_tiles; ++n) {
        if (n_tiles * column_warps > all_n_tiles && first_n_tile() + n >= all_n_tiles) break;
        const std::uint32_t* const from = b + at * Shape::b_stride + n * 8;
        const std::uint32_t right[2] = {from[0], from[unit_words / 2 * Shape::b_stride]};
        CHARRNN_UNROLL
        for (int m = 0; m < m_tiles; ++m) {
          float* const sums = acc + (m * n_tiles + n) * 4;
          float d[4] = {sums[0], sums[1], sums[2], sums[3]};
          Products::multiply(d, left[m], right);
          CHARRNN_UNROLL
          for (int e = 0; e < 4; ++e) sums[e] = d[e];
        }
      }
    }
  }
};

template <class T, class Shape>
TileSums<PlainProducts<T>, Shape> sums_of(PlainProducts<T>, Shape);
template <class Shape>
UnitSums<Tf32Products, Shape> sums_of(Tf32Products, Shape);
template <class Shape>
UnitSums<Bfloat16Products, Shape> sums_of(Bfloat16Products, Shape);
template <class Products, class Shape>
using SumsOf = decltype(sums_of(Products(), Shape()));

// Calls end_chain(acc) with a thread's sums of each chain of the depth, in order. `shared` has
// Shape::words. All threads of the block call it; on return others may still read `shared`.
template <class Products, class Shape, class A, class B, class EndChain>
__device__ void multiply_tile(const A& a, const B& b, Index depth, Index chain,
                              typename Products::Word* shared, const EndChain& end_chain) {
  using Sums = SumsOf<Products, Shape>;
  constexpr int stage_depth = stage_words * Products::depth;
  typename Products::Raw a_raw[A::count], b_raw[B::count];
  typename Products::Number acc[Sums::count] = {};
  Index k = 0, end = min_of(depth, chain);
  a.read(k, end, a_raw);
  b.read(k, end, b_raw);
  for (int buffer = 0;; buffer = 1 - buffer) {
    typename Products::Word* const stage = shared + buffer * Shape::stage;
    a.store(a_raw, stage);
    b.store(b_raw, stage + Shape::b_begin);
    sync_block();  // the stage is there; and all have read the one before, which comes next
    const int n = static_cast<int>(min_of(stage_depth, end - k));
    k += n;
    const bool chain_ends = k == end, more = k < depth;
    if (chain_ends) end = min_of(depth, k + chain);
    if (more) {
      a.read(k, end, a_raw);
      b.read(k, end, b_raw);
    }
    Sums::multiply(stage, (n + Products::depth - 1) / Products::depth, acc);
    if (chain_ends) {
      end_chain(acc);
      CHARRNN_UNROLL
      for (int i = 0; i < Sums::count; ++i) acc[i] = 0;
    }
    if (!more) return;
  }
}

}  // namespace cuda
}  // namespace charrnn_fast
