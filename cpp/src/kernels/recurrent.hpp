// One recurrent layer over time, for any cell of cells.hpp: forward and, under it, backward.
//
// A tile's life in one step: a prologue writes where the sums begin (input part of the gates;
// gradient from above), the tile adds the recurrent product, an epilogue runs the cell. With the
// fused epilogue tile and cell meet in a buffer of one tile's size, in the first-level cache;
// with the staged one a whole row of gates is laid out in `scratch` first, so that an epilogue
// may look at the whole row. Both run the same code on the same numbers.

template <class Cell>
constexpr int num_slots = Cell::num_gates + Cell::num_split + Cell::num_params;

// Room for zero values of what a cell does not have.
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

template <class Cell, class T>
CHARRNN_INLINE const T* input_row(const RecurrentForwardArgs<T>& p, Index step_row) {
  const Index width = Cell::num_gates * p.hidden_size;
  return p.gx ? p.gx + step_row * width : p.table + p.tokens[step_row] * width;
}

// What the tile's cells will store, and what the next tile of the same panel begins with, on its
// way while the tile is computed.
template <class Cell, class T>
CHARRNN_INLINE void prefetch_forward(const RecurrentForwardArgs<T>& p, Index t, const Place& at,
                                     Index last_row) {
  constexpr int lanes = Native<T>::lanes;
  const Index H = p.hidden_size, unit = at.vector * lanes, n = at.vectors * lanes;
  for (Index row = at.row; row < at.row + at.rows; ++row) {
    const Index step_row = t * p.batch + row;
    if (p.saved)
      for (int i = 0; i < Cell::num_saved; ++i)
        prefetch<true>(p.saved + (step_row * Cell::num_saved + i) * H + unit, n);
    for (int s = 0; s < Cell::num_states; ++s)
      prefetch<true>(p.states[s] + (t + 1) * p.state_step[s] + row * H + unit, n);
    if (row + at.rows < last_row)
      for (int g = 0; g < Cell::num_gates; ++g)
        prefetch<false>(input_row<Cell>(p, step_row + at.rows) + g * H + unit, n);
  }
}

