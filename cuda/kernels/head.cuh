// The decoder with its loss in one kernel, for small vocabularies: logits, softmax cross-entropy
// and the gradients of the logits and of h. A block has a few rows; their logits never leave its
// shared memory, and the decoder is read as it is. Sums are those of gemm and cross_entropy.
#pragma once

#include "kernels/elementwise.cuh"

namespace charrnn_fast {
namespace cuda {

constexpr Index head_columns = 256;     // of the vocabulary, at most
constexpr int depth_tile = 16;          // of the depth, in shared memory at a time
constexpr Index many_head_rows = 2048;  // from here on, large tiles give every multiprocessor some

// A block's arrays in shared memory, and their strides: with these, a warp's accesses fall into
// different banks.
template <class T, int tile_rows, int G>
struct HeadTile {
  static constexpr int rows = tile_rows * thread_rows, columns = G * panel_units;
  static constexpr int logits_stride = columns + 8;  // logits [rows][columns]
  static constexpr int a_stride = depth_tile + 1;    // a tile of h [rows][depth_tile]
  static constexpr int b_stride = columns + 2;       // of the weights [depth_tile][columns]
  static constexpr std::size_t bytes =
      (rows * (logits_stride + a_stride) + depth_tile * b_stride) * sizeof(T);
};

// acc += a tile of A [rows][n] @ a tile of B [n][columns]
template <class T, int tile_rows, int G>
__device__ void add_tile(const T* a, int a_stride, const T* b, int b_stride, int n,
                         T (&acc)[tile_rows][G]) {
  const int x = static_cast<int>(threadIdx.x), y = static_cast<int>(threadIdx.y);
  for (int at = 0; at < n; ++at)
    for (int g = 0; g < G; ++g) {
      const T factor = b[at * b_stride + g * panel_units + x];
      for (int m = 0; m < tile_rows; ++m)
        acc[m][g] = fma(a[(y * tile_rows + m) * a_stride + at], factor, acc[m][g]);
    }
}

// total += the products of depths [begin, end), in chains. run(k, n, acc) adds those of depths
// [k, k + n), at most depth_tile; all threads of the block call it.
template <class T, int tile_rows, int G, class Run>
__device__ void add_chains(Index begin, Index end, const Run& run, T (&total)[tile_rows][G]) {
  for (Index k = begin; k < end;) {
    T acc[tile_rows][G] = {};
    const Index stop = min_of(end, k + chain_depth);
    for (; k < stop; k += depth_tile) run(k, static_cast<int>(min_of(depth_tile, stop - k)), acc);
    k = stop;
    for (int m = 0; m < tile_rows; ++m)
      for (int g = 0; g < G; ++g) total[m][g] = total[m][g] + acc[m][g];
  }
}

template <class T, int tile_rows, int G>
__global__ void head_kernel(HeadArgs<T> p, Range given) {
  using Tile = HeadTile<T, tile_rows, G>;
  constexpr unsigned lanes = sum_lanes<T>;
  static_assert(Tile::rows * lanes <= gemm_threads && Tile::rows * lanes % 32 == 0);
  T* const logits = shared_memory<T>();
  T* const a = logits + Tile::rows * Tile::logits_stride;
  T* const b = a + Tile::rows * Tile::a_stride;
  const int x = static_cast<int>(threadIdx.x), y = static_cast<int>(threadIdx.y);
  const int thread = y * panel_units + x;
  const Index V = p.loss.vocab_size, depth = p.depth;
  const Index row_0 = given.begin + Index(blockIdx.x) * Tile::rows;
  const Index rows = min_of(Tile::rows, given.end - row_0);

  T total[tile_rows][G];
  for (int m = 0; m < tile_rows; ++m)
    for (int g = 0; g < G; ++g) {
      const Index column = g * panel_units + x;
      total[m][g] = p.bias && column < V ? p.bias[column] : T(0);
    }
  add_chains<T, tile_rows, G>(
      0, depth,
      [&](Index k, int n, T(&acc)[tile_rows][G]) {
        for (int i = thread; i < depth_tile * Tile::rows; i += gemm_threads) {
          const int row = i / depth_tile, at = i % depth_tile;
          a[row * Tile::a_stride + at] =
              row < rows && at < n ? p.h[(row_0 + row) * depth + k + at] : T(0);
        }
        for (int i = thread; i < depth_tile * Tile::columns; i += gemm_threads) {
          const int column = i / depth_tile, at = i % depth_tile;
          b[at * Tile::b_stride + column] =
              column < V && at < n ? p.weight[column * depth + k + at] : T(0);
        }
        sync_block();
        add_tile<T, tile_rows, G>(a, Tile::a_stride, b, Tile::b_stride, n, acc);
        sync_block();
      },
      total);
  for (int m = 0; m < tile_rows; ++m)
    for (int g = 0; g < G; ++g)
      logits[(y * tile_rows + m) * Tile::logits_stride + g * panel_units + x] = total[m][g];
  sync_block();

  const bool gradients = p.loss.dlogits;
  if (thread < static_cast<int>(Tile::rows * lanes)) {
    const int row = thread / static_cast<int>(lanes);
    T* const mine = logits + row * Tile::logits_stride;
    cross_entropy_row(p.loss, row < rows, row_0 + row, mine, gradients ? mine : nullptr);
  }
  if (!gradients) return;
  sync_block();
  for (Index row = y; row < rows; row += thread_rows)
    for (Index j = x; j < V; j += panel_units)
      p.loss.dlogits[(row_0 + row) * p.loss.dstride + j] = logits[row * Tile::logits_stride + j];

  constexpr int groups = G < 4 ? G : 4;
  for (Index column_0 = 0; column_0 < depth; column_0 += groups * panel_units) {
    T dh[tile_rows][groups] = {};
    for (Index first = 0; first < V; first += p.dh_block)
      add_chains<T, tile_rows, groups>(
          first, min_of(V, first + p.dh_block),
          [&](Index k, int n, T(&acc)[tile_rows][groups]) {
            for (int at = y; at < n; at += thread_rows)
              for (int column = x; column < groups * panel_units; column += panel_units)
                b[at * Tile::b_stride + column] =
                    column_0 + column < depth ? p.weight[(k + at) * depth + column_0 + column]
                                              : T(0);
            sync_block();
            add_tile<T, tile_rows, groups>(logits + k, Tile::logits_stride, b, Tile::b_stride, n,
                                           acc);
            sync_block();
          },
          dh);
    CHARRNN_UNROLL
    for (int m = 0; m < tile_rows; ++m) {
      const Index row = y * tile_rows + m;
      if (row >= rows) break;
      CHARRNN_UNROLL
      for (int g = 0; g < groups; ++g) {
        const Index column = column_0 + g * panel_units + x;
        if (column < depth) p.dh[(row_0 + row) * depth + column] = dh[m][g];
      }
    }
  }
}

template <class T, int tile_rows, int G>
void launch_head(const HeadArgs<T>& p, Range rows) {
  using Tile = HeadTile<T, tile_rows, G>;
  Grid grid{dim3(static_cast<unsigned>(ceil_div(size_of(rows), Tile::rows))), gemm_block()};
  grid.shared = Tile::bytes;
  launch(grid, table_stream(), head_kernel<T, tile_rows, G>, p, rows);
}
template <class T, int tile_rows>
void head_of_tile(const HeadArgs<T>& p, Range rows) {
  if (p.loss.vocab_size <= 2 * panel_units)
    launch_head<T, tile_rows, 2>(p, rows);
  else if (p.loss.vocab_size <= 4 * panel_units)
    launch_head<T, tile_rows, 4>(p, rows);
  else
    launch_head<T, tile_rows, 8>(p, rows);
}
template <class T>
void head(const HeadArgs<T>& p, Range rows) {
  constexpr int most_tile_rows = 16 / static_cast<int>(sizeof(T));
  if (size_of(rows) <= 0) return;
  if (size_of(rows) < many_head_rows)
    head_of_tile<T, 1>(p, rows);
  else
    head_of_tile<T, most_tile_rows>(p, rows);
}

}  // namespace cuda
}  // namespace charrnn_fast
