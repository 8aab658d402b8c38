// One recurrent layer over time, for any cell of cells.hpp, step by step: forward and, under it,
// backward. In a step, a thread has all gates of a few rows of one unit: it adds up the recurrent
// product, then runs the cell in its registers. Layer normalization needs whole rows of gates: then
// the sums go to memory, are normalized there, and a second kernel runs the cells.
//
// The host does not know how many rows a step has where lengths differ: it launches for the whole
// batch, and the kernels look.
#pragma once

#include "kernels/cell_steps.cuh"
#include "kernels/gemm.cuh"
#include "kernels/norm.cuh"

namespace charrnn_fast {
namespace cuda {

// ---- forward ------------------------------------------------------------------------------

template <class T>
CHARRNN_INLINE T* staged_row(const RecurrentForwardArgs<T>& p, Index t, Index row, Index width) {
  return p.staged + ((p.staged_in_place ? 0 : first_row(p.steps, t)) + row) * width;
}

template <class Cell, class T, int tile_rows>
__global__ void step_forward(RecurrentForwardArgs<T> p, Index t, Range rows, Index first_panel) {
  constexpr int G = Cell::num_gates;
  const Index H = p.hidden_size, R = p.width, end = min_of(rows.end, rows_at(p.steps, t));
  const Index row_0 = rows.begin + Index(blockIdx.x) * tile_rows * thread_rows;
  const Index panel = first_panel + blockIdx.y, unit = panel * panel_units + threadIdx.x;
  const Index row = row_0 + threadIdx.y * tile_rows, first = first_row(p.steps, t);
  if (row_0 >= end) return;
  T sums[tile_rows][G];
  for (int m = 0; m < tile_rows; ++m)
    for (int g = 0; g < G; ++g) {
      const bool given = !p.norm.gain && row + m < end && unit < H;
      sums[m][g] = given ? gate_start<Cell>(p, first + row + m, g, unit) : T(0);
    }
  const auto row_of = [&](int i) -> const T* {
    if (row_0 + i >= end) return nullptr;
    return p.recurrent ? p.recurrent + (first + row_0 + i) * R
                       : state_before(p.states[0], p.steps, t, row_0 + i);
  };
  add_products<T, tile_rows, G>(row_of, p.hh, panel, H - panel * panel_units, R, sums);
  if (unit >= H) return;
  CHARRNN_UNROLL
  for (int m = 0; m < tile_rows; ++m) {
    if (row + m >= end) break;
    if (p.staged) {
      T* const to = staged_row(p, t, row + m, G * H);
      for (int g = 0; g < G; ++g) to[g * H + unit] = sums[m][g];
    } else {
      run_cell_forward<Cell>(p, t, row + m, unit, sums[m],
                             forward_inputs<Cell>(p, t, row + m, unit));
    }
  }
}

template <class Cell, class T>
__global__ void normalize_gates(RecurrentForwardArgs<T> p, Index t, Range rows) {
  constexpr int G = Cell::num_gates, summed = G - Cell::num_split;
  const Index H = p.hidden_size, row = rows.begin + warp_row();
  if (row >= min_of(rows.end, rows_at(p.steps, t))) return;
  T* const gates = staged_row(p, t, row, G * H);
  const T inverse[2] = {normalize(gates, summed * H),
                        normalize(gates + summed * H, (G - summed) * H)};
  const unsigned lane = threadIdx.x % 32;
  if (p.norm.inverse && lane < 2)
    p.norm.inverse[(first_row(p.steps, t) + row) * 2 + lane] = inverse[lane];
}

// The cells of a step whose sums are in memory.
template <class Cell, class T>
struct StagedCells {
  RecurrentForwardArgs<T> p;
  Index t, first, units, first_unit;