// Where the chains of the sums begin: in gx itself, or, put together in gates
// [rows][vectors][G][lanes], at the sum of a token's weights and the biases.
template <class Cell, class T>
CHARRNN_INLINE Start<T> begin_gates(const RecurrentForwardArgs<T>& p, Index t, const Place& at,
                                    T* gates, Index stride) {
  using V = Native<T>;
  constexpr int G = Cell::num_gates, summed = G - Cell::num_split;
  const Index H = p.hidden_size;
  if (Cell::num_split == 0 && p.gx && H % V::lanes == 0)
    return {input_row<Cell>(p, t * p.batch + at.row) + at.vector * V::lanes, G * H, H, V::lanes};
  for (Index r = 0; r < at.rows; ++r) {
    const T* gx = input_row<Cell>(p, t * p.batch + at.row + r);
    T* out = gates + r * stride;
    for (Index u = 0; u < at.vectors; ++u, out += G * V::lanes) {
      const Index unit = (at.vector + u) * V::lanes, n = H - unit;
      unroll<G>([&](auto g) __attribute__((always_inline)) {
        V start = V(T(0));
        if constexpr (g < summed) {
          start = V::load(gx + g * H + unit, n);
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

template <class Cell, class T>
void run_cells_forward(const RecurrentForwardArgs<T>& p, Index t, const Place& at, const T* gates,
                       Index stride) {
  using V = Native<T>;
  constexpr int G = Cell::num_gates, S = Cell::num_states, summed = G - Cell::num_split;
  const Index H = p.hidden_size;
  for (Index r = 0; r < at.rows; ++r) {
    const Index row = at.row + r, step_row = t * p.batch + row;
    const T* const gx_row = input_row<Cell>(p, step_row);
    for (Index u = 0; u < at.vectors; ++u) {
      const Index unit = (at.vector + u) * V::lanes, n = H - unit;
      Values<V, G> a;
      Values<V, Cell::num_split> gx;
      Values<V, Cell::num_params> params;
      Values<V, Cell::num_masks> masks;
      Values<V, S> prev, next;
      Values<V, Cell::num_saved> saved;
      load_each(a, gates + r * stride + u * G * V::lanes, V::lanes, V::lanes);
      load_each(gx, gx_row + summed * H + unit, H, n);
      if constexpr (Cell::num_split > 0) {
        if (p.input_bias)
          unroll<Cell::num_split>([&](auto i) __attribute__((always_inline)) {
            gx.v[i] = V::load(p.input_bias + (summed + i) * H + unit, n) + gx.v[i];
          });
      }
      load_each(params, p.params + unit, H, n);
      unroll<S>([&](auto s) __attribute__((always_inline)) {
        prev.v[s] = V::load(p.states[s] + t * p.state_step[s] + row * H + unit, n);
      });
      Cell::forward(CellForward<V>{a.v, gx.v, params.v, masks.v, prev.v, next.v, saved.v});
      unroll<S>([&](auto s) __attribute__((always_inline)) {
        next.v[s].store(p.states[s] + (t + 1) * p.state_step[s] + row * H + unit, n);
      });
      if (p.saved)
        store_each<Cell::num_saved>(saved.v, p.saved + step_row * Cell::num_saved * H + unit, H, n);
    }
  }
}

// Where a staged epilogue finds all units of the given rows and panels.
template <int G, class T>
CHARRNN_INLINE Place whole_place(Range rows, Range panels, Index units) {
  const Index first = panels.begin * Panel<G>::unit_vectors;
  const Index end = min_of(panels.end * Panel<G>::unit_vectors, ceil_div(units, Native<T>::lanes));
  return {rows.begin, rows.end - rows.begin, panels.begin, first, end - first};
}

template <class Cell, class T>
void recurrent_forward(const RecurrentForwardArgs<T>& p, Range steps, Range rows, Range panels) {
  using V = Native<T>;
  constexpr int G = Cell::num_gates;
  static_assert(G <= max_gates);
  static_assert(Cell::num_masks == 0, "the kernels do not carry masks yet");
  using Set = Tiles<RowMajor, T, G>;
  const Index H = p.hidden_size;
  const Place whole = whole_place<G, T>(rows, panels, H);
  const Index whole_stride = whole.vectors * G * V::lanes;
  alignas(64) T buffer[tile_accumulators * V::lanes];
  for (Index t = steps.begin; t < steps.end; ++t) {
    for_tiles<Set, T>(rows, panels, H, [&](const Place& at) {
      T* gates = buffer;
      Index stride = at.vectors * G * V::lanes;
      if (p.scratch) {
        stride = whole_stride;
        gates =
            p.scratch + (at.row - whole.row) * stride + (at.vector - whole.vector) * G * V::lanes;
      }
      const Start<T> start = begin_gates<Cell>(p, t, at, gates, stride);
      prefetch_forward<Cell>(p, t, at, rows.end);
      const T* h = p.states[0] + t * p.state_step[0] + at.row * H;
      tiles<RowMajor, T, G>.run(
          at.rows, at.vectors * G,
          TileArgs<T>{h, H, H, from_panel(p.hh, at.panel), start, gates, stride});
      if (!p.scratch) run_cells_forward<Cell>(p, t, at, gates, stride);
    });
    if (p.scratch) run_cells_forward<Cell>(p, t, whole, p.scratch, whole_stride);
  }
}

// ---- backward -----------------------------------------------------------------------------

// What the tile's cells will read and store, on its way while the tile is computed.
template <class Cell, class T>
CHARRNN_INLINE void prefetch_backward(const RecurrentBackwardArgs<T>& p, Index t, const Place& at,
                                      Index last_row) {
  constexpr int lanes = Native<T>::lanes, slots = num_slots<Cell>;
  const Index H = p.hidden_size, unit = at.vector * lanes, n = at.vectors * lanes;
  for (Index row = at.row; row < at.row + at.rows; ++row) {
    const Index step_row = t * p.batch + row;
    for (int i = 0; i < Cell::num_saved; ++i)
      prefetch<false>(p.saved + (step_row * Cell::num_saved + i) * H + unit, n);
    for (int i = 0; i < slots; ++i) prefetch<true>(p.dgates + (step_row * slots + i) * H + unit, n);
    for (int s = 0; s < Cell::num_states; ++s)
      prefetch<false>(p.states[s] + step_row * H + unit, n);
    if (p.dy && row + at.rows < last_row)
      prefetch<false>(p.dy + (step_row + at.rows) * H + unit, n);
  }
}

// The gradient of h(t + 1) before the recurrent part is added: dy itself, or put together in dh
// [rows][vectors][lanes].
template <class Cell, class T>
CHARRNN_INLINE Start<T> begin_dh(const RecurrentBackwardArgs<T>& p, Index t, const Place& at, T* dh,
                                 Index stride) {
  using V = Native<T>;
  const Index H = p.hidden_size;
  const bool carried = Cell::h_bypass || t == p.seq_len - 1;
  if (p.dy && !carried && H % V::lanes == 0)
    return {p.dy + (t * p.batch + at.row) * H + at.vector * V::lanes, H, 0, V::lanes};
  for (Index r = 0; r < at.rows; ++r)
    for (Index u = 0; u < at.vectors; ++u) {
      const Index unit = (at.vector + u) * V::lanes, n = H - unit, row = at.row + r;
      V start = V(T(0));
      if (p.dy) start = V::load(p.dy + (t * p.batch + row) * H + unit, n);
      if (carried) start = start + V::load(p.dstates[0] + row * H + unit, n);
      start.store(dh + r * stride + u * V::lanes);
    }
  return {dh, stride, 0, V::lanes};
}

template <class Cell, class T>
void run_cells_backward(const RecurrentBackwardArgs<T>& p, Index t, const Place& place, const T* dh,
                        Index stride) {
  using V = Native<T>;
  constexpr int G = Cell::num_gates, S = Cell::num_states;
  const Index H = p.hidden_size, BH = p.batch * H;
  for (Index r = 0; r < place.rows; ++r) {
    const Index row = place.row + r, step_row = t * p.batch + row;
    for (Index u = 0; u < place.vectors; ++u) {
      const Index unit = (place.vector + u) * V::lanes, n = H - unit, at = row * H + unit;
      Values<V, G> dgates;
      Values<V, Cell::num_split> dgx;
      Values<V, Cell::num_params> params, dparams;
      Values<V, Cell::num_masks> masks;
      Values<V, S> prev, next, dnext, dprev;
      Values<V, Cell::num_saved> saved;
      load_each(saved, p.saved + step_row * Cell::num_saved * H + unit, H, n);
      load_each(params, p.params + unit, H, n);
      unroll<S>([&](auto s) __attribute__((always_inline)) {
        prev.v[s] = V::load(p.states[s] + t * BH + at, n);
        next.v[s] = V::load(p.states[s] + (t + 1) * BH + at, n);
        dnext.v[s] =
            s == 0 ? V::load(dh + r * stride + u * V::lanes) : V::load(p.dstates[s] + at, n);
      });
      Cell::backward(CellBackward<V>{saved.v, params.v, masks.v, prev.v, next.v, dnext.v, dgates.v,
                                     dgx.v, dparams.v, dprev.v});
      T* out = p.dgates + step_row * num_slots<Cell> * H + unit;
      store_each<G>(dgates.v, out, H, n);
      store_each<Cell::num_split>(dgx.v, out + G * H, H, n);
      store_each<Cell::num_params>(dparams.v, out + (G + Cell::num_split) * H, H, n);
      unroll<S>([&](auto s) __attribute__((always_inline)) {
        if constexpr (s > 0 || Cell::h_bypass) dprev.v[s].store(p.dstates[s] + at, n);
      });
    }
  }
}

// dh(t) = start + dgates(t) @ W_hh, for the tile's units.
template <class Cell, class T>
CHARRNN_INLINE void add_recurrent(const RecurrentBackwardArgs<T>& p, Index t, const Place& at,
                                  const Start<T>& start, T* dh, Index stride) {
  const Index depth = Cell::num_gates * p.hidden_size, slots = num_slots<Cell> * p.hidden_size;
  const T* const dgates = p.dgates + (t * p.batch + at.row) * slots;
  tiles<RowMajor, T, 1>.run(
      at.rows, at.vectors,
      TileArgs<T>{dgates, slots, depth, from_panel(p.hh, at.panel), start, dh, stride});
}

template <class Cell, class T>
void recurrent_backward(const RecurrentBackwardArgs<T>& p, Range steps, Range rows, Range panels) {
  using V = Native<T>;
  using Set = Tiles<RowMajor, T, 1>;
  const Index H = p.hidden_size;
  const Place whole = whole_place<1, T>(rows, panels, H);
  const Index whole_stride = whole.vectors * V::lanes;
  alignas(64) T buffer[tile_accumulators * V::lanes];
  for (Index t = steps.end - 1; t >= steps.begin; --t) {
    for_tiles<Set, T>(rows, panels, H, [&](const Place& at) {
      T* dh = buffer;
      Index stride = at.vectors * V::lanes;
      if (p.scratch) {
        stride = whole_stride;
        dh = p.scratch + (at.row - whole.row) * stride + (at.vector - whole.vector) * V::lanes;
      }
      const Start<T> start = begin_dh<Cell>(p, t, at, dh, stride);
      prefetch_backward<Cell>(p, t, at, rows.end);
      if (t + 1 < p.seq_len) add_recurrent<Cell>(p, t + 1, at, start, dh, stride);
      if (!p.scratch) run_cells_backward<Cell>(p, t, at, dh, stride);
    });
    if (p.scratch) run_cells_backward<Cell>(p, t, whole, p.scratch, whole_stride);
  }
}

template <class Cell, class T>
void recurrent_backward_initial(const RecurrentBackwardArgs<T>& p, Range rows, Range panels) {
  using V = Native<T>;
  using Set = Tiles<RowMajor, T, 1>;
  const Index H = p.hidden_size;
  alignas(64) T buffer[tile_accumulators * V::lanes];
  for_tiles<Set, T>(rows, panels, H, [&](const Place& at) {
    const Index stride = at.vectors * V::lanes;
    const auto each = [&](auto&& f) __attribute__((always_inline)) {
      for (Index r = 0; r < at.rows; ++r)
        for (Index u = 0; u < at.vectors; ++u) {
          const Index unit = (at.vector + u) * V::lanes;
          f(buffer + r * stride + u * V::lanes, p.dstates[0] + (at.row + r) * H + unit, H - unit);
        }
    };
    each([](T* dh, const T* bypass, Index n) __attribute__((always_inline)) {
      (Cell::h_bypass ? V::load(bypass, n) : V(T(0))).store(dh);
    });
    add_recurrent<Cell>(p, 0, at, {buffer, stride, 0, V::lanes}, buffer, stride);
    each([](const T* dh, T* out, Index n)
             __attribute__((always_inline)) { V::load(dh).store(out, n); });
  });
}

template <class Cell, class T>
constexpr CellKernels<T> cell_kernels() {
  return {Cell::name,
          Cell::params_name,
          Cell::num_gates,
          Cell::num_split,
          Cell::num_states,
          Cell::num_saved,
          Cell::num_params,
          Cell::num_masks,
          Panel<Cell::num_gates>::unit_vectors * Native<T>::lanes,
          &recurrent_forward<Cell, T>,
          &recurrent_backward<Cell, T>,
          &recurrent_backward_initial<Cell, T>};
}
