// One recurrent layer over time, for any cell of cells.hpp: forward and, under it, backward.
//
// A tile in one step: a prologue writes the sums' initial values (the gates' input term; the
// gradient from above), the tile adds the recurrent product, an epilogue runs the cell. With the
// fused epilogue, tile and cell share a buffer of one tile in the first-level cache. The staged
// epilogue first writes whole rows of gates, for code that needs them: layer normalization. Both
// run the same code on the same numbers.
//
// A step runs in groups of like rows: their state comes from the step before or is initial; they
// continue or end. If all sequences have one length, there is one group.

// An array for what a cell may lack: N may be 0.
template <class V, int N>
struct Values {
  V v[N > 0 ? N : 1];
};

template <class V, int N, class T>
CHARRNN_INLINE void load_each(Values<V, N>& to, const T* from, Index stride, Index count) {
  unroll<N>([&](auto i)
                __attribute__((always_inline)) { to.v[i] = V::load(from + i * stride, count); });
}
template <int N, class V, class T>
CHARRNN_INLINE void store_each(const V* from, T* to, Index stride, Index count) {
  unroll<N>([&](auto i) __attribute__((always_inline)) { from[i].store(to + i * stride, count); });
}

CHARRNN_INLINE Range intersect(Range a, Range b) {
  return {max_of(a.begin, b.begin), min_of(a.end, b.end)};
}
CHARRNN_INLINE bool empty(Range r) { return r.begin >= r.end; }

// A mask's row for row r of the batch, row n of the sequence.
template <class T>
CHARRNN_INLINE const T* mask_row(const Mask<T>& m, Index n, Index r) {
  return m.data + n * m.by_step + r * m.by_row;
}

// Initial values of zero.
template <class T>
CHARRNN_INLINE Start<T> zero_start() {
  alignas(64) static constexpr T zeros[Native<T>::lanes] = {};
  return {zeros, 0, 0, 0};
}

// Rows of one step with their states before and after. Pointers are to row 0 of the batch.
template <class Cell, class T>
struct StepRows {
  Index t, first;  // the step, and its first row of the sequence
  const T* prev[Cell::num_states];
  T* next[Cell::num_states];
};

template <class Cell, class T>
CHARRNN_INLINE StepRows<Cell, T> step_rows(const Steps& steps, const States<T>& states, Index t,
                                           bool begins) {
  StepRows<Cell, T> step;
  step.t = t, step.first = first_row(steps, t);
  for (int s = 0; s < Cell::num_states; ++s) {
    const StateRows<T>& state = states[s];
    const auto at = [&](Index row) __attribute__((always_inline)) {
      return state.rows + (state.in_place ? 0 : row * state.stride);
    };
    step.prev[s] = begins ? state.initial : at(first_row(steps, step_before(steps, t)));
    step.next[s] = at(step.first);
  }
  return step;
}

// ---- forward ------------------------------------------------------------------------------

template <class Cell, class T>
CHARRNN_INLINE const T* input_row(const RecurrentForwardArgs<T>& p, Index n) {
  const Index width = Cell::num_gates * p.hidden_size;
  return p.gx ? p.gx + n * width : p.table + p.tokens[n] * width;
}

// Prefetches, while the tile is computed, what its cells will store and the initial values of the
// panel's next tile.
template <class Cell, class T>
CHARRNN_INLINE void prefetch_forward(const RecurrentForwardArgs<T>& p,
                                     const StepRows<Cell, T>& step, const Place& at,
                                     Index last_row) {
  constexpr int lanes = Native<T>::lanes;
  const Index H = p.hidden_size, unit = at.vector * lanes, n = at.vectors * lanes;
  for (Index row = at.row; row < at.row + at.rows; ++row) {
    if (p.saved)
      for (int i = 0; i < Cell::num_saved; ++i)
        prefetch<true>(p.saved + ((step.first + row) * Cell::num_saved + i) * H + unit, n);
    for (int s = 0; s < Cell::num_states; ++s)
      prefetch<true>(step.next[s] + row * p.states[s].stride + unit, n);
    if (row + at.rows < last_row)
      for (int g = 0; g < Cell::num_gates; ++g)
        prefetch<false>(input_row<Cell>(p, step.first + row + at.rows) + g * H + unit, n);
  }
}

// The input term of a gate at `from`: part of gx, or a token's weights, which are an operand.
template <class T>
CHARRNN_INLINE Native<T> load_input(const RecurrentForwardArgs<T>& p, const T* from, Index n) {
  const Native<T> x = Native<T>::load(from, n);
  return p.gx ? x : operand(x, p.hh.compute);
}

