// Matrix products: of a step, of all rows of a sequence, and the gradients of weights.
#pragma once

#include "kernels/tiles.cuh"

namespace charrnn_fast {
namespace cuda {

constexpr int few_rows = 1, many_rows = 4;  // rows of a thread
static_assert(chain_depth % (stage_words * Bfloat16Products::depth) == 0);

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

// ---- of a step ----------------------------------------------------------------------------

// sums += row_of(row) @ w, for the rows of the tile and the panel's first `units` columns of each
// of its groups.
template <class Products, class Shape, class RowOf, class T, int count>
__device__ void add_tile_products(const RowOf& row_of, const Weights<T>& w, Index panel,
                                  Index units, Index depth, typename Products::Word* shared,
                                  T (&sums)[count]) {
  const RowsOperand<Products, Shape> a(row_of);
  const PanelsOperand<Products, Shape> b{
      w.data + panel * w.panel_stride, w.depth_stride, panel_units,
      w.storage == Storage::bfloat16,  units,          0};
  multiply_tile<Products, Shape>(a, b, depth, chain_depth, shared, [&](const T(&chain)[count]) {
    CHARRNN_UNROLL
    for (int i = 0; i < count; ++i) sums[i] = sums[i] + chain[i];
  });
}

// By the matrix units, for threads that each have rows of a column: sums change their places before
// and after, in shared memory.
template <class Products, class Shape, class RowOf, int count>
__device__ void add_unit_products(const RowOf& row_of, const Weights<float>& w, Index panel,
                                  Index units, Index depth, float* shared, float (&sums)[count]) {
  using Own = TileSums<PlainProducts<float>, Shape>;
  using Units = UnitSums<Products, Shape>;
  float of_units[Units::count];
  CHARRNN_UNROLL
  for (int i = 0; i < count; ++i) shared[Own::row(i) * Shape::b_stride + Own::column(i)] = sums[i];
  sync_block();
  CHARRNN_UNROLL
  for (int i = 0; i < Units::count; ++i)
    of_units[i] = Units::has(i) ? shared[Units::row(i) * Shape::b_stride + Units::column(i)] : 0.0f;
  sync_block();
  add_tile_products<Products, Shape>(row_of, w, panel, units, depth,
                                     reinterpret_cast<std::uint32_t*>(shared), of_units);
  sync_block();
  CHARRNN_UNROLL
  for (int i = 0; i < Units::count; ++i)
    if (Units::has(i)) shared[Units::row(i) * Shape::b_stride + Units::column(i)] = of_units[i];
  sync_block();
  CHARRNN_UNROLL
  for (int i = 0; i < count; ++i) sums[i] = shared[Own::row(i) * Shape::b_stride + Own::column(i)];
}

// total[m][g] += row_of(m-th row of the thread) @ the weights of gate g of the thread's column. The
// panel has `units` columns. row_of: of a row of the tile; null where it takes no part. All threads
// of the block must call it.
template <class T, int tile_rows, int G, class RowOf>
__device__ void add_products(const RowOf& row_of, const Weights<T>& w, Index panel, Index units,
                             Index depth, T (&total)[tile_rows][G]) {
  using Shape = TileShape<tile_rows, G>;
  CHARRNN_SHARED(T, shared, Shape::words);
  T sums[tile_rows * G];
  CHARRNN_UNROLL
  for (int i = 0; i < tile_rows * G; ++i) sums[i] = total[i / G][i % G];
  const auto plain = [&] {
    add_tile_products<PlainProducts<T>, Shape>(row_of, w, panel, units, depth, shared, sums);
  };
  if constexpr (sizeof(T) == 4) {
    if (w.compute == Compute::tf32)
      add_unit_products<Tf32Products, Shape>(row_of, w, panel, units, depth, shared, sums);
    else if (w.compute == Compute::bfloat16)
      add_unit_products<Bfloat16Products, Shape>(row_of, w, panel, units, depth, shared, sums);
    else
      plain();
  } else {
    plain();
  }
  CHARRNN_UNROLL
  for (int i = 0; i < tile_rows * G; ++i) total[i / G][i % G] = sums[i];
}

// ---- of all rows --------------------------------------------------------------------------

// A larger tile reads operands less often: a product takes it where every multiprocessor gets one.
template <class Products>
struct LargeTileOf {
  using Shape = TileShape<8, 2>;
};
template <>
struct LargeTileOf<PlainProducts<float>> {  // bound by reading shared memory: as many as registers
  using Shape = TileShape<8, 4>;            // allow for one block
};
template <>
struct LargeTileOf<PlainProducts<double>> {
  using Shape = TileShape<4, 2>;
};
template <class Products>
using LargeTile = typename LargeTileOf<Products>::Shape;
template <class Shape>
constexpr int blocks_at_once = Shape::thread_rows_of * Shape::groups > 16 ? 1 : 2;

template <class Shape>
dim3 tiles_of(Index rows, Index columns) {
  return dim3(static_cast<unsigned>(ceil_div(rows, Shape::rows)),
              static_cast<unsigned>(ceil_div(columns, Shape::columns)));
}
// A small tile would leave rows and columns, and every multiprocessor gets a large one.
template <class Large>
bool takes(Index rows, Index columns) {
  const dim3 tiles = tiles_of<Large>(rows, columns);
  return rows > Large::rows / 2 && columns > Large::columns / 2 &&
         Index(tiles.x) * tiles.y >= card_facts().multiprocessors;
}

// Calls f with the kind of products that T and `compute` take.
template <class T, class F>
void with_products(Compute compute, const F& f) {
  if constexpr (sizeof(T) == 4) {
    if (compute == Compute::tf32) return f(Tf32Products());
    if (compute == Compute::bfloat16) return f(Bfloat16Products());
  }
  f(PlainProducts<T>());
}

// Where a thread's sums of a tile are in a matrix that ends before `rows` and `columns`.
template <class Sums>
struct Places {
  Index row_0, column_0, rows, columns;

