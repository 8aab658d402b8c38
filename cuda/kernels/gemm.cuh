// Matrix products. A block computes a tile of rows x 32 columns (of G gates each): every thread has
// tile_rows rows of one column in registers, and takes the operands from shared memory. Sums are
// those of the CPU's kernels, term by term: see kernels/table.hpp.
#pragma once

#include "kernels/rounding.cuh"

namespace charrnn_fast {
namespace cuda {

constexpr int panel_units = 32;             // columns of a block, and of a panel of packed weights
constexpr int thread_rows = 8;              // threads of a block along the rows
constexpr int depth_tile = 16;              // of the depth, in shared memory at a time
constexpr int few_rows = 1, many_rows = 4;  // rows of a thread
constexpr unsigned gemm_threads = panel_units * thread_rows;
static_assert(chain_depth % depth_tile == 0);

inline dim3 gemm_block() { return dim3(panel_units, thread_rows); }
// Rows of a thread: few, where more would leave threads without a row.
inline int rows_of_thread(Index rows) { return rows > thread_rows ? many_rows : few_rows; }
inline unsigned row_tiles(Index rows) {
  return static_cast<unsigned>(ceil_div(rows, thread_rows * rows_of_thread(rows)));
}

// Of column `column` of a panel, `columns` wide.
template <class T>
CHARRNN_INLINE T weight(const Weights<T>& w, Index panel, Index k, Index column) {
  const T* const at = w.data + panel * w.panel_stride + column;
  if constexpr (sizeof(T) == 4) {
    if (w.storage == Storage::bfloat16) {
      std::uint32_t word;
      memcpy(&word, at + k / 2 * w.depth_stride, sizeof word);
      return float_of_bits(k % 2 ? word & 0xffff0000u : word << 16);
    }
  }
  return at[k * w.depth_stride];
}

// total[m][g] += row_of(m-th row of the thread) @ the weights of gate g of the thread's column. The
// panel has `units` columns. row_of: of a row of the tile; null where it takes no part. All threads
// of the block must call it.
template <class T, int tile_rows, int G, class RowOf>
__device__ void add_products(const RowOf& row_of, const Weights<T>& w, Index panel, Index units,
                             Index depth, T (&total)[tile_rows][G]) {
  constexpr int rows = tile_rows * thread_rows, columns = G * panel_units;
  CHARRNN_SHARED(T, a, depth_tile * rows);
  CHARRNN_SHARED(T, b, depth_tile * columns);
  const int x = static_cast<int>(threadIdx.x), y = static_cast<int>(threadIdx.y);
  const int thread = y * panel_units + x;
  T acc[tile_rows][G];
  Index k = 0;
  do {
    for (int m = 0; m < tile_rows; ++m)
      for (int g = 0; g < G; ++g) acc[m][g] = T(0);
    const Index end = min_of(depth, k + chain_depth);
    for (; k < end; k += depth_tile) {
      const int n = static_cast<int>(min_of(depth_tile, end - k));
      for (int i = thread; i < depth_tile * rows; i += gemm_threads) {
        const int row = i / depth_tile, at = i % depth_tile;
        const T* const from = row_of(row);
        a[at * rows + row] = from && at < n ? operand(from[k + at], w.compute) : T(0);
      }
      for (int i = thread; i < depth_tile * columns; i += gemm_threads) {
        const int at = i / columns, column = i % columns;
        const bool given = at < n && column % panel_units < units;
        b[i] = given ? operand(weight(w, panel, k + at, column), w.compute) : T(0);
      }
      sync_block();
      for_products<T>(n, w.compute, [&](int at, const auto& multiply_add) {
        for (int g = 0; g < G; ++g) {
          const T factor = b[at * columns + g * panel_units + x];
          for (int m = 0; m < tile_rows; ++m)
            acc[m][g] = multiply_add(a[at * rows + y * tile_rows + m], factor, acc[m][g]);
        }
      });
      sync_block();
    }
    for (int m = 0; m < tile_rows; ++m)
      for (int g = 0; g < G; ++g) total[m][g] = add_chain(total[m][g], acc[m][g], w.compute);
  } while (k < depth);
}

template <class T, int tile_rows>
__global__ void gemm_kernel(GemmArgs<T> p, Range rows, Index first_panel) {
  const Index row_0 = rows.begin + Index(blockIdx.x) * tile_rows * thread_rows;
  const Index panel = first_panel + blockIdx.y;
  const Index column = panel * panel_units + threadIdx.x, row = row_0 + threadIdx.y * tile_rows;
  T total[tile_rows][1];
  for (int m = 0; m < tile_rows; ++m) {
    const bool given = row + m < rows.end && column < p.cols;
    total[m][0] = !given         ? T(0)
                  : p.accumulate ? p.c[(row + m) * p.c_stride + column]
                  : p.bias       ? p.bias[column]
                                 : T(0);
  }
  const auto row_of = [&](int i) -> const T* {
    return row_0 + i < rows.end ? p.a + (row_0 + i) * p.a_stride : nullptr;
  };
  add_products<T, tile_rows, 1>(row_of, p.weights, panel, p.cols - panel * panel_units, p.depth,
                                total);
  if (column >= p.cols) return;
  CHARRNN_UNROLL
  for (int m = 0; m < tile_rows; ++m) {
    if (row + m >= rows.end) break;
    p.c[(row + m) * p.c_stride + column] = total[m][0];
  }
}

template <class T>
void gemm(const GemmArgs<T>& p, Range rows, Range panels) {
  if (size_of(rows) <= 0 || size_of(panels) <= 0) return;
  const bool few = rows_of_thread(size_of(rows)) == few_rows;
  launch({dim3(row_tiles(size_of(rows)), static_cast<unsigned>(size_of(panels))), gemm_block()},
         table_stream(), few ? gemm_kernel<T, few_rows> : gemm_kernel<T, many_rows>, p, rows,
         panels.begin);
}

// ---- packing ------------------------------------------------------------------------------

// An element, or as bfloat16 a word, of the packed panels: [panel][k][group][unit].
template <class T>
struct Pack {
  PackArgs<T> p;
  Index first_panel;