// Initial values of the sums: gx itself; or, written to gates [rows][vectors][G][lanes], the sum of
// a token's weights and the biases.
template <class Cell, class T>
CHARRNN_INLINE Start<T> begin_gates(const RecurrentForwardArgs<T>& p, Index first, const Place& at,
                                    T* gates) {
  using V = Native<T>;
  constexpr int G = Cell::num_gates, summed = G - Cell::num_split;
  const Index H = p.hidden_size, stride = at.vectors * G * V::lanes;
  if (Cell::num_split == 0 && p.gx && H % V::lanes == 0)
    return {input_row<Cell>(p, first + at.row) + at.vector * V::lanes, G * H, H, V::lanes};
  for (Index r = 0; r < at.rows; ++r) {
    const T* gx = input_row<Cell>(p, first + at.row + r);
    T* out = gates + r * stride;
    for (Index u = 0; u < at.vectors; ++u, out += G * V::lanes) {
      const Index unit = (at.vector + u) * V::lanes, n = H - unit;
      unroll<G>([&](auto g) __attribute__((always_inline)) {
        V start = V(T(0));
        if constexpr (g < summed) {
          start = load_input(p, gx + g * H + unit, n);
          if (p.input_bias) start = V::load(p.input_bias + g * H + unit, n) + start;
        } else {
          if (p.split_bias) start = V::load(p.split_bias + (g - summed) * H + unit, n);
        }
        start.store(out + g * V::lanes);
      });
    }
  }
  return {gates, stride, V::lanes, G * V::lanes};
}

// gates: the sums of row r, gate g and vector u of the place, laid out as in Start.
template <class Cell, class T>
void run_cells_forward(const RecurrentForwardArgs<T>& p, const StepRows<Cell, T>& step,
                       const Place& at, const Start<T>& gates) {
  using V = Native<T>;
  constexpr int G = Cell::num_gates, S = Cell::num_states, summed = G - Cell::num_split;
  const Index H = p.hidden_size;
  const Index after = first_row_after(p.steps, step.t);
  const Index going_on = p.recurrent || p.rounded ? rows_going_on(p.steps, step.t) : 0;
  const Index next_step = step_after(p.steps, step.t);
  for (Index r = 0; r < at.rows; ++r) {
    const Index row = at.row + r, n_row = step.first + row;
    const T* const gx_row = input_row<Cell>(p, n_row);
    for (Index u = 0; u < at.vectors; ++u) {
      const Index unit = (at.vector + u) * V::lanes, n = H - unit;
      Values<V, G> a;
      Values<V, Cell::num_split> gx;
      Values<V, Cell::num_params> params;
      Values<V, S> prev, next;
      Values<V, Cell::num_saved> saved;
      load_each(a, gates.data + r * gates.row_stride + u * gates.unit_stride, gates.group_stride,
                n);
      unroll<Cell::num_split>([&](auto i) __attribute__((always_inline)) {
        gx.v[i] = load_input(p, gx_row + (summed + i) * H + unit, n);
      });
      if constexpr (Cell::num_split > 0) {
        if (p.input_bias)
          unroll<Cell::num_split>([&](auto i) __attribute__((always_inline)) {
            gx.v[i] = V::load(p.input_bias + (summed + i) * H + unit, n) + gx.v[i];
          });
      }
      load_each(params, p.params + unit, H, n);
      unroll<S>([&](auto s) __attribute__((always_inline)) {
        if constexpr (s > 0 || Cell::h_bypass)
          prev.v[s] = V::load(step.prev[s] + row * p.states[s].stride + unit, n);
      });
      Cell::forward(CellForward<V>{a.v, gx.v, params.v, prev.v, next.v, saved.v});
      if (p.zoneout.any) {
        unroll<S>([&](auto s) __attribute__((always_inline)) {
          const Zoneout<T>& z = p.zoneout[s];
          if (!z.mask.data) return;
          if (z.raw) next.v[s].store(z.raw + n_row * H + unit, n);
          const V m = V::load(mask_row(z.mask, n_row, row) + unit, n);
          const V before = V::load(step.prev[s] + row * p.states[s].stride + unit, n);
          next.v[s] = fma(m, before, (V(T(1)) - m) * next.v[s]);
        });
      }
      unroll<S>([&](auto s) __attribute__((always_inline)) {
        T* const to = s == 0 && p.projection.hidden ? p.projection.hidden + n_row * H
                                                    : step.next[s] + row * p.states[s].stride;
        next.v[s].store(to + unit, n);
      });
      if (row < going_on && !p.projection.hidden) {
        V h = next.v[0];
        if (p.recurrent_mask.data)
          h = h * V::load(mask_row(p.recurrent_mask, after + row, row) + unit, n);
        if (p.recurrent) h.store(p.recurrent + (after + row) * H + unit, n);
        if constexpr (sizeof(T) == 4) {
          if (p.rounded)
            h.store_bfloat16(rounded_row(p.rounded, p.steps, next_step, row, H) + unit, n);
        }
      }
      if (p.saved)
        store_each<Cell::num_saved>(saved.v, p.saved + n_row * Cell::num_saved * H + unit, H, n);
    }
  }
}