  __device__ void operator()(Index i) const {
    constexpr int G = Cell::num_gates;
    const Index H = p.hidden_size, row = first + i / units, unit = first_unit + i % units;
    if (row >= rows_at(p.steps, t) || unit >= H) return;
    const T* const sums = staged_row(p, t, row, G * H);
    T gates[G];
    for (int g = 0; g < G; ++g) {
      gates[g] = sums[g * H + unit];
      if (p.norm.gain)
        gates[g] = fma(p.norm.gain[g * H + unit], gates[g],
                       gate_start<Cell>(p, first_row(p.steps, t) + row, g, unit));
    }
    run_cell_forward<Cell>(p, t, row, unit, gates, forward_inputs<Cell>(p, t, row, unit));
  }
};

// h of a step, projected from the cells' h.
template <class T, int tile_rows>
__global__ void project_kernel(RecurrentForwardArgs<T> p, Index t, Range rows) {
  const Index H = p.hidden_size, R = p.width, end = min_of(rows.end, rows_at(p.steps, t));
  const Index row_0 = rows.begin + Index(blockIdx.x) * tile_rows * thread_rows;
  const Index panel = blockIdx.y, unit = panel * panel_units + threadIdx.x;
  const Index row = row_0 + threadIdx.y * tile_rows, first = first_row(p.steps, t);
  if (row_0 >= end) return;
  T sums[tile_rows][1] = {};
  const auto row_of = [&](int i) -> const T* {
    return row_0 + i < end ? p.projection.hidden + (first + row_0 + i) * H : nullptr;
  };
  add_products<T, tile_rows, 1>(row_of, p.projection.weights, panel, R - panel * panel_units, H,
                                sums);
  if (unit >= R) return;
  CHARRNN_UNROLL
  for (int m = 0; m < tile_rows; ++m) {
    if (row + m >= end) break;
    const T h = sums[m][0];
    state_after(p.states[0], p.steps, t, row + m)[unit] = h;
    if (!p.recurrent || row + m >= rows_going_on(p.steps, t)) continue;
    const Index after = first_row_after(p.steps, t) + row + m;
    p.recurrent[after * R + unit] =
        p.recurrent_mask.data ? h * mask_at(p.recurrent_mask, after, row + m, unit) : h;
  }
}

// The recurrent product's input of the rows' first steps.
template <class T>
struct BeginRecurrent {
  RecurrentForwardArgs<T> p;
  Index first;