  CHARRNN_INLINE bool given(int i) const {
    return Sums::has(i) && row_0 + Sums::row(i) < rows && column_0 + Sums::column(i) < columns;
  }
  CHARRNN_INLINE Index at(int i, Index stride) const {
    return (row_0 + Sums::row(i)) * stride + column_0 + Sums::column(i);
  }
  // The same, for use behind the sums, which need the registers.
  __device__ Places later() const { return {forgotten(row_0), forgotten(column_0), rows, columns}; }
};

template <class Products, class Shape, class T>
__global__ void CHARRNN_THREADS_OF_BLOCKS(gemm_threads, blocks_at_once<Shape>)
    gemm_kernel(GemmArgs<T> p, Range rows, Range panels) {
  using Sums = SumsOf<Products, Shape>;
  CHARRNN_SHARED(typename Products::Word, shared, Shape::words);
  const Index row_0 = rows.begin + Index(blockIdx.x) * Shape::rows;
  const Index panel = panels.begin + Index(blockIdx.y) * Shape::groups;
  const Places<Sums> places{row_0, panel * panel_units, rows.end,
                            min_of(p.cols, panels.end * panel_units)};
  T sums[Sums::count];
  CHARRNN_UNROLL
  for (int i = 0; i < Sums::count; ++i)
    sums[i] = !places.given(i) ? T(0)
              : p.accumulate   ? p.c[places.at(i, p.c_stride)]
              : p.bias         ? p.bias[places.column_0 + Sums::column(i)]
                               : T(0);
  const RowsOperand<Products, Shape> a([&](int i) -> const T* {
    return row_0 + i < rows.end ? p.a + (row_0 + i) * p.a_stride : nullptr;
  });
  const PanelsOperand<Products, Shape> b{p.weights.data + panel * p.weights.panel_stride,
                                         p.weights.depth_stride,
                                         p.weights.panel_stride,
                                         p.weights.storage == Storage::bfloat16,
                                         places.columns - places.column_0,
                                         panel_units};
  multiply_tile<Products, Shape>(a, b, p.depth, chain_depth, shared,
                                 [&](const T(&chain)[Sums::count]) {
                                   CHARRNN_UNROLL
                                   for (int i = 0; i < Sums::count; ++i)
                                     sums[i] = sums[i] + chain[i];
                                 });
  const Places<Sums> to = places.later();
  CHARRNN_UNROLL
  for (int i = 0; i < Sums::count; ++i)
    if (to.given(i)) p.c[to.at(i, p.c_stride)] = sums[i];
}

template <class T>
void gemm(const GemmArgs<T>& p, Range rows, Range panels) {
  const Index num_rows = size_of(rows), cols = size_of(panels) * panel_units;
  if (num_rows <= 0 || cols <= 0) return;
  with_products<T>(p.weights.compute, [&](auto products) {
    const auto by = [&](auto shape) {
      using Shape = decltype(shape);
      launch({tiles_of<Shape>(num_rows, cols), gemm_block()}, table_stream(),
             gemm_kernel<decltype(products), Shape, T>, p, rows, panels);
    };
    using Large = LargeTile<decltype(products)>;
    if (takes<Large>(num_rows, cols))
      by(Large());
    else if (num_rows > thread_rows)
      by(TileShape<many_rows, 1>());
    else
      by(TileShape<few_rows, 1>());
  });
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

template <class Products, class Shape, class T>
__global__ void CHARRNN_THREADS_OF_BLOCKS(gemm_threads, blocks_at_once<Shape>)
    gemm_tn_kernel(GemmTnArgs<T> p, GemmTnProduct<T> g, Range rows) {
  using Sums = SumsOf<Products, Shape>;
  CHARRNN_SHARED(typename Products::Word, shared, Shape::words);
  const Places<Sums> places{rows.begin + Index(blockIdx.x) * Shape::rows,
                            Index(blockIdx.y) * Shape::columns, rows.end, g.cols};
  const Index whole = whole_depth(p);
  BlockSum<T> sums[Sums::count];
  CHARRNN_UNROLL
  for (int i = 0; i < Sums::count; ++i) {
    const bool given = places.given(i);
    sums[i] = block_sum(given ? g.c[places.at(i, g.c_stride)] : T(0), whole);
    if (given && sums[i].with_errors && p.done > 0)
      sums[i].error = g.errors[places.at(i, g.errors_stride)];
  }
  const ColumnsOperand<Products, Shape::rows, Shape::a_stride> a{p.a + places.row_0, p.a_stride,
                                                                 places.rows - places.row_0};
  const ColumnsOperand<Products, Shape::columns, Shape::b_stride> b{
      g.b + places.column_0, g.b_stride, places.columns - places.column_0};
  if (p.depth > 0)
    multiply_tile<Products, Shape>(a, b, p.depth, p.block, shared,
                                   [&](const T(&block)[Sums::count]) {
                                     CHARRNN_UNROLL
                                     for (int i = 0; i < Sums::count; ++i) sums[i].add(block[i]);
                                   });
  const bool last = p.done + p.depth == whole;
  const Places<Sums> to = places.later();
  CHARRNN_UNROLL
  for (int i = 0; i < Sums::count; ++i) {
    if (!to.given(i)) continue;
    g.c[to.at(i, g.c_stride)] = last ? sums[i].end() : sums[i].total;
    if (!last && sums[i].with_errors) g.errors[to.at(i, g.errors_stride)] = sums[i].error;
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
  with_products<T>(p.compute, [&](auto products) {
    const auto by = [&](auto shape, const GemmTnProduct<T>& product) {
      using Shape = decltype(shape);
      launch({tiles_of<Shape>(size_of(rows), product.cols), gemm_block()}, table_stream(),
             gemm_tn_kernel<decltype(products), Shape, T>, p, product, rows);
    };
    for (int i = 0; i < p.num_products; ++i) {
      const GemmTnProduct<T>& product = p.products[i];
      if (product.cols <= 0) continue;
      using Large = LargeTile<decltype(products)>;
      if (takes<Large>(size_of(rows), product.cols))
        by(Large(), product);
      else
        by(TileShape<many_rows, 1>(), product);
    }
  });
  if (p.sums) each(size_of(rows), GemmTnSums<T>{p, rows.begin});
}
inline Index gemm_tn_scratch() { return 1; }  // registers and shared memory hold what it needs

}  // namespace cuda
}  // namespace charrnn_fast