// Writes row n of the recurrent product's input, at step t, from h of row r of the batch.
template <class T>
CHARRNN_INLINE void mask_recurrent(const RecurrentForwardArgs<T>& p, const T* h, Index t, Index n,
                                   Index r) {
  using V = Native<T>;
  const Index R = p.width;
  T* const to = p.recurrent ? p.recurrent + n * R : nullptr;
  const T* const mask = p.recurrent_mask.data ? mask_row(p.recurrent_mask, n, r) : nullptr;
  if (to)
    for (Index j = 0; j < R; j += V::lanes) {
      V v = V::load(h + j, R - j);
      if (mask) v = v * V::load(mask + j, R - j);
      v.store(to + j, R - j);
    }
  if (p.rounded) round_row(to ? to : h, R, rounded_row(p.rounded, p.steps, t, r, R));
}

template <class T>
void recurrent_begin(const RecurrentForwardArgs<T>& p, Range rows) {
  if (!p.recurrent && !p.rounded) return;
  const FlushSubnormals flush(p.hh.compute == Compute::bfloat16);
  for (Index t = 0; t < p.steps.seq_len; ++t) {
    const Range begin = intersect(rows, {rows_from_before(p.steps, t), rows_at(p.steps, t)});
    for (Index r = begin.begin; r < begin.end; ++r)
      mask_recurrent(p, p.states[0].initial + r * p.states[0].stride, t, first_row(p.steps, t) + r,
                     r);
  }
  // What follows an odd width is zero, at steps of either place.
  if (p.rounded && p.width % 2)
    for (Index i = 0; i < min_of(2, p.steps.seq_len); ++i)
      for (Index r = rows.begin; r < rows.end; ++r)
        rounded_row(p.rounded, p.steps, step_number(p.steps, i), r, p.width)[p.width] = 0;
}

// h of the given rows of a step, projected from the cells' h.
template <class Cell, class T>
void project(const RecurrentForwardArgs<T>& p, const StepRows<Cell, T>& step, Range rows) {
  const Index H = p.hidden_size, R = p.width, stride = p.states[0].stride;
  gemm(GemmArgs<T>{p.projection.hidden + step.first * H, H, p.projection.weights, nullptr, false, R,
                   H, step.next[0], stride},
       rows, {0, ceil_div(R, Panel<1>::unit_vectors * Native<T>::lanes)});
  if (!p.recurrent && !p.rounded) return;
  const Index after = first_row_after(p.steps, step.t), next_step = step_after(p.steps, step.t);
  const Range going_on = intersect(rows, {0, rows_going_on(p.steps, step.t)});
  for (Index r = going_on.begin; r < going_on.end; ++r)
    mask_recurrent(p, step.next[0] + r * stride, next_step, after + r, r);
}

// Copies a tile of gates [rows][vectors][G][lanes] to whole rows [G*H].
template <int G, class T>
CHARRNN_INLINE void lay_out_gates(const T* gates, const Place& at, Index H, T* rows) {
  using V = Native<T>;
  for (Index r = 0; r < at.rows; ++r)
    for (Index u = 0; u < at.vectors; ++u) {
      const Index unit = (at.vector + u) * V::lanes;
      unroll<G>([&](auto g) __attribute__((always_inline)) {
        V::load(gates + ((r * at.vectors + u) * G + g) * V::lanes)
            .store(rows + (r * G + g) * H + unit, H - unit);
      });
    }
}