  CHARRNN_INLINE void operator()(Index i) const {
    const Index R = p.width, row = first + i / R, j = i % R, t = begin_step(p.steps, row);
    if (t < 0) return;
    const Index n = first_row(p.steps, t) + row;
    const T h = p.states[0].initial[row * p.states[0].stride + j];
    p.recurrent[n * R + j] = p.recurrent_mask.data ? h * mask_at(p.recurrent_mask, n, row, j) : h;
  }
};
template <class T>
void recurrent_begin(const RecurrentForwardArgs<T>& p, Range rows) {
  if (p.recurrent) each(size_of(rows) * p.width, BeginRecurrent<T>{p, rows.begin});
}

template <class Cell, class T>
void recurrent_forward(const RecurrentForwardArgs<T>& p, Range walk, Range rows, Range panels) {
  const Index num_rows = size_of(rows), num_panels = size_of(panels);
  if (num_rows <= 0 || num_panels <= 0) return;
  const bool few = rows_of_thread(num_rows) == few_rows;
  const unsigned tiles = row_tiles(num_rows);
  for (Index i = walk.begin; i < walk.end; ++i) {
    const Index t = step_number(p.steps, i);
    launch({dim3(tiles, static_cast<unsigned>(num_panels)), gemm_block()}, table_stream(),
           few ? step_forward<Cell, T, few_rows> : step_forward<Cell, T, many_rows>, p, t, rows,
           panels.begin);
    if (p.norm.gain)
      launch({dim3(warp_blocks(num_rows)), dim3(32 * warps_of_block)}, table_stream(),
             normalize_gates<Cell, T>, p, t, rows);
    const Index units = num_panels * panel_units;
    if (p.staged)
      each(num_rows * units,
           StagedCells<Cell, T>{p, t, rows.begin, units, panels.begin * panel_units});
    if (p.projection.hidden)
      launch({dim3(tiles, static_cast<unsigned>(ceil_div(p.width, panel_units))), gemm_block()},
             table_stream(), few ? project_kernel<T, few_rows> : project_kernel<T, many_rows>, p, t,
             rows);
  }
}

// ---- backward -----------------------------------------------------------------------------

// Gradients of h of a tile: start(row) + m * (dgates @ W_hh). product_step(row): the step whose
// recurrent product took this h; -1: none.
template <class Cell, class T, int tile_rows, class Start, class ProductStep>
__device__ void add_recurrent(const RecurrentBackwardArgs<T>& p, Index row_0, Index end,
                              Index panel, const Start& start, const ProductStep& product_step,
                              T (&dh)[tile_rows][1]) {
  const Index H = p.hidden_size, R = p.width, slots = num_slots<Cell>(p) * H;
  const Index unit = panel * panel_units + threadIdx.x, row = row_0 + threadIdx.y * tile_rows;
  const bool masked = p.recurrent_mask.data;
  for (int m = 0; m < tile_rows; ++m)
    dh[m][0] = !masked && row + m < end && unit < R ? start(row + m, unit) : T(0);
  const auto row_of = [&](int i) -> const T* {
    if (row_0 + i >= end) return nullptr;
    const Index t = product_step(row_0 + i);
    return t < 0 ? nullptr : p.dgates + (first_row(p.steps, t) + row_0 + i) * slots;
  };
  T before[tile_rows];
  for (int m = 0; m < tile_rows; ++m) before[m] = dh[m][0];
  add_products<T, tile_rows, 1>(row_of, p.hh, panel, R - panel * panel_units, Cell::num_gates * H,
                                dh);
  if (unit >= R) return;
  CHARRNN_UNROLL
  for (int m = 0; m < tile_rows; ++m) {
    if (row + m >= end) break;
    const Index t = product_step(row + m);
    if (t < 0) {
      dh[m][0] = masked ? start(row + m, unit) : before[m];
    } else if (masked) {
      const T mask = mask_at(p.recurrent_mask, first_row(p.steps, t) + row + m, row + m, unit);
      dh[m][0] = fma(mask, dh[m][0], start(row + m, unit));
    }
  }
}

template <class Cell, class T, int tile_rows>
__global__ void step_backward(RecurrentBackwardArgs<T> p, Index t, Range rows, Index first_panel) {
  const Index R = p.width, end = min_of(rows.end, rows_at(p.steps, t));
  const Index row_0 = rows.begin + Index(blockIdx.x) * tile_rows * thread_rows;
  const Index panel = first_panel + blockIdx.y, unit = panel * panel_units + threadIdx.x;
  const Index row = row_0 + threadIdx.y * tile_rows;
  if (row_0 >= end) return;
  T dh[tile_rows][1];
  add_recurrent<Cell, T, tile_rows>(
      p, row_0, end, panel, [&](Index r, Index u) { return dh_start<Cell>(p, t, r, u); },
      [&](Index r) { return r < rows_going_on(p.steps, t) ? step_after(p.steps, t) : Index(-1); },
      dh);
  if (unit >= R) return;
  CHARRNN_UNROLL
  for (int m = 0; m < tile_rows; ++m) {
    if (row + m >= end) break;
    if (p.projection.hidden)
      p.dprojected[(first_row(p.steps, t) + row + m) * R + unit] = dh[m][0];
    else
      run_cell_backward<Cell>(p, t, row + m, unit, dh[m][0],
                              backward_inputs<Cell>(p, t, row + m, unit));
  }
}

// The cells of a step with a projection.
template <class Cell, class T, int tile_rows>
__global__ void projected_backward(RecurrentBackwardArgs<T> p, Index t, Range rows,
                                   Index first_panel) {
  const Index H = p.hidden_size, R = p.width, end = min_of(rows.end, rows_at(p.steps, t));
  const Index row_0 = rows.begin + Index(blockIdx.x) * tile_rows * thread_rows;
  const Index panel = first_panel + blockIdx.y, unit = panel * panel_units + threadIdx.x;
  const Index row = row_0 + threadIdx.y * tile_rows, first = first_row(p.steps, t);
  if (row_0 >= end) return;
  T dh[tile_rows][1] = {};
  const auto row_of = [&](int i) -> const T* {
    return row_0 + i < end ? p.dprojected + (first + row_0 + i) * R : nullptr;
  };
  add_products<T, tile_rows, 1>(row_of, p.projection.weights, panel, H - panel * panel_units, R,
                                dh);
  if (unit >= H) return;
  CHARRNN_UNROLL
  for (int m = 0; m < tile_rows; ++m) {
    if (row + m >= end) break;
    run_cell_backward<Cell>(p, t, row + m, unit, dh[m][0],
                            backward_inputs<Cell>(p, t, row + m, unit));
  }
}

// Turns the gradients of a step's normalized gates into those of W_hh h; copies the former to the
// slots behind.
template <class Cell, class T>
__global__ void normalize_gates_backward(RecurrentBackwardArgs<T> p, Index t, Range rows) {
  constexpr Index G = Cell::num_gates, split = Cell::num_split, summed = G - split;
  const Index H = p.hidden_size, row = rows.begin + warp_row();
  if (row >= min_of(rows.end, rows_at(p.steps, t))) return;
  const Index n = first_row(p.steps, t) + row;
  T* const d = p.dgates + n * num_slots<Cell>(p) * H;
  const T *const hat = p.normalized + n * G * H, *const inverse = p.norm.inverse + n * 2;
  for (Index j = threadIdx.x % 32; j < G * H; j += 32)
    d[j < summed * H ? G * H + j : 2 * G * H + j - summed * H] = d[j];
  sync_warp();
  normalize_backward(d, p.norm.gain, hat, inverse[0], summed * H);
  normalize_backward(d + summed * H, p.norm.gain + summed * H, hat + summed * H, inverse[1],
                     split * H);
}

template <class Cell, class T>
void recurrent_backward(const RecurrentBackwardArgs<T>& p, Range walk, Range rows, Range panels) {
  const Index num_rows = size_of(rows);
  if (num_rows <= 0 || size_of(panels) <= 0) return;
  const bool few = rows_of_thread(num_rows) == few_rows, projected = p.projection.hidden;
  const unsigned tiles = row_tiles(num_rows);
  const Range all{0, ceil_div(p.width, panel_units)}, first = projected ? all : panels;
  for (Index i = walk.end - 1; i >= walk.begin; --i) {
    const Index t = step_number(p.steps, i);
    launch({dim3(tiles, static_cast<unsigned>(size_of(first))), gemm_block()}, table_stream(),
           few ? step_backward<Cell, T, few_rows> : step_backward<Cell, T, many_rows>, p, t, rows,
           first.begin);
    if (projected)
      launch({dim3(tiles, static_cast<unsigned>(size_of(panels))), gemm_block()}, table_stream(),
             few ? projected_backward<Cell, T, few_rows> : projected_backward<Cell, T, many_rows>,
             p, t, rows, panels.begin);
    if (p.norm.gain)
      launch({dim3(warp_blocks(num_rows)), dim3(32 * warps_of_block)}, table_stream(),
             normalize_gates_backward<Cell, T>, p, t, rows);
  }
}

template <class Cell, class T, int tile_rows>
__global__ void backward_initial(RecurrentBackwardArgs<T> p, Range rows, Index first_panel) {
  const Index R = p.width, end = rows.end;
  const Index row_0 = rows.begin + Index(blockIdx.x) * tile_rows * thread_rows;
  const Index panel = first_panel + blockIdx.y, unit = panel * panel_units + threadIdx.x;
  const Index row = row_0 + threadIdx.y * tile_rows;
  T dh[tile_rows][1];
  add_recurrent<Cell, T, tile_rows>(
      p, row_0, end, panel,
      [&](Index r, Index u) { return bypasses<Cell>(p) ? p.dstates[0][r * R + u] : T(0); },
      [&](Index r) { return begin_step(p.steps, r); }, dh);
  if (unit >= R) return;
  CHARRNN_UNROLL
  for (int m = 0; m < tile_rows; ++m) {
    if (row + m >= end) break;
    if (begin_step(p.steps, row + m) >= 0) p.dstates[0][(row + m) * R + unit] = dh[m][0];
  }
}
template <class Cell, class T>
void recurrent_backward_initial(const RecurrentBackwardArgs<T>& p, Range rows, Range panels) {
  if (size_of(rows) <= 0 || size_of(panels) <= 0) return;
  const bool few = rows_of_thread(size_of(rows)) == few_rows;
  launch({dim3(row_tiles(size_of(rows)), static_cast<unsigned>(size_of(panels))), gemm_block()},
         table_stream(),
         few ? backward_initial<Cell, T, few_rows> : backward_initial<Cell, T, many_rows>, p, rows,
         panels.begin);
}

}  // namespace cuda
}  // namespace charrnn_fast
