// A recurrent layer over all its steps in one launch: its weights stay on the chip.
//
// A group of blocks has some rows of the batch, for all steps; each block of the group has some
// units. A thread has one chain of one output: up to chain_depth weights, the first in its
// registers, the others in shared memory. In a step, all threads add up their chains for a tile of
// rows. Then a thread for each unit and row adds the chains in order, runs the cell, and passes on
// what the next step's product takes: h forward, the gates' gradients backward. How it gets to the
// other blocks of the group is the Exchange:
//
//   InBlock    (T1) a group is a block: by its shared memory
//   InCluster  (T2) a group is a cluster: by asynchronous stores into the others' shared memory
//   InGrid     (T3) by the arrays in global memory that hold it anyway, and a flag of each block
//
// The sums are those of recurrent.cuh, term by term.
#pragma once

#include "kernels/cell_steps.cuh"
#include "kernels/gemm.cuh"
#include "tiers.hpp"

namespace charrnn_fast {
namespace cuda {

// Weights of a chain in registers; the others are in shared memory.
template <class T>
constexpr int held_depth = sizeof(T) == 4 ? 56 : 24;

template <class T>
struct alignas(16) Quad {
  T v[4];
};

// ---- forward and backward -----------------------------------------------------------------

// outputs: sums of a unit; sent: values of a unit that the next step's product takes.
template <class Cell, class T>
struct ForwardPass {
  using Number = T;
  using Args = RecurrentForwardArgs<T>;
  static constexpr int outputs = Cell::num_gates, sent = 1;
  static constexpr bool backward = false;

  struct Inputs {
    T starts[outputs];
    ForwardInputs<Cell, T> cell;
  };

  static CHARRNN_INLINE Index depth(Index hidden_size) { return hidden_size; }
  static CHARRNN_INLINE Index step(const Args& p, Range walk, Index i) {
    return step_number(p.steps, walk.begin + i);
  }
  // Rows whose product takes what the step before passed on; rows that pass something on.
  static CHARRNN_INLINE Index continuing(const Args& p, Index t) {
    return rows_from_before(p.steps, t);
  }
  static CHARRNN_INLINE Index going_on(const Args& p, Index t) { return rows_going_on(p.steps, t); }
  static CHARRNN_INLINE bool has_product(const Args&, Index, Index) { return true; }
  // The product's operands, [depth].
  static __device__ const T* operands(const Args& p, Index t, Index row) {
    return p.recurrent ? p.recurrent + (first_row(p.steps, t) + row) * p.width
                       : state_before(p.states[0], p.steps, t, row);
  }
  static __device__ __forceinline__ Inputs read(const Args& p, Index t, Index row, Index unit) {
    Inputs in;
    const Index n = first_row(p.steps, t) + row;
    for (int g = 0; g < outputs; ++g) in.starts[g] = gate_start<Cell>(p, n, g, unit);
    in.cell = forward_inputs<Cell>(p, t, row, unit);
    return in;
  }
  // in.starts: with the product
  static __device__ __forceinline__ Values<T, sent> run(const Args& p, Index t, Index row,
                                                        Index unit, const Inputs& in) {
    return {{run_cell_forward<Cell>(p, t, row, unit, in.starts, in.cell)}};
  }
};

template <class Cell, class T>
struct BackwardPass {
  using Number = T;
  using Args = RecurrentBackwardArgs<T>;
  static constexpr int outputs = 1, sent = Cell::num_gates;
  static constexpr bool backward = true;

  struct Inputs {
    T starts[1];
    T rest;  // the gradient of h that no mask multiplies
    BackwardInputs<Cell, T> cell;
  };

