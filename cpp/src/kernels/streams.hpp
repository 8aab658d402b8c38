// One stream of one recurrent layer, a step or a few steps at a time, for Stream: forward without
// masks, normalization, projection or zoneout. The sums are those of recurrent.hpp, in the same
// order, so the results are too. What is left out is what a step of one row spends most on: tables
// of tiles, buffers between tile and cell, and prefetches.
//
// All rows are padded to whole vectors, so every load and store is of a whole vector. Lanes past
// the last unit hold numbers that nothing reads.

// acc[w] = the chain [from, to) of the depth, for vectors of weights that begin at b.
template <int P, int W, class V, class T>
CHARRNN_INLINE void add_stream_chain(const T* h, Index from, Index to, const T* b,
                                     const Weights<T>& hh, V (&acc)[W]) {
  const Index depth_stride = hh.depth_stride, panel_stride = hh.panel_stride;
  unroll<W>([&](auto w) __attribute__((always_inline)) { acc[w] = V(T(0)); });
  b += from * depth_stride;
  const auto add = [&](Index k) __attribute__((always_inline)) {
    const V a = V(h[k]);
    unroll<W>([&](auto w) __attribute__((always_inline)) {
      acc[w] = fma(a, V::load(b + (w / P) * panel_stride + (w % P) * V::lanes), acc[w]);
    });
    b += depth_stride;
  };
  constexpr Index at_once = 4;  // fewer branches: the last of a loop may be predicted wrongly
  Index k = from;
  for (; k + at_once <= to; k += at_once)
    unroll<at_once>([&](auto i) __attribute__((always_inline)) { add(k + i); });
  for (; k < to; ++k) add(k);
}

// The input of one step: gx [G*H], or null and x [I].
template <class T>
struct StreamInput {
  const T *gx, *x;
};
template <class T>
CHARRNN_INLINE StreamInput<T> stream_input(const StreamArgs<T>& p, Index t) {
  if (p.gx) return {p.gx + t * p.num_gates * p.hidden_size, nullptr};
  return {nullptr, p.x + t * p.input_size};
}

// The input term of one vector of gates at `gate`, with its bias.
template <class T>
CHARRNN_INLINE Native<T> input_term(const StreamArgs<T>& p, const StreamInput<T>& in, Index gate) {
  using V = Native<T>;
  if (in.gx) return V::load(in.gx + gate);
  const Index width = p.num_gates * p.hidden_size;
  V sum = fma(V(in.x[0]), V::load(p.ih + gate), V(T(0)));
  for (Index i = 1; i < p.input_size; ++i)
    sum = fma(V(in.x[i]), V::load(p.ih + i * width + gate), sum);
  return V::load(p.input_bias + gate) + sum;
}

// One step of U vectors of units.
template <class Cell, class T, int U>
CHARRNN_INLINE void stream_tile(const StreamArgs<T>& p, const StreamInput<T>& input, const T* h,
                                T* next, Index vector) {
  using V = Native<T>;
  constexpr int G = Cell::num_gates, S = Cell::num_states, summed = G - Cell::num_split;
  constexpr int P = Panel<G>::vectors, unit_vectors = Panel<G>::unit_vectors, W = U * G;
  static_assert(U % unit_vectors == 0 || unit_vectors % U == 0);
  const Index H = p.hidden_size;
  const T* const b =
      p.hh.data + vector / unit_vectors * p.hh.panel_stride + vector % unit_vectors * G * V::lanes;
  V sums[W];
  add_stream_chain<P>(h, 0, min_of(H, chain_depth), b, p.hh, sums);
  V gx[Cell::num_split > 0 ? U * Cell::num_split : 1];
  unroll<W>([&](auto w) __attribute__((always_inline)) {
    constexpr int u = w.value / G, g = w.value % G;
    const Index unit = (vector + u) * V::lanes;
    const V in = input_term(p, input, g * H + unit);
    if constexpr (g < summed) {
      sums[w] = in + sums[w];
    } else {
      gx[u * Cell::num_split + g - summed] = in;
      sums[w] = V::load(p.split_bias + (g - summed) * H + unit) + sums[w];
    }
  });
  for (Index k = chain_depth; k < H; k += chain_depth) {
    V chain[W];
    add_stream_chain<P>(h, k, min_of(H, k + chain_depth), b, p.hh, chain);
    unroll<W>([&](auto w) __attribute__((always_inline)) { sums[w] = sums[w] + chain[w]; });
  }
  constexpr int most = G == 1 ? 4 : 2, N = U < most ? U : most;  // vectors at once
  using M = Several<V, N>;
  const auto load = [&](const T* from) __attribute__((always_inline)) {
    M result;
    unroll<N>([&](auto i)
                  __attribute__((always_inline)) { result.v[i] = V::load(from + i * V::lanes); });
    return result;
  };
  const auto store = [&](const M& value, T* to) __attribute__((always_inline)) {
    unroll<N>([&](auto i) __attribute__((always_inline)) { value.v[i].store(to + i * V::lanes); });
  };
  unroll<U / N>([&](auto part) __attribute__((always_inline)) {
    constexpr int first = part.value * N;
    const Index unit = (vector + first) * V::lanes;
    Values<M, G> gates;
    Values<M, Cell::num_split> split;
    Values<M, Cell::num_params> params;
    Values<M, S> before, after;
    Values<M, Cell::num_saved> saved;
    unroll<N>([&](auto i) __attribute__((always_inline)) {
      constexpr int u = first + i.value;
      unroll<G>([&](auto g) __attribute__((always_inline)) { gates.v[g].v[i] = sums[u * G + g]; });
      unroll<Cell::num_split>([&](auto g) __attribute__((always_inline)) {
        split.v[g].v[i] = gx[u * Cell::num_split + g];
      });
    });
    unroll<Cell::num_params>([&](auto i) __attribute__((always_inline)) {
      params.v[i] = load(p.params + i * H + unit);
    });
    unroll<S>([&](auto s) __attribute__((always_inline)) {
      if constexpr (s > 0 || Cell::h_bypass) before.v[s] = load((s > 0 ? p.states[s] : h) + unit);
    });
    Cell::forward(CellForward<M>{gates.v, split.v, params.v, before.v, after.v, saved.v});
    unroll<S>([&](auto s) __attribute__((always_inline)) {
      store(after.v[s], (s > 0 ? p.states[s] : next) + unit);
    });
  });
}