// gates [rows][vectors][G][lanes] = start + gain * rows.
template <int G, class T>
CHARRNN_INLINE void scale_gates(const T* rows, const T* gain, const Start<T>& start,
                                const Place& at, Index H, T* gates) {
  using V = Native<T>;
  for (Index r = 0; r < at.rows; ++r)
    for (Index u = 0; u < at.vectors; ++u) {
      const Index unit = (at.vector + u) * V::lanes, n = H - unit;
      unroll<G>([&](auto g) __attribute__((always_inline)) {
        const T* const begin =
            start.data + r * start.row_stride + g * start.group_stride + u * start.unit_stride;
        fma(V::load(gain + g * H + unit, n), V::load(rows + (r * G + g) * H + unit, n),
            V::load(begin, n))
            .store(gates + ((r * at.vectors + u) * G + g) * V::lanes);
      });
    }
}

// The recurrent product's operand: row r of the batch at a + r * stride.
template <class T>
struct RecurrentOperand {
  const T* a;
  Index stride;
};

// Not inlined: a copy for each group of rows takes long to compile and is no faster.
template <class Cell, class T>
__attribute__((noinline)) void step_forward_rows(const RecurrentForwardArgs<T>& p,
                                                 const StepRows<Cell, T>& step,
                                                 const RecurrentOperand<T>& operand, Range rows,
                                                 Range panels) {
  using V = Native<T>;
  constexpr int G = Cell::num_gates, summed = G - Cell::num_split;
  using Set = Tiles<RowMajor, T, G>;
  const Index H = p.hidden_size, R = p.width;
  T* const staged = p.staged ? p.staged + (p.staged_in_place ? 0 : step.first * G * H) : nullptr;
  alignas(64) T buffer[tile_accumulators * V::lanes];
  const NextWeights<Set, T> next_weights(p.hh, rows, panels);
  const auto next_panel = [&](const Place& at) __attribute__((always_inline)) {
    const Index next = at.panel + ceil_div(at.vectors, Set::Panels::unit_vectors);
    return next < panels.end ? next : panels.begin;
  };
  const auto run_tile = [&](const Place& at, const Start<T>& start) __attribute__((always_inline)) {
    tiles<RowMajor, T, G>.run(
        at.rows, at.vectors * G,
        TileArgs<T>{operand.a + at.row * operand.stride, operand.stride, R,
                    from_panel(p.hh, at.panel), start, buffer, at.vectors * G * V::lanes,
                    next_weights(at, R, next_panel(at), 0)});
  };
  const auto in_buffer = [&](const Place& at) __attribute__((always_inline)) {
    return Start<T>{buffer, at.vectors * G * V::lanes, V::lanes, G * V::lanes};
  };
  for_tiles<Set, T>(rows, panels, H, [&](const Place& at) {
    const Start<T> start =
        p.norm.gain ? zero_start<T>() : begin_gates<Cell>(p, step.first, at, buffer);
    prefetch_forward<Cell>(p, step, at, rows.end);
    run_tile(at, start);
    if (staged)
      lay_out_gates<G>(buffer, at, H, staged + at.row * G * H);
    else
      run_cells_forward<Cell>(p, step, at, in_buffer(at));
  });
  if (p.norm.gain)
    for (Index r = rows.begin; r < rows.end; ++r) {
      T *const gates = staged + r * G * H, inverse[2] = {};
      normalize(gates, summed * H, inverse);
      normalize(gates + summed * H, (G - summed) * H, inverse + 1);
      if (p.norm.inverse)
        __builtin_memcpy(p.norm.inverse + (step.first + r) * 2, inverse, sizeof inverse);
    }
  if (staged)
    for_tiles<Set, T>(rows, panels, H, [&](const Place& at) {
      const T* const gates = staged + at.row * G * H;
      if (p.norm.gain) {
        const Start<T> start = begin_gates<Cell>(p, step.first, at, buffer);
        scale_gates<G>(gates, p.norm.gain, start, at, H, buffer);
        run_cells_forward<Cell>(p, step, at, in_buffer(at));
      } else {
        run_cells_forward<Cell>(p, step, at,
                                Start<T>{gates + at.vector * V::lanes, G * H, H, V::lanes});
      }
    });
  if (p.projection.hidden) project<Cell>(p, step, rows);
}

// With int8 weights, h becomes integers first.
template <class Cell, class T>
__attribute__((noinline)) void step_forward_int8(const RecurrentForwardArgs<T>& p,
                                                 const StepRows<Cell, T>& step,
                                                 const RecurrentOperand<T>& h, Range rows,
                                                 Range panels) {
  const Index R = p.width, stride = int8_row_words(R);
  Int8Rows<T> integers;
  for_parts(rows, Int8Rows<T>::most_rows(R), [&](Index first, Index n) {
    integers.encode(h.a + first * h.stride, h.stride, n, R);
    step_forward_rows<Cell>(p, step, {integers.words - first * stride, stride}, {first, first + n},
                            panels);
  });
}