  CHARRNN_INLINE T at(Index group, Index unit, Index k) const {
    if (unit >= p.units || k >= p.depth) return T(0);
    return operand(p.weights[(group * p.units + unit) * p.row_stride + k * p.depth_stride],
                   p.compute);
  }
  CHARRNN_INLINE void operator()(Index i) const {
    const Index columns = p.groups * panel_units,
                steps = p.storage == Storage::bfloat16 ? ceil_div(p.depth, 2) : p.depth;
    const Index column = i % columns, step = i / columns % steps;
    const Index panel = first_panel + i / columns / steps;
    const Index group = column / panel_units, unit = panel * panel_units + column % panel_units;
    T* const to = p.packed + (panel * steps + step) * columns + column;
    if constexpr (sizeof(T) == 4) {
      if (p.storage == Storage::bfloat16) {
        const std::uint32_t word = to_bfloat16(at(group, unit, 2 * step)) |
                                   to_bfloat16(at(group, unit, 2 * step + 1)) << 16;
        memcpy(to, &word, sizeof word);
        return;
      }
    }
    *to = at(group, unit, step);
  }
};
template <class T>
void pack(const PackArgs<T>& p, Range panels) {
  const Index steps = p.storage == Storage::bfloat16 ? ceil_div(p.depth, 2) : p.depth;
  each(size_of(panels) * steps * p.groups * panel_units, Pack<T>{p, panels.begin});
}

template <class T>
struct Transpose {
  const T* from;
  Index rows, cols, first;
  T* to;

  CHARRNN_INLINE void operator()(Index i) const {
    const Index row = first + i / cols, column = i % cols;
    to[column * rows + row] = from[row * cols + column];
  }
};
template <class T>
void transpose(const T* from, Index rows, Index cols, Range given, T* to) {
  each(size_of(given) * cols, Transpose<T>{from, rows, cols, given.begin, to});
}

// ---- gradients of weights -----------------------------------------------------------------

// A sum over the rows of a sequence, block by block; with compensation above most_plain_rows.
template <class T>
struct BlockSum {
  T total, error;
  bool with_errors;