  static CHARRNN_INLINE Index depth(Index hidden_size) { return sent * hidden_size; }
  static CHARRNN_INLINE Index step(const Args& p, Range walk, Index i) {
    return step_number(p.steps, walk.end - 1 - i);
  }
  static CHARRNN_INLINE Index continuing(const Args& p, Index t) {
    return rows_going_on(p.steps, t);
  }
  static CHARRNN_INLINE Index going_on(const Args& p, Index t) {
    return rows_from_before(p.steps, t);
  }
  static CHARRNN_INLINE bool has_product(const Args& p, Index t, Index row) {
    return row < rows_going_on(p.steps, t);
  }
  static __device__ const T* operands(const Args& p, Index t, Index row) {
    return p.dgates + (first_row_after(p.steps, t) + row) * num_slots<Cell>(p) * p.hidden_size;
  }
  static __device__ __forceinline__ Inputs read(const Args& p, Index t, Index row, Index unit) {
    Inputs in;
    in.rest = dh_start<Cell>(p, t, row, unit);
    in.starts[0] = p.recurrent_mask.data ? T(0) : in.rest;
    in.cell = backward_inputs<Cell>(p, t, row, unit);
    return in;
  }
  static __device__ __forceinline__ Values<T, sent> run(const Args& p, Index t, Index row,
                                                        Index unit, const Inputs& in) {
    T dh = in.starts[0];
    if (p.recurrent_mask.data) {
      const Index after = first_row_after(p.steps, t) + row;
      dh = has_product(p, t, row) ? fma(mask_at(p.recurrent_mask, after, row, unit), dh, in.rest)
                                  : in.rest;
    }
    return run_cell_backward<Cell>(p, t, row, unit, dh, in.cell);
  }
};

// ---- exchanges ----------------------------------------------------------------------------

// buffers: of operands. in_place: operands of all rows of the group stay in shared memory; else
// those of a tile are copied there in each step.
struct InBlock {
  static constexpr int buffers = 1;
  static constexpr bool in_place = true;
  static constexpr std::size_t more_shared = 0;

  template <class Args>
  __device__ InBlock(const Args&, const Tiling&, void*) {}
  __device__ int buffer(int) const { return 0; }
  __device__ void wait(int, std::uint32_t) const {}
  // `value`: of the next step, to operands + at of its buffer
  template <class T>
  __device__ void pass_on(int, T* operands, int at, T value) const {
    operands[at] = value;
  }
  __device__ void end_step(int) const {}
  __device__ void end() const {}
};

// The flag of a block: how many steps it has done. The launch begins with zeros.
struct InGrid {
  static constexpr int buffers = 1;
  static constexpr bool in_place = false;
  static constexpr std::size_t more_shared = 0;

  template <class Args>
  __device__ InGrid(const Args& p, const Tiling& s, void*)
      : blocks(static_cast<unsigned>(s.blocks)),
        barrier(s.barrier),
        flags(p.flags + blockIdx.x / blocks * blocks),
        own(flags + (barrier ? 0 : blockIdx.x % blocks)) {}
  __device__ int buffer(int) const { return 0; }
  __device__ void wait(int step, std::uint32_t) const {
    if (step == 0) return;
    if (barrier) {
      const std::uint32_t until = static_cast<std::uint32_t>(step) * blocks;
      if (threadIdx.x == 0)
        while (load_acquire(flags) < until) {
        }
    } else {
      for (unsigned block = threadIdx.x; block < blocks; block += blockDim.x)
        while (load_acquire(flags + block) < static_cast<std::uint32_t>(step)) {
        }
    }
    sync_block();
  }
  template <class T>
  __device__ void pass_on(int, T*, int, T) const {}
  __device__ void end_step(int step) const {
    sync_block();
    if (threadIdx.x != 0) return;
    if (barrier)
      add_release(own, 1);
    else
      store_release(own, static_cast<std::uint32_t>(step + 1));
  }
  __device__ void end() const {}