template <class Cell, class T>
void step_forward(const RecurrentForwardArgs<T>& p, Index t, bool begins, Range rows,
                  Range panels) {
  if (empty(rows)) return;
  const Index R = p.width;
  const StepRows<Cell, T> step = step_rows<Cell>(p.steps, p.states, t, begins);
  RecurrentOperand<T> h{step.prev[0], p.states[0].stride};
  if (p.recurrent) h = {p.recurrent + step.first * R, R};
  if (p.rounded)
    h = {reinterpret_cast<const T*>(rounded_row(p.rounded, p.steps, t, 0, R)), even(R) / 2};
  if constexpr (sizeof(T) == 4) {
    if (p.hh.storage == Storage::int8) return step_forward_int8<Cell>(p, step, h, rows, panels);
  }
  step_forward_rows<Cell>(p, step, h, rows, panels);
}

template <class Cell, class T>
void recurrent_forward(const RecurrentForwardArgs<T>& p, Range walk, Range rows, Range panels) {
  static_assert(Cell::num_gates <= max_gates);
  const FlushSubnormals flush(p.hh.compute == Compute::bfloat16);
  for (Index i = walk.begin; i < walk.end; ++i) {
    const Index t = step_number(p.steps, i);
    const Index from_before = rows_from_before(p.steps, t), all = rows_at(p.steps, t);
    step_forward<Cell>(p, t, false, intersect(rows, {0, from_before}), panels);
    step_forward<Cell>(p, t, true, intersect(rows, {from_before, all}), panels);
  }
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

template <class Cell, class T>
struct BackwardRows : StepRows<Cell, T> {
  bool goes_on;
};

// Prefetches what the tile's cells will read and store, while the tile is computed.
template <class Cell, class T>
CHARRNN_INLINE void prefetch_backward(const RecurrentBackwardArgs<T>& p,
                                      const BackwardRows<Cell, T>& step, const Place& at,
                                      Index last_row) {
  constexpr int lanes = Native<T>::lanes;
  const Index slots = num_slots<Cell>(p);
  const Index H = p.hidden_size, unit = at.vector * lanes, n = at.vectors * lanes;
  for (Index row = at.row; row < at.row + at.rows; ++row) {
    const Index n_row = step.first + row;
    for (int i = 0; i < Cell::num_saved; ++i)
      prefetch<false>(p.saved + (n_row * Cell::num_saved + i) * H + unit, n);
    for (int i = 0; i < slots; ++i) prefetch<true>(p.dgates + (n_row * slots + i) * H + unit, n);
    for (int s = 0; s < Cell::num_states; ++s)
      prefetch<false>(step.prev[s] + row * p.states[s].stride + unit, n);
    if (p.dy && row + at.rows < last_row)
      prefetch<false>(p.dy + (n_row + at.rows) * p.dy_stride + unit, n);
  }
}

// The gradient of h except through the next step's gates, for one vector.
template <class Cell, class T>
CHARRNN_INLINE Native<T> dh_start(const RecurrentBackwardArgs<T>& p,
                                  const BackwardRows<Cell, T>& step, Index row, Index unit) {
  using V = Native<T>;
  const Index n = p.width - unit;
  V start = V(T(0));
  if (p.dy) start = V::load(p.dy + (step.first + row) * p.dy_stride + unit, n);
  if (bypasses<Cell>(p) || !step.goes_on)
    start = start + V::load(p.dstates[0] + row * p.width + unit, n);
  return start;
}

template <class Cell, class T>
void run_cells_backward(const RecurrentBackwardArgs<T>& p, const BackwardRows<Cell, T>& step,
                        const Place& place, const T* dh) {
  using V = Native<T>;
  constexpr int G = Cell::num_gates, S = Cell::num_states, split = Cell::num_split;
  const Index H = p.hidden_size, slots = num_slots<Cell>(p);
  const Index input_slot = p.norm.gain ? 2 * G - split : G;
  for (Index r = 0; r < place.rows; ++r) {
    const Index row = place.row + r, n_row = step.first + row;
    for (Index u = 0; u < place.vectors; ++u) {
      const Index unit = (place.vector + u) * V::lanes, n = H - unit;
      Values<V, G> dgates;
      Values<V, split> dgx;
      Values<V, Cell::num_params> params, dparams;
      Values<V, S> prev, next, dnext, dprev;
      Values<V, Cell::num_saved> saved;
      load_each(saved, p.saved + n_row * Cell::num_saved * H + unit, H, n);
      load_each(params, p.params + unit, H, n);
      unroll<S>([&](auto s) __attribute__((always_inline)) {
        const Index stride = p.states[s].stride;
        if constexpr (s > 0 || Cell::h_bypass)
          prev.v[s] = V::load(step.prev[s] + row * stride + unit, n);
        if constexpr (Cell::reads_next >> s & 1) {
          const T* raw = step.next[s] + row * stride;
          if (s == 0 && p.projection.hidden) raw = p.projection.hidden + n_row * H;
          if (p.zoneout.any && p.zoneout[s].raw) raw = p.zoneout[s].raw + n_row * H;
          next.v[s] = V::load(raw + unit, n);
        }
        dnext.v[s] = s == 0 ? V::load(dh + (r * place.vectors + u) * V::lanes)
                            : V::load(p.dstates[s] + row * H + unit, n);
      });
      Values<V, S> past{};  // what zoneout passes on
      if (p.zoneout.any) {
        unroll<S>([&](auto s) __attribute__((always_inline)) {
          if (!p.zoneout[s].mask.data) return;
          const V m = V::load(mask_row(p.zoneout[s].mask, n_row, row) + unit, n);
          past.v[s] = m * dnext.v[s];
          dnext.v[s] = (V(T(1)) - m) * dnext.v[s];
        });
      }
      Cell::backward(CellBackward<V>{saved.v, params.v, prev.v, next.v, dnext.v, dgates.v, dgx.v,
                                     dparams.v, dprev.v});
      T* out = p.dgates + n_row * slots * H + unit;
      store_each<G>(dgates.v, out, H, n);
      if constexpr (sizeof(T) == 4) {
        if (p.rounded && !p.norm.gain) {
          Bfloat16* const to = rounded_row(p.rounded, p.steps, step.t, row, G * H) + unit;
          unroll<G>([&](auto g) __attribute__((always_inline)) {
            dgates.v[g].store_bfloat16(to + g * H, n);
          });
        }
      }
      store_each<split>(dgx.v, out + input_slot * H, H, n);
      store_each<Cell::num_params>(dparams.v, out + (slots - Cell::num_params) * H, H, n);
      unroll<S>([&](auto s) __attribute__((always_inline)) {
        constexpr bool given = s > 0 || Cell::h_bypass;
        if (p.zoneout.any && p.zoneout[s].mask.data)
          (given ? dprev.v[s] + past.v[s] : past.v[s]).store(p.dstates[s] + row * H + unit, n);
        else if constexpr (given)
          dprev.v[s].store(p.dstates[s] + row * H + unit, n);
      });
    }
  }
}

// out [rows][vectors][lanes] = start + m * (dgates(t) @ W_hh) for the tile's units. t is the step
// whose recurrent product took this h; m is its mask. The depth may come in parts, one call each.
template <class Cell, class T, class F>
CHARRNN_INLINE void add_recurrent(const RecurrentBackwardArgs<T>& p, Index t, const Place& at,
                                  const F& start, T* out, Range part, const Ahead& ahead = {}) {
  using V = Native<T>;
  constexpr Index G = Cell::num_gates;
  const Index first = first_row(p.steps, t), depth = G * p.hidden_size;
  const Index stride = at.vectors * V::lanes;
  const bool masked = p.recurrent_mask.data;
  const auto each = [&](auto&& f) __attribute__((always_inline)) {
    for (Index r = 0; r < at.rows; ++r)
      for (Index u = 0; u < at.vectors; ++u)
        f(out + r * stride + u * V::lanes, at.row + r, (at.vector + u) * V::lanes);
  };
  Start<T> begin{out, stride, 0, V::lanes};
  if (part.begin == 0) begin = masked ? zero_start<T>() : start(at, out);
  Index dgates_stride = num_slots<Cell>(p) * p.hidden_size, offset = part.begin;
  const T* dgates = p.dgates + (first + at.row) * dgates_stride;
  if (p.rounded) {
    dgates = reinterpret_cast<const T*>(rounded_row(p.rounded, p.steps, t, at.row, depth));
    dgates_stride = even(depth) / 2;
    offset /= 2;
  }
  Weights<T> weights = from_panel(p.hh, at.panel);
  weights.data += offset * weights.depth_stride;
  tiles<RowMajor, T, 1>.run(at.rows, at.vectors,
                            TileArgs<T>{dgates + offset, dgates_stride, part.end - part.begin,
                                        weights, begin, out, stride, ahead});
  if (masked && part.end == depth)
    each([&](T* dh, Index row, Index unit) __attribute__((always_inline)) {
      const V m = V::load(mask_row(p.recurrent_mask, first + row, row) + unit, p.width - unit);
      fma(m, V::load(dh), start(row, unit)).store(dh);
    });
}

// Initial values of dh's sums, for one vector or a tile: in dy itself, or written to dh.
template <class Cell, class T>
struct DhStart {
  const RecurrentBackwardArgs<T>& p;
  const BackwardRows<Cell, T>& step;

  CHARRNN_INLINE Native<T> operator()(Index row, Index unit) const {
    return dh_start<Cell>(p, step, row, unit);
  }
  CHARRNN_INLINE Start<T> operator()(const Place& at, T* dh) const {
    using V = Native<T>;
    const Index stride = at.vectors * V::lanes;
    if (p.dy && !bypasses<Cell>(p) && step.goes_on && p.width % V::lanes == 0)
      return {p.dy + (step.first + at.row) * p.dy_stride + at.vector * V::lanes, p.dy_stride, 0,
              V::lanes};
    write(at, dh);
    return {dh, stride, 0, V::lanes};
  }
  CHARRNN_INLINE void write(const Place& at, T* dh) const {
    using V = Native<T>;
    for (Index r = 0; r < at.rows; ++r)
      for (Index u = 0; u < at.vectors; ++u)
        (*this)(at.row + r, (at.vector + u) * V::lanes).store(dh + (r * at.vectors + u) * V::lanes);
  }
};

// Turns the gradients of the normalized gates into those of W_hh h; copies the former to the slots
// behind.
template <class Cell, class T>
void normalize_gates_backward(const RecurrentBackwardArgs<T>& p, Index n) {
  constexpr Index G = Cell::num_gates, split = Cell::num_split, summed = G - split;
  const Index H = p.hidden_size;
  T* const d = p.dgates + n * num_slots<Cell>(p) * H;
  const T *const hat = p.normalized + n * G * H, *const inverse = p.norm.inverse + n * 2;
  copy_row(d, summed * H, d + G * H);
  copy_row(d + summed * H, split * H, d + 2 * G * H);
  normalize_backward(d, p.norm.gain, hat, inverse[0], summed * H);
  normalize_backward(d + summed * H, p.norm.gain + summed * H, hat + summed * H, inverse[1],
                     split * H);
}

template <class Cell, class T>
__attribute__((noinline)) void step_backward(const RecurrentBackwardArgs<T>& p, Index t,
                                             bool begins, bool goes_on, Range rows, Range panels) {
  using V = Native<T>;
  using Set = Tiles<RowMajor, T, 1>;
  if (empty(rows)) return;
  const Index H = p.hidden_size, R = p.width;
  const BackwardRows<Cell, T> step{step_rows<Cell>(p.steps, p.states, t, begins), goes_on};
  constexpr Index G = Cell::num_gates;
  // What follows an odd width is zero.
  if (p.rounded && G * H % 2 && panels.begin == 0)
    for (Index r = rows.begin; r < rows.end; ++r)
      rounded_row(p.rounded, p.steps, t, r, G * H)[G * H] = 0;
  const DhStart<Cell, T> start{p, step};
  const Range depth{0, G * H};
  alignas(64) T dh[ProductBlocks<T>::elements];
  if (p.projection.hidden) {
    T* const projected = p.dprojected + step.first * R;
    for_tiles<Set, T>(rows, {0, ceil_div(R, Set::Panels::unit_vectors * V::lanes)}, R,
                      [&](const Place& at) {
                        if (goes_on)
                          add_recurrent<Cell>(p, step_after(p.steps, t), at, start, dh, depth);
                        else
                          start.write(at, dh);
                        for (Index r = 0; r < at.rows; ++r)
                          for (Index u = 0; u < at.vectors; ++u) {
                            const Index unit = (at.vector + u) * V::lanes;
                            V::load(dh + (r * at.vectors + u) * V::lanes)
                                .store(projected + (at.row + r) * R + unit, R - unit);
                          }
                      });
    const T* a = projected;
    Index a_stride = R;
    if (p.rounded) {
      a = reinterpret_cast<const T*>(p.rounded_projected);
      a_stride = even(R) / 2;
      for (Index r = rows.begin; r < rows.end; ++r)
        round_row(projected + r * R, R, p.rounded_projected + r * even(R));
    }
    for_tiles<Set, T>(rows, panels, H, [&](const Place& at) {
      tiles<RowMajor, T, 1>.run(at.rows, at.vectors,
                                TileArgs<T>{a + at.row * a_stride, a_stride, R,
                                            from_panel(p.projection.weights, at.panel),
                                            zero_start<T>(), dh, at.vectors * V::lanes});
      run_cells_backward<Cell>(p, step, at, dh);
    });
  } else {
    const Index after = step_after(p.steps, t);
    ProductBlocks<T>::template for_tiles<Set>(
        p.hh, rows, panels, H, depth.end, dh,
        [&](const Place& at, Range part, T* sums, const Ahead& ahead)
            __attribute__((always_inline)) {
              const bool last = part.end == depth.end;
              if (last) prefetch_backward<Cell>(p, step, at, rows.end);
              if (goes_on)
                add_recurrent<Cell>(p, after, at, start, sums, part, ahead);
              else if (last)
                start.write(at, sums);
              if (last) run_cells_backward<Cell>(p, step, at, sums);
            });
  }
  if (p.norm.gain)
    for (Index r = rows.begin; r < rows.end; ++r) {
      normalize_gates_backward<Cell>(p, step.first + r);
      if (p.rounded)
        round_row(p.dgates + (step.first + r) * num_slots<Cell>(p) * H, G * H,
                  rounded_row(p.rounded, p.steps, t, r, G * H));
    }
}

template <class Cell, class T>
void recurrent_backward(const RecurrentBackwardArgs<T>& p, Range walk, Range rows, Range panels) {
  const FlushSubnormals flush(p.hh.compute == Compute::bfloat16);
  for (Index i = walk.end - 1; i >= walk.begin; --i) {
    const Index t = step_number(p.steps, i), all = rows_at(p.steps, t);
    const Index from_before = rows_from_before(p.steps, t), going_on = rows_going_on(p.steps, t);
    // One of the two is all rows or none: at most two groups.
    const Index cut = min_of(from_before, going_on), second = max_of(from_before, going_on);
    const auto run = [&](Index begin, Index end) __attribute__((always_inline)) {
      step_backward<Cell>(p, t, begin >= from_before, begin < going_on,
                          intersect(rows, {begin, end}), panels);
    };
    run(0, cut);
    run(cut, second);
    run(second, all);
  }
}

template <class Cell, class T>
void recurrent_backward_initial(const RecurrentBackwardArgs<T>& p, Range rows, Range panels) {
  const FlushSubnormals flush(p.hh.compute == Compute::bfloat16);
  using V = Native<T>;
  using Set = Tiles<RowMajor, T, 1>;
  alignas(64) T dh[tile_accumulators * V::lanes];
  struct Bypass {
    const RecurrentBackwardArgs<T>& p;
    CHARRNN_INLINE V operator()(Index row, Index unit) const {
      return bypasses<Cell>(p) ? V::load(p.dstates[0] + row * p.width + unit, p.width - unit)
                               : V(T(0));
    }
    CHARRNN_INLINE Start<T> operator()(const Place& at, T* to) const {
      for (Index r = 0; r < at.rows; ++r)
        for (Index u = 0; u < at.vectors; ++u)
          (*this)(at.row + r, (at.vector + u) * V::lanes)
              .store(to + (r * at.vectors + u) * V::lanes);
      return {to, at.vectors * V::lanes, 0, V::lanes};
    }
  };
  for (Index t = 0; t < p.steps.seq_len; ++t) {
    const Range begin = intersect(rows, {rows_from_before(p.steps, t), rows_at(p.steps, t)});
    if (empty(begin)) continue;
    for_tiles<Set, T>(begin, panels, p.width, [&](const Place& at) {
      add_recurrent<Cell>(p, t, at, Bypass{p}, dh, {0, Cell::num_gates * p.hidden_size});
      for (Index r = 0; r < at.rows; ++r)
        for (Index u = 0; u < at.vectors; ++u) {
          const Index unit = (at.vector + u) * V::lanes;
          V::load(dh + (r * at.vectors + u) * V::lanes)
              .store(p.dstates[0] + (at.row + r) * p.width + unit, p.width - unit);
        }
    });
  }
}
