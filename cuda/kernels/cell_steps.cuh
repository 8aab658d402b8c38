// What a thread does of a recurrent layer, for every way to run one: a cell's step of one unit of
// one row, forward and, under it, backward. What does not depend on the step's recurrent product is
// read first, so that it can be on its way while the product is computed.
#pragma once

#include "charrnn_fast/cells.hpp"
#include "kernels/rounding.cuh"
#include "kernels/sequences.cuh"

namespace charrnn_fast {
namespace cuda {

// An array for what a cell may lack: N may be 0.
template <class T, int N>
struct Values {
  T v[N > 0 ? N : 1];
};

template <class T>
CHARRNN_INLINE T mask_at(const Mask<T>& m, Index n, Index row, Index unit) {
  return m.data[n * m.by_step + row * m.by_row + unit];
}

// Row `row` of state s before and after step t.
template <class T>
CHARRNN_INLINE T* state_after(const StateRows<T>& s, const Steps& steps, Index t, Index row) {
  return s.rows + (s.in_place ? 0 : first_row(steps, t) * s.stride) + row * s.stride;
}
template <class T>
CHARRNN_INLINE T* state_before(const StateRows<T>& s, const Steps& steps, Index t, Index row) {
  if (row >= rows_from_before(steps, t)) return s.initial + row * s.stride;
  return state_after(s, steps, step_before(steps, t), row);
}

// ---- forward ------------------------------------------------------------------------------

template <class Cell, class T>
CHARRNN_INLINE const T* input_row(const RecurrentForwardArgs<T>& p, Index n) {
  const Index width = Cell::num_gates * p.hidden_size;
  return p.gx ? p.gx + n * width : p.table + p.tokens[n] * width;
}

// An input term without its bias; a token's weights are an operand.
template <class Cell, class T>
CHARRNN_INLINE T input_at(const RecurrentForwardArgs<T>& p, Index n, Index column) {
  const T x = input_row<Cell>(p, n)[column];
  return p.gx ? x : operand(x, p.hh.compute);
}

// Initial values of the gates' sums: the input term with its bias, or a split gate's own bias.
template <class Cell, class T>
CHARRNN_INLINE T gate_start(const RecurrentForwardArgs<T>& p, Index n, Index g, Index unit) {
  constexpr int summed = Cell::num_gates - Cell::num_split;
  const Index H = p.hidden_size;
  if (g >= summed) return p.split_bias ? p.split_bias[(g - summed) * H + unit] : T(0);
  const T gx = input_at<Cell>(p, n, g * H + unit);
  return p.input_bias ? p.input_bias[g * H + unit] + gx : gx;
}

// What a cell reads besides its gates.
template <class Cell, class T>
struct ForwardInputs {
  Values<T, Cell::num_split> gx;
  Values<T, Cell::num_params> params;
  Values<T, Cell::num_states> prev;
};
template <class Cell, class T>
__device__ __forceinline__ ForwardInputs<Cell, T> forward_inputs(const RecurrentForwardArgs<T>& p,
                                                                 Index t, Index row, Index unit) {
  constexpr int S = Cell::num_states, split = Cell::num_split, summed = Cell::num_gates - split;
  const Index H = p.hidden_size, n = first_row(p.steps, t) + row;
  ForwardInputs<Cell, T> in{};
  for (int i = 0; i < split; ++i) {
    const T x = input_at<Cell>(p, n, (summed + i) * H + unit);
    in.gx.v[i] = p.input_bias ? p.input_bias[(summed + i) * H + unit] + x : x;
  }
  for (int i = 0; i < Cell::num_params; ++i) in.params.v[i] = p.params[i * H + unit];
  for (int s = 0; s < S; ++s)
    if (s > 0 || Cell::h_bypass) in.prev.v[s] = state_before(p.states[s], p.steps, t, row)[unit];
  return in;
}

// Returns the unit's part of the next step's recurrent product, where the row has one.
template <class Cell, class T>
__device__ T run_cell_forward(const RecurrentForwardArgs<T>& p, Index t, Index row, Index unit,
                              const T* gates, const ForwardInputs<Cell, T>& in) {
  constexpr int S = Cell::num_states;
  const Index H = p.hidden_size, n = first_row(p.steps, t) + row;
  Values<T, S> next;
  Values<T, Cell::num_saved> saved;
  Cell::forward(CellForward<T>{gates, in.gx.v, in.params.v, in.prev.v, next.v, saved.v});
  for (int s = 0; s < S; ++s) {
    const Zoneout<T> z = p.zoneout.any ? p.zoneout[s] : Zoneout<T>{};
    if (z.mask.data) {
      if (z.raw) z.raw[n * H + unit] = next.v[s];
      const T m = mask_at(z.mask, n, row, unit);
      const T before = state_before(p.states[s], p.steps, t, row)[unit];
      next.v[s] = fma(m, before, (T(1) - m) * next.v[s]);
    }
    T* const to = s == 0 && p.projection.hidden ? p.projection.hidden + n * H
                                                : state_after(p.states[s], p.steps, t, row);
    to[unit] = next.v[s];
  }
  T h = next.v[0];
  if (p.recurrent && !p.projection.hidden && row < rows_going_on(p.steps, t)) {
    const Index after = first_row_after(p.steps, t) + row;
    if (p.recurrent_mask.data) h = h * mask_at(p.recurrent_mask, after, row, unit);
    p.recurrent[after * H + unit] = h;
  }
  if (p.saved)
    for (int i = 0; i < Cell::num_saved; ++i)
      p.saved[(n * Cell::num_saved + i) * H + unit] = saved.v[i];
  return h;
}

// ---- backward -----------------------------------------------------------------------------

template <class Cell, class T>
CHARRNN_INLINE Index num_slots(const RecurrentBackwardArgs<T>& p) {
  constexpr Index G = Cell::num_gates;
  return (p.norm.gain ? 2 * G : G) + Cell::num_split + Cell::num_params;
}

// Whether dstates[0] holds part of the previous h's gradient.
template <class Cell, class T>
CHARRNN_INLINE bool bypasses(const RecurrentBackwardArgs<T>& p) {
  return Cell::h_bypass || (p.zoneout.any && p.zoneout[0].mask.data);
}

// The gradient of h except through the next step's gates.
template <class Cell, class T>
CHARRNN_INLINE T dh_start(const RecurrentBackwardArgs<T>& p, Index t, Index row, Index unit) {
  T start = T(0);
  if (p.dy) start = p.dy[(first_row(p.steps, t) + row) * p.dy_stride + unit];
  if (bypasses<Cell>(p) || row >= rows_going_on(p.steps, t))
    start = start + p.dstates[0][row * p.width + unit];
  return start;
}

// What a cell's backward reads besides the gradient of h.
template <class Cell, class T>
struct BackwardInputs {
  Values<T, Cell::num_saved> saved;
  Values<T, Cell::num_params> params;
  Values<T, Cell::num_states> prev, next, dnext;  // dnext[0]: not
};
template <class Cell, class T>
__device__ __forceinline__ BackwardInputs<Cell, T> backward_inputs(
    const RecurrentBackwardArgs<T>& p, Index t, Index row, Index unit) {
  const Index H = p.hidden_size, n = first_row(p.steps, t) + row;
  BackwardInputs<Cell, T> in{};
  for (int i = 0; i < Cell::num_saved; ++i)
    in.saved.v[i] = p.saved[(n * Cell::num_saved + i) * H + unit];
  for (int i = 0; i < Cell::num_params; ++i) in.params.v[i] = p.params[i * H + unit];
  for (int s = 0; s < Cell::num_states; ++s) {
    if (s > 0 || Cell::h_bypass) in.prev.v[s] = state_before(p.states[s], p.steps, t, row)[unit];
    if (Cell::reads_next >> s & 1) {
      const T* const raw = p.zoneout.any ? p.zoneout[s].raw : nullptr;
      in.next.v[s] = raw ? raw[n * H + unit]
                     : s == 0 && p.projection.hidden
                         ? p.projection.hidden[n * H + unit]
                         : state_after(p.states[s], p.steps, t, row)[unit];
    }
    if (s > 0) in.dnext.v[s] = p.dstates[s][row * H + unit];
  }
  return in;
}

// Returns the gradients of the gates.
template <class Cell, class T>
__device__ Values<T, Cell::num_gates> run_cell_backward(const RecurrentBackwardArgs<T>& p, Index t,
                                                        Index row, Index unit, T dh,
                                                        BackwardInputs<Cell, T> in) {
  constexpr int G = Cell::num_gates, S = Cell::num_states, split = Cell::num_split;
  const Index H = p.hidden_size, slots = num_slots<Cell>(p), n = first_row(p.steps, t) + row;
  const Index input_slot = p.norm.gain ? 2 * G - split : G;
  Values<T, G> dgates;
  Values<T, split> dgx;
  Values<T, Cell::num_params> dparams;
  Values<T, S> dprev, past{};
  in.dnext.v[0] = dh;
  for (int s = 0; s < S; ++s) {
    const Zoneout<T> z = p.zoneout.any ? p.zoneout[s] : Zoneout<T>{};
    if (z.mask.data) {
      const T m = mask_at(z.mask, n, row, unit);
      past.v[s] = m * in.dnext.v[s];
      in.dnext.v[s] = (T(1) - m) * in.dnext.v[s];
    }
  }
  Cell::backward(CellBackward<T>{in.saved.v, in.params.v, in.prev.v, in.next.v, in.dnext.v,
                                 dgates.v, dgx.v, dparams.v, dprev.v});
  T* const out = p.dgates + n * slots * H + unit;
  for (int g = 0; g < G; ++g) out[g * H] = dgates.v[g];
  for (int i = 0; i < split; ++i) out[(input_slot + i) * H] = dgx.v[i];
  for (int i = 0; i < Cell::num_params; ++i) out[(slots - Cell::num_params + i) * H] = dparams.v[i];
  for (int s = 0; s < S; ++s) {
    const bool given = s > 0 || Cell::h_bypass;
    if (p.zoneout.any && p.zoneout[s].mask.data)
      p.dstates[s][row * H + unit] = given ? dprev.v[s] + past.v[s] : past.v[s];
    else if (given)
      p.dstates[s][row * H + unit] = dprev.v[s];
  }
  return dgates;
}

}  // namespace cuda
}  // namespace charrnn_fast