  unsigned blocks;
  bool barrier;
  std::uint32_t *flags, *own;
};

// ---- the kernel ---------------------------------------------------------------------------

// sums[m] = the chain's sum for row m of a tile. near: the thread's first quad of weights in shared
// memory, `pairs` quads from one to the next.
template <int rows, class T>
__device__ __forceinline__ void add_chain(const T (&held)[held_depth<T>], const Quad<T>* near,
                                          int pairs, int depth, const T* operands, int stride,
                                          T (&sums)[rows]) {
  for (int m = 0; m < rows; ++m) sums[m] = T(0);
  const auto quad = [&](int m, int k) {
    return *reinterpret_cast<const Quad<T>*>(operands + m * stride + k);
  };
  CHARRNN_UNROLL
  for (int k = 0; k < held_depth<T>; k += 4) {
    if (k >= depth) break;
    CHARRNN_UNROLL
    for (int m = 0; m < rows; ++m) {
      const Quad<T> x = quad(m, k);
      CHARRNN_UNROLL
      for (int i = 0; i < 4; ++i) sums[m] = fma(x.v[i], held[k + i], sums[m]);
    }
  }
  for (int k = held_depth<T>; k < depth; k += 4, near += pairs) {
    const Quad<T> w = *near;
    CHARRNN_UNROLL
    for (int m = 0; m < rows; ++m) {
      const Quad<T> x = quad(m, k);
      CHARRNN_UNROLL
      for (int i = 0; i < 4; ++i) sums[m] = fma(x.v[i], w.v[i], sums[m]);
    }
  }
}

// The chains of a tile of `rows` rows, to to[m * columns].
template <int rows, class T>
__device__ __forceinline__ void store_chain(const T (&held)[held_depth<T>], const Quad<T>* near,
                                            int pairs, int depth, const T* operands, int stride,
                                            int columns, T* to) {
  T sums[rows];
  add_chain<rows>(held, near, pairs, depth, operands, stride, sums);
  CHARRNN_UNROLL
  for (int m = 0; m < rows; ++m) to[m * columns] = sums[m];
}

template <class Pass, class Exchange>
__device__ __forceinline__ void run_steps(const typename Pass::Args& p, Range walk, Range rows,
                                          const Tiling& s) {
  using T = typename Pass::Number;
  constexpr int held = held_depth<T>;
  // int where Index would take two registers
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int group = static_cast<int>(blockIdx.x) / s.blocks;
  const int pairs = s.columns * s.chains, H = static_cast<int>(p.hidden_size);
  const int depth = static_cast<int>(Pass::depth(H));
  const int first_unit = (static_cast<int>(blockIdx.x) - group * s.blocks) * s.units;
  const int row_0 = static_cast<int>(rows.begin) + group * s.rows;
  const auto rows_of_group = [&](Index to) {  // those of [0, to)
    return static_cast<int>(min_of(min_of(rows.end, row_0 + s.rows), to)) - row_0;
  };

  T* const weights = shared_memory<T>();         // [near / 4, pairs, 4]
  T* const operands = weights + s.near * pairs;  // [buffers, rows, stride]
  const int buffer_size = (Exchange::in_place ? s.operand_rows : persistent_rows) * s.stride;
  T* const sums = operands + Exchange::buffers * buffer_size;  // [chains, rows, columns]
  const Exchange exchange(p, s, sums + pairs * persistent_rows);

  // This thread's chain: `own_depth` weights of one column.
  const int chain = thread / s.columns, column = thread - chain * s.columns;
  const int chain_begin = chain * static_cast<int>(chain_depth);
  const int own_depth =
      thread < pairs ? static_cast<int>(min_of(chain_depth, depth - chain_begin)) : 0;
  T weights_held[held];
  {
    const Index unit = first_unit + column % s.units;
    const Index at = column / s.units * panel_units + unit % panel_units;
    const auto own = [&](int k) {
      return k < own_depth && unit < H ? weight(p.hh, unit / panel_units, chain_begin + k, at)
                                       : T(0);
    };
    CHARRNN_UNROLL
    for (int k = 0; k < held; ++k) weights_held[k] = own(k);
    if (thread < pairs)
      for (int k = 0; k < s.near; ++k)
        weights[(k / 4 * pairs + thread) * 4 + k % 4] = own(held + k);
  }
  // The last quad of a row may go past its end, where the weights are zero.
  const int past = s.stride - depth;
  for (int i = thread; i < Exchange::buffers * buffer_size / s.stride * past; i += threads)
    operands[i / past * s.stride + depth + i % past] = T(0);

  // This thread's first row and unit of a tile: the same in every step, so that it alone accesses
  // their states.
  const int own_m = thread / s.units, own_unit = first_unit + thread - own_m * s.units;
  const int steps = static_cast<int>(size_of(walk));
  // Steps in which the group has rows: they follow each other, and rows go on from each to the
  // next.
  int done = 0;
  for (int step = 0; step < steps; ++step) {
    const Index t = Pass::step(p, walk, step);
    const int count = rows_of_group(rows_at(p.steps, t));
    if (count <= 0) continue;
    const int continuing = done > 0 ? rows_of_group(Pass::continuing(p, t)) : 0;
    const int going_on = step + 1 < steps ? rows_of_group(Pass::going_on(p, t)) : 0;
    T* const now = operands + exchange.buffer(done) * buffer_size;
    T* const next = operands + exchange.buffer(done + 1) * buffer_size;

    for (int tile = 0; tile < count; tile += persistent_rows) {
      const int tile_rows = static_cast<int>(min_of(persistent_rows, count - tile));
      typename Pass::Inputs inputs;
      if (own_m < tile_rows && own_unit < H)
        inputs = Pass::read(p, t, row_0 + tile + own_m, own_unit);
      if (tile == 0) {
        const int arriving = static_cast<int>(max_of(0, continuing)) * depth;
        exchange.wait(done, static_cast<std::uint32_t>(arriving) * sizeof(T));
      }
      T* const tile_operands = Exchange::in_place ? now + tile * s.stride : now;
      for (int m = 0; m < tile_rows; ++m) {
        const Index row = row_0 + tile + m;
        if ((Exchange::in_place && tile + m < continuing) || !Pass::has_product(p, t, row))
          continue;
        const T* const from = Pass::operands(p, t, row);
        for (int k = thread; k < depth; k += threads) tile_operands[m * s.stride + k] = from[k];
      }
      sync_block();
      if (thread < pairs) {
        const auto* const near = reinterpret_cast<const Quad<T>*>(weights) + thread;
        const T* const from = tile_operands + chain_begin;
        T* const to = sums + chain * persistent_rows * s.columns + column;
        if (tile_rows == 1)
          store_chain<1>(weights_held, near, pairs, own_depth, from, s.stride, s.columns, to);
        else if (tile_rows == 2)
          store_chain<2>(weights_held, near, pairs, own_depth, from, s.stride, s.columns, to);
        else
          store_chain<persistent_rows>(weights_held, near, pairs, own_depth, from, s.stride,
                                       s.columns, to);
      }
      sync_block();
      for (int i = thread; i < tile_rows * s.units; i += threads) {
        const int m = i / s.units, u = i - m * s.units, unit = first_unit + u;
        const Index row = row_0 + tile + m;
        if (unit >= H) continue;
        if (i != thread) inputs = Pass::read(p, t, row, unit);
        if (Pass::has_product(p, t, row))
          for (int c = 0; c < s.chains; ++c) {
            const T* const from = sums + (c * persistent_rows + m) * s.columns + u;
            CHARRNN_UNROLL
            for (int o = 0; o < Pass::outputs; ++o)
              inputs.starts[o] = inputs.starts[o] + from[o * s.units];
          }
        const auto values = Pass::run(p, t, row, unit, inputs);
        if (tile + m < going_on) {
          CHARRNN_UNROLL
          for (int v = 0; v < Pass::sent; ++v)
            exchange.pass_on(done, next, (tile + m) * s.stride + v * H + unit, values.v[v]);
        }
      }
    }
    exchange.end_step(done++);
  }
  exchange.end();
}

template <class Pass, class Exchange>
__global__ void CHARRNN_THREADS(persistent_threads)
    persistent(typename Pass::Args p, Range walk, Range rows, Tiling s) {
  run_steps<Pass, Exchange>(p, walk, rows, s);
}

}  // namespace cuda
}  // namespace charrnn_fast