  CHARRNN_INLINE void add(T block) {
    const T sum = total + block;
    if (with_errors) {
      const T part = sum - total;
      error = error + ((total - (sum - part)) + (block - part));
    }
    total = sum;
  }
  CHARRNN_INLINE T end() const { return with_errors ? total + error : total; }
};
template <class T>
CHARRNN_INLINE BlockSum<T> block_sum(T total, Index whole) {
  return {total, T(0), whole > most_plain_rows};
}

template <class T>
__global__ void gemm_tn_kernel(GemmTnArgs<T> p, GemmTnProduct<T> g, Range rows) {
  constexpr int tile_rows = many_rows, tile = tile_rows * thread_rows;
  CHARRNN_SHARED(T, a, depth_tile * tile);
  CHARRNN_SHARED(T, b, depth_tile * panel_units);
  const int x = static_cast<int>(threadIdx.x), y = static_cast<int>(threadIdx.y);
  const int thread = y * panel_units + x;
  const Index row_0 = rows.begin + Index(blockIdx.x) * tile;
  const Index column_0 = Index(blockIdx.y) * panel_units;
  const Index column = column_0 + x, row = row_0 + y * tile_rows, whole = whole_depth(p);
  BlockSum<T> sums[tile_rows];
  for (int m = 0; m < tile_rows; ++m) {
    const bool given = row + m < rows.end && column < g.cols;
    sums[m] = block_sum(given ? g.c[(row + m) * g.c_stride + column] : T(0), whole);
    if (given && sums[m].with_errors && p.done > 0)
      sums[m].error = g.errors[(row + m) * g.errors_stride + column];
  }
  for (Index k_0 = 0; k_0 < p.depth; k_0 += p.block) {
    const Index end = min_of(p.depth, k_0 + p.block);
    T acc[tile_rows] = {};
    for (Index k = k_0; k < end; k += depth_tile) {
      const int n = static_cast<int>(min_of(depth_tile, end - k));
      const int all = n + n % 2;
      for (int i = thread; i < all * tile; i += gemm_threads) {
        const Index at = row_0 + i % tile;
        const bool given = i < n * tile && at < rows.end;
        a[i] = given ? operand(p.a[(k + i / tile) * p.a_stride + at], p.compute) : T(0);
      }
      for (int i = thread; i < all * panel_units; i += gemm_threads) {
        const Index at = column_0 + i % panel_units;
        const bool given = i < n * panel_units && at < g.cols;
        b[i] = given ? operand(g.b[(k + i / panel_units) * g.b_stride + at], p.compute) : T(0);
      }
      sync_block();
      for_products<T>(n, p.compute, [&](int at, const auto& multiply_add) {
        for (int m = 0; m < tile_rows; ++m)
          acc[m] = multiply_add(a[at * tile + y * tile_rows + m], b[at * panel_units + x], acc[m]);
      });
      sync_block();
    }
    for (int m = 0; m < tile_rows; ++m) sums[m].add(acc[m]);
  }
  if (column >= g.cols) return;
  const bool last = p.done + p.depth == whole;
  CHARRNN_UNROLL
  for (int m = 0; m < tile_rows; ++m) {
    if (row + m >= rows.end) break;
    g.c[(row + m) * g.c_stride + column] = last ? sums[m].end() : sums[m].total;
    if (!last && sums[m].with_errors)
      g.errors[(row + m) * g.errors_stride + column] = sums[m].error;
  }
}

// The sum of value(r) over rows [begin, end): sum_rows of them at a time.
template <class T, class Value>
CHARRNN_INLINE T plain_sum(Index begin, Index end, const Value& value) {
  T block = T(0);
  for (Index r = begin; r < end;) {
    T some = T(0);
    for (const Index to = min_of(r + sum_rows, end); r < to; ++r) some = some + value(r);
    block = block + some;
  }
  return block;
}

// sums[j] += the sum of column j of A.
template <class T>
struct GemmTnSums {
  GemmTnArgs<T> p;
  Index first;

  CHARRNN_INLINE void operator()(Index i) const {
    const Index j = first + i, whole = whole_depth(p);
    BlockSum<T> sum = block_sum(p.sums[j], whole);
    if (sum.with_errors && p.done > 0) sum.error = p.sums_errors[j];
    const T* const a = p.a + j;
    const Index stride = p.a_stride;
    for (Index k = 0; k < p.depth; k += p.block)
      sum.add(
          plain_sum<T>(k, min_of(k + p.block, p.depth), [=](Index r) { return a[r * stride]; }));
    const bool last = p.done + p.depth == whole;
    p.sums[j] = last ? sum.end() : sum.total;
    if (!last && sum.with_errors) p.sums_errors[j] = sum.error;
  }
};

template <class T>
void gemm_tn(const GemmTnArgs<T>& p, Range rows, T*) {
  if (size_of(rows) <= 0) return;
  for (int i = 0; i < p.num_products; ++i)
    if (p.products[i].cols > 0)
      launch({dim3(static_cast<unsigned>(ceil_div(size_of(rows), many_rows * thread_rows)),
                   static_cast<unsigned>(ceil_div(p.products[i].cols, panel_units))),
              gemm_block()},
             table_stream(), gemm_tn_kernel<T>, p, p.products[i], rows);
  if (p.sums) each(size_of(rows), GemmTnSums<T>{p, rows.begin});
}
inline Index gemm_tn_scratch() { return 1; }  // registers and shared memory hold what it needs

}  // namespace cuda
}  // namespace charrnn_fast