// Tiles of U vectors of units from `vector` on, then the rest in tiles of half as many.
template <class Cell, class T, int U>
CHARRNN_INLINE void stream_tiles(const StreamArgs<T>& p, const StreamInput<T>& input, const T* h,
                                 T* next, Index vector, Index vectors) {
  for (; vector + U <= vectors; vector += U) stream_tile<Cell, T, U>(p, input, h, next, vector);
  if constexpr (U > 1) stream_tiles<Cell, T, U / 2>(p, input, h, next, vector, vectors);
}

// Units of a tile: as many as the registers have room for, a power of two.
constexpr int stream_units(int gates) {
  int units = 1;
  while (units < 8 && 2 * units * gates <= tile_accumulators) units *= 2;
  return units;
}

template <class Cell, class T>
CHARRNN_IN_ORDER void stream_forward(const StreamArgs<T>& p, const T* h, Index steps, T* rows) {
  const Index vectors = ceil_div(p.hidden_size, Native<T>::lanes);
  for (Index t = 0; t < steps; ++t, h = rows, rows += p.stride)
    stream_tiles<Cell, T, stream_units(Cell::num_gates)>(p, stream_input(p, t), h, rows, 0,
                                                         vectors);
}

// ---- a decoder of one unit ----------------------------------------------------------------

// One chain per row is the order of the sums. Rows side by side in the lanes hide its latency.
template <int N, class T>
CHARRNN_INLINE void decode_rows(const T* h, Index stride, Index depth, const T* weights, T bias,
                                T* y) {
  using V = Native<T>;
  V sums[N];
  unroll<N>([&](auto n) __attribute__((always_inline)) { sums[n] = V(bias); });
  for (Index from = 0; from < depth; from += chain_depth) {
    const Index to = min_of(depth, from + chain_depth);
    V acc[N];
    unroll<N>([&](auto n) __attribute__((always_inline)) { acc[n] = V(T(0)); });
    for (Index k = from; k < to; k += V::lanes) {
      V columns[N][V::lanes];
      unroll<N>([&](auto n) __attribute__((always_inline)) {
        unroll<V::lanes>([&](auto i) __attribute__((always_inline)) {
          columns[n][i] = V::load(h + (n * V::lanes + i) * stride + k);
        });
        transpose(columns[n]);
      });
      const Index lanes = min_of(V::lanes, to - k);
      unroll<V::lanes>([&](auto i) __attribute__((always_inline)) {
        if (i < lanes)
          unroll<N>([&](auto n) __attribute__((always_inline)) {
            acc[n] = fma(columns[n][i], V(weights[k + i]), acc[n]);
          });
      });
    }
    unroll<N>([&](auto n) __attribute__((always_inline)) { sums[n] = sums[n] + acc[n]; });
  }
  unroll<N>([&](auto n) __attribute__((always_inline)) { sums[n].store(y + n * V::lanes); });
}

// The same for one row, in all lanes alike.
template <class T>
CHARRNN_INLINE void decode_row(const T* h, Index depth, const T* weights, T bias, T* y) {
  using V = Native<T>;
  V sum = V(bias);
  for (Index from = 0; from < depth; from += chain_depth) {
    V acc = V(T(0));
    for (Index k = from; k < min_of(depth, from + chain_depth); ++k)
      acc = fma(V(h[k]), V(weights[k]), acc);
    sum = sum + acc;
  }
  sum.store(y, 1);
}

template <class T>
void stream_decode(const StreamDecodeArgs<T>& p, const T* h, Index rows, T* y) {
  constexpr Index lanes = Native<T>::lanes;
  for (; rows >= 2 * lanes; rows -= 2 * lanes, h += 2 * lanes * p.stride, y += 2 * lanes)
    decode_rows<2>(h, p.stride, p.depth, p.weights, p.bias, y);
  for (; rows >= lanes; rows -= lanes, h += lanes * p.stride, y += lanes)
    decode_rows<1>(h, p.stride, p.depth, p.weights, p.bias, y);
  for (; rows > 0; --rows, h += p.stride, ++y) decode_row(h, p.depth, p.weights, p.bias, y);
}
