// The packed matrix product: one register tile, and the loops that feed it.

// Asks for the cache lines of n elements at p, to be read or written soon.
template <bool write, class T>
CHARRNN_INLINE void prefetch(const T* p, Index n) {
  for (Index i = 0; i < n; i += 64 / static_cast<Index>(sizeof(T)))
    __builtin_prefetch(p + i, write, 2);
}

// Packed weights of G groups lie in panels: for each k, `vectors` vectors side by side. With
// several groups they are the gates of the same units; with one group, neighbouring units, so that
// a tile reads one stream of memory and not several a power of two apart.
template <int G>
struct Panel {
  static constexpr int vectors = G > 1 ? G : tile_accumulators / 6;
  static constexpr int unit_vectors = vectors / G;  // vectors of units
};

// Panels of the block of B that a weight gradient's product packs: with fewer vectors a tile has
// more rows, a power of two of them, and packing A for it takes half the moves.
struct TnPanel {
  static constexpr int vectors = 3, unit_vectors = 3;
};

// A operands of a tile: element (row, k) of rows that lie anywhere, or packed [k][row].
struct RowMajor {
  static constexpr bool any_weights = true;  // else none but those of a block in full precision
  template <int G>
  using Panels = Panel<G>;
  template <int MR, class T>
  CHARRNN_INLINE static T at(const T* a, Index stride, int row, Index k) {
    return a[row * stride + k];
  }
};
struct PackedRows {
  static constexpr bool any_weights = false;
  template <int G>
  using Panels = TnPanel;
  template <int MR, class T>
  CHARRNN_INLINE static T at(const T* a, Index, int row, Index k) {
    return a[k * MR + row];
  }
};

// Where the chains of a tile's sums begin: row r, group g, vector u of units at
// data + r * row_stride + g * group_stride + u * unit_stride. row_stride 0: all rows alike.
template <class T>
struct Start {
  const T* data;
  Index row_stride, group_stride, unit_stride;
};

// One tile: c [MR][W * lanes] = start + a [MR][depth] @ weights, W vectors per k from consecutive
// panels for G groups. The accumulators stay in registers from the first k to the last.
template <class T>
struct TileArgs {
  const T* a;
  Index a_stride, depth;
  Weights<T> weights;
  Start<T> start;
  T* c;
  Index c_stride;
};

template <int G, int MR, int W, class V, class T>
CHARRNN_INLINE void begin_tile(const TileArgs<T>& p, V (&acc)[MR][W]) {
  unroll<MR>([&](auto r) __attribute__((always_inline)) {
    const T* row = p.start.data + r * p.start.row_stride;
    unroll<W>([&](auto w) __attribute__((always_inline)) {
      acc[r][w] = V::load(row + (w % G) * p.start.group_stride + (w / G) * p.start.unit_stride);
    });
  });
}
template <int MR, int W, class V, class T>
CHARRNN_INLINE void end_tile(const TileArgs<T>& p, const V (&acc)[MR][W]) {
  unroll<MR>([&](auto r) __attribute__((always_inline)) {
    unroll<W>([&](auto w) __attribute__((always_inline)) {
      acc[r][w].store(p.c + r * p.c_stride + w * V::lanes);
    });
  });
}

// acc[r][w] += row(r) * weight(w). The fewer of rows and weights are held, the others pass one by
// one: with 12 accumulators in 16 registers, holding the more of a 6 x 2 tile would spill.
template <int MR, int W, class V, class Row, class Weight>
CHARRNN_INLINE void add_products(const Row& row, const Weight& weight, V (&acc)[MR][W]) {
  V held[MR < W ? MR : W];
  if constexpr (MR < W) {
    unroll<MR>([&](auto r) __attribute__((always_inline)) { held[r] = row(r); });
    unroll<W>([&](auto w) __attribute__((always_inline)) {
      const V passing = weight(w);
      unroll<MR>([&](auto r) __attribute__((always_inline)) {
        acc[r][w] = fma(held[r], passing, acc[r][w]);
      });
    });
  } else {
    unroll<W>([&](auto w) __attribute__((always_inline)) { held[w] = weight(w); });
    unroll<MR>([&](auto r) __attribute__((always_inline)) {
      const V passing = row(r);
      unroll<W>([&](auto w) __attribute__((always_inline)) {
        acc[r][w] = fma(passing, held[w], acc[r][w]);
      });
    });
  }
}

template <class A, class T, int G, int MR, int W>
__attribute__((noinline)) void tile(const TileArgs<T>& p) {
  using V = Native<T>;
  constexpr int P = A::template Panels<G>::vectors;
  const T *a = p.a, *b = p.weights.data;
  const Index a_stride = p.a_stride, depth = p.depth;
  const Index depth_stride = p.weights.depth_stride, panel_stride = p.weights.panel_stride;
  V acc[MR][W];
  begin_tile<G>(p, acc);
  for (Index k = 0; k < depth; ++k, b += depth_stride) {
    const auto weight = [&](auto w) __attribute__((always_inline)) {
      return V::load(b + (w / P) * panel_stride + (w % P) * V::lanes);
    };
    const auto row = [&](auto r) __attribute__((always_inline)) {
      return V(A::template at<MR>(a, a_stride, r, k));
    };
    add_products(row, weight, acc);
  }
  end_tile(p, acc);
}

// The same with weights as bfloat16, which a shift or a mask turns into floats: two k to a word.
template <class T, int G, int MR, int W>
__attribute__((noinline)) void tile_bfloat16(const TileArgs<T>& p) {
  using V = Native<T>;
  constexpr int P = Panel<G>::vectors;
  const T *a = p.a, *b = p.weights.data;
  const Index a_stride = p.a_stride, depth = p.depth;
  const Index depth_stride = p.weights.depth_stride, panel_stride = p.weights.panel_stride;
  V acc[MR][W];
  begin_tile<G>(p, acc);
  const auto even = [&](auto w) __attribute__((always_inline)) {
    return V::from_bits(V::load(b + (w / P) * panel_stride + (w % P) * V::lanes).bits() << 16);
  };
  const auto odd = [&](auto w) __attribute__((always_inline)) {
    return V::from_bits(V::load(b + (w / P) * panel_stride + (w % P) * V::lanes).bits() & ~0xffff);
  };
  const auto add = [&](const auto& weight, Index k) __attribute__((always_inline)) {
    const auto row = [&](auto r) __attribute__((always_inline)) { return V(a[r * a_stride + k]); };
    add_products(row, weight, acc);
  };
  Index k = 0;
  for (; k + 2 <= depth; k += 2, b += depth_stride) {
    add(even, k);
    add(odd, k + 1);
  }
  if (k < depth) add(even, k);
  end_tile(p, acc);
}

template <class T>
using Tile = void (*)(const TileArgs<T>&);

// The tiles for G groups: every MR x W (W a multiple of G) whose accumulators fit in the registers.
template <class A, class T, int G>
struct Tiles {
  using Panels = typename A::template Panels<G>;
  static constexpr int max_rows = tile_accumulators / Panels::vectors;
  static constexpr int max_vectors =
      8;  // one row: chains enough to hide the latency of an fma; with 16, from twice as many
          // panels at once, large weights were read 5 to 15 % slower
  static constexpr int panels_for(int rows) {
    const int by_registers = tile_accumulators / (rows * Panels::vectors);
    const int most = max_vectors / Panels::vectors;
    return by_registers < most ? by_registers : most;
  }

  // [rows][vectors]; for weights as bfloat16, where the table has them
  static constexpr bool has_bfloat16 = sizeof(T) == 4 && A::any_weights;
  Tile<T> by_size[max_rows + 1][max_vectors + 1] = {};
  Tile<T> by_size_bfloat16[max_rows + 1][max_vectors + 1] = {};

  constexpr Tiles() { fill<1, G>(); }
  CHARRNN_INLINE void run(Index rows, Index vectors, const TileArgs<T>& p) const {
    const bool half = has_bfloat16 && p.weights.bfloat16;
    (half ? by_size_bfloat16 : by_size)[rows][vectors](p);
  }
  template <int MR, int W>
  constexpr void fill() {
    if constexpr (MR <= max_rows) {
      if constexpr (W <= panels_for(MR) * Panels::vectors) {
        by_size[MR][W] = &tile<A, T, G, MR, W>;
        if constexpr (has_bfloat16) by_size_bfloat16[MR][W] = &tile_bfloat16<T, G, MR, W>;
        fill<MR, W + G>();
      } else {
        fill<MR + 1, G>();
      }
    }
  }
};
template <class A, class T, int G>
constexpr Tiles<A, T, G> tiles{};

// Parts of [range.begin, range.end) of at most `most`, as even as whole numbers allow: a last
// part of one row would run at a fraction of the speed.
template <class F>
CHARRNN_INLINE void for_parts(Range range, Index most, F&& f) {
  const Index size = range.end - range.begin, parts = ceil_div(size, most);
  Index begin = range.begin;
  for (Index p = 0; p < parts; ++p) {
    const Index n = (range.end - begin) / (parts - p);
    f(begin, n);
    begin += n;
  }
}

// A tile's place: rows [row, row + rows), vectors of units [vector, vector + vectors), the first
// of panel `panel`.
struct Place {
  Index row, rows, panel, vector, vectors;
};

// The tiles of rows x panels: panels outside, so that their weights stay in cache for all rows.
template <class Set, class T, class F>
CHARRNN_INLINE void for_tiles(Range rows, Range panels, Index units, F&& f) {
  constexpr Index unit_vectors = Set::Panels::unit_vectors;
  const Index most_rows = min_of(rows.end - rows.begin, Set::max_rows);
  const Index all_vectors = ceil_div(units, Native<T>::lanes);
  if (most_rows <= 0) return;
  for_parts(panels, Set::panels_for(static_cast<int>(most_rows)), [&](Index panel, Index np) {
    const Index first = panel * unit_vectors;
    const Index vectors = min_of(np * unit_vectors, all_vectors - first);
    for_parts(rows, Set::max_rows,
              [&](Index row, Index nr) { f(Place{row, nr, panel, first, vectors}); });
  });
}

// out[k * out_stride + i] = w[i * row_stride + k * depth_stride], 0 from i = n on: one vector of
// units at every depth.
template <class T>
void pack_units(const T* w, Index row_stride, Index depth_stride, Index n, Index depth, T* out,
                Index out_stride) {
  using V = Native<T>;
  Index k = 0;
  if (depth_stride == 1 && n == V::lanes) {
    for (; k + V::lanes <= depth; k += V::lanes) {
      V block[V::lanes];
      unroll<V::lanes>([&](auto i) __attribute__((always_inline)) {
        block[i] = V::load(w + i * row_stride + k);
      });
      transpose(block);
      unroll<V::lanes>([&](auto i) __attribute__((always_inline)) {
        block[i].store(out + (k + i) * out_stride);
      });
    }
  }
  for (; k < depth; ++k)
    for (Index i = 0; i < V::lanes; ++i)
      out[k * out_stride + i] = i < n ? w[i * row_stride + k * depth_stride] : T(0);
}

// x as bfloat16, rounded to nearest, ties to even.
CHARRNN_INLINE std::uint32_t to_bfloat16(float x) {
  std::uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  if (x != x) return bits >> 16 | 0x40;  // a NaN stays one
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

template <class T>
void pack_units_bfloat16(const T* w, Index row_stride, Index depth_stride, Index n, Index depth,
                         T* out, Index out_stride) {
  for (Index k = 0; k < depth; k += 2, out += out_stride)
    for (Index i = 0; i < Native<T>::lanes; ++i) {
      const T* from = w + i * row_stride + k * depth_stride;
      std::uint32_t word = 0;
      if (i < n) word = to_bfloat16(static_cast<float>(from[0]));
      if (i < n && k + 1 < depth) word |= to_bfloat16(static_cast<float>(from[depth_stride])) << 16;
      __builtin_memcpy(out + i, &word, sizeof word);
    }
}

template <int G, class T>
void pack_panels(const PackArgs<T>& p, Range panels) {
  constexpr int lanes = Native<T>::lanes, P = Panel<G>::vectors,
                unit_vectors = Panel<G>::unit_vectors;
  // Units side by side in memory: a panel is as many neighbouring vectors of each row.
  if (p.row_stride == 1 && G == 1 && !p.bfloat16) {
    for (Index panel = panels.begin; panel < panels.end; ++panel)
      for (Index k = 0; k < p.depth; ++k)
        for (Index v = 0; v < P; ++v) {
          const Index unit = (panel * P + v) * lanes;
          Native<T>::load(p.weights + k * p.depth_stride + unit, p.units - unit)
              .store(p.packed + ((panel * p.depth + k) * P + v) * lanes);
        }
    return;
  }
  for (Index panel = panels.begin; panel < panels.end; ++panel)
    for (Index v = 0; v < P; ++v) {
      const Index group = v % G, unit = (panel * unit_vectors + v / G) * lanes;
      const Index n = min_of(lanes, p.units - unit);
      const Index steps = p.bfloat16 ? ceil_div(p.depth, 2) : p.depth;
      const auto pack = p.bfloat16 ? &pack_units_bfloat16<T> : &pack_units<T>;
      pack(p.weights + (group * p.units + unit) * p.row_stride, p.row_stride, p.depth_stride, n,
           p.depth, p.packed + (panel * steps * P + v) * lanes, P * lanes);
    }
}

template <class T>
void pack(const PackArgs<T>& p, Range panels) {
  unroll<max_gates + 1>([&](auto g) __attribute__((always_inline)) {
    if constexpr (g > 0) {
      if (p.groups == g) pack_panels<g.value>(p, panels);
    }
  });
}

// The weights from the given panel on.
template <class T>
CHARRNN_INLINE Weights<T> from_panel(const Weights<T>& w, Index panel) {
  return {w.data + panel * w.panel_stride, w.depth_stride, w.panel_stride, w.bfloat16};
}

// Columns [0, cols) of a tile of C: in place where they are whole vectors, else in a buffer.
template <class T, class Set>
CHARRNN_INLINE void gemm_tile(const Set& set, const T* a, Index a_stride, Index depth,
                              const Weights<T>& weights, T* c, Index c_stride, Index rows,
                              Index cols, const T* bias, bool accumulate) {
  using V = Native<T>;
  alignas(64) static constexpr T zeros[Set::max_vectors * V::lanes] = {};
  const Index vectors = ceil_div(cols, V::lanes), width = vectors * V::lanes;
  const auto run = [&](const Start<T>& start, T* to, Index stride) __attribute__((always_inline)) {
    set.run(rows, vectors, TileArgs<T>{a, a_stride, depth, weights, start, to, stride});
  };
  const Start<T> same{bias ? bias : zeros, 0, 0, V::lanes};
  if (cols == width)
    return run(accumulate ? Start<T>{c, c_stride, 0, V::lanes} : same, c, c_stride);
  alignas(64) T buffer[tile_accumulators * V::lanes];
  const auto each = [&](auto&& f) __attribute__((always_inline)) {
    for (Index r = 0; r < rows; ++r)
      for (Index j = 0; j < cols; j += V::lanes)
        f(buffer + r * width + j, c + r * c_stride + j, cols - j);
  };
  if (accumulate)
    each([](T* to, const T* from, Index n)
             __attribute__((always_inline)) { V::load(from, n).store(to); });
  run(accumulate ? Start<T>{buffer, width, 0, V::lanes} : same, buffer, width);
  each([](const T* from, T* to, Index n)
           __attribute__((always_inline)) { V::load(from).store(to, n); });
}

template <class T>
void gemm(const GemmArgs<T>& g, Range rows, Range panels) {
  using Set = Tiles<RowMajor, T, 1>;
  constexpr Index lanes = Native<T>::lanes;
  for_tiles<Set, T>(rows, panels, g.cols, [&](const Place& at) {
    const Index col = at.vector * lanes;
    gemm_tile(tiles<RowMajor, T, 1>, g.a + at.row * g.a_stride, g.a_stride, g.depth,
              from_panel(g.weights, at.panel), g.c + at.row * g.c_stride + col, g.c_stride, at.rows,
              min_of(at.vectors * lanes, g.cols - col), g.bias ? g.bias + col : nullptr,
              g.accumulate);
  });
}

// Block sizes of the weight-gradient product: a block of B (depth x cols) fills half of a small
// second-level cache (256 KB), the packed rows of A beside it stay in the first level.
template <class T>
struct TnBlocks {
  static constexpr Index panel = TnPanel::vectors * Native<T>::lanes;
  static constexpr Index depth = 256, rows = 96;
  static constexpr Index cols = (256 * 4 / Index(sizeof(T)) + panel - 1) / panel * panel;
  // Packed tiles of A begin this much further apart than a power of two, in different cache sets.
  static constexpr Index skew = 16;
  static constexpr Index a_elements = rows * (depth + skew);
};

template <class T>
Index gemm_tn_scratch() {
  return TnBlocks<T>::depth * TnBlocks<T>::cols + TnBlocks<T>::a_elements;
}

// out [depth][rows] = a [depth, rows], the number of rows as a constant: copies of a known size
// are a move or two each, a loop over rows is several times as slow. sums: see GemmTnArgs.
template <int N, class T>
CHARRNN_INLINE void pack_rows(Index rows, const T* a, Index stride, Index depth, T* out, T* sums) {
  if constexpr (N > 1) {
    if (rows < N) return pack_rows<N - 1>(rows, a, stride, depth, out, sums);
  }
  if (!sums) {
    for (Index k = 0; k < depth; ++k, a += stride, out += N)
      __builtin_memcpy(out, a, N * sizeof(T));
    return;
  }
  T sum[N], values[N];
  __builtin_memcpy(sum, sums, sizeof sum);
  for (Index k = 0; k < depth; ++k, a += stride, out += N) {
    __builtin_memcpy(values, a, sizeof values);
    for (int i = 0; i < N; ++i) sum[i] += values[i];
    __builtin_memcpy(out, values, sizeof values);
  }
  __builtin_memcpy(sums, sum, sizeof sum);
}

// packed = A [depth, rows] as tiles [k][row of the tile], some steps of k at a time, so that a
// cache line of A serves all the tiles that share it.
template <class Set, class T>
void pack_a(const T* a, Index stride, Index depth, Index rows, T* packed, T* sums) {
  constexpr Index steps = 8, ahead = 4 * steps;  // far enough for memory behind the last cache
  for (Index k = 0; k < depth; k += steps) {
    for (Index next = k + ahead; next < min_of(depth, k + ahead + steps); ++next)
      prefetch<false>(a + next * stride, rows);
    T* out = packed;
    for_parts({0, rows}, Set::max_rows, [&](Index row, Index nr) {
      pack_rows<Set::max_rows>(nr, a + k * stride + row, stride, min_of(steps, depth - k),
                               out + k * nr, sums ? sums + row : nullptr);
      out += nr * depth + TnBlocks<T>::skew;
    });
  }
}

// Some neighbouring columns of one product, and their place in the packed block of B.
template <class T>
struct TnPiece {
  const GemmTnProduct<T>* product;
  Index col, cols;
  T* packed;
};

template <class T>
void pack_b(const TnPiece<T>& piece, Index k0, Index depth) {
  using V = Native<T>;
  constexpr Index P = TnPanel::vectors;
  const GemmTnProduct<T>& g = *piece.product;
  for (Index k = 0; k < depth; ++k) {
    const T* b = g.b + (k0 + k) * g.b_stride + piece.col;
    for (Index v = 0; v * V::lanes < piece.cols; ++v)
      V::load(b + v * V::lanes, piece.cols - v * V::lanes)
          .store(piece.packed + ((v / P * depth + k) * P + v % P) * V::lanes);
  }
}

// One block of C: rows whose A is packed, columns of the piece.
template <class T>
void gemm_tn_block(const TnPiece<T>& piece, const T* packed_a, Index depth, Range rows) {
  using Set = Tiles<PackedRows, T, 1>;
  constexpr Index panel_cols = TnPanel::vectors * Native<T>::lanes;
  const GemmTnProduct<T>& g = *piece.product;
  const Index most_rows = min_of(rows.end - rows.begin, Set::max_rows);
  const Index most = Set::panels_for(static_cast<int>(most_rows));
  for_parts({0, ceil_div(piece.cols, panel_cols)}, most, [&](Index panel, Index np) {
    const T* a = packed_a;
    const Index col = panel * panel_cols;
    for_parts(rows, Set::max_rows, [&](Index row, Index nr) {
      gemm_tile(tiles<PackedRows, T, 1>, a, 0, depth,
                Weights<T>{piece.packed + col * depth, panel_cols, panel_cols * depth},
                g.c + row * g.c_stride + piece.col + col, g.c_stride, nr,
                min_of(np * panel_cols, piece.cols - col), static_cast<const T*>(nullptr), true);
      a += nr * depth + TnBlocks<T>::skew;
    });
  });
}

template <class T>
void gemm_tn(const GemmTnArgs<T>& g, Range rows, T* scratch) {
  using Set = Tiles<PackedRows, T, 1>;
  using Blocks = TnBlocks<T>;
  constexpr Index panel_cols = TnPanel::vectors * Native<T>::lanes;
  T* const packed_a = scratch + Blocks::depth * Blocks::cols;
  if (rows.begin == rows.end) return;
  int product = 0;
  Index col = 0;
  T* sums = g.sums;
  while (product < g.num_products) {
    // As many columns as a block of B takes, of one product or of the end of one and the next.
    TnPiece<T> pieces[2];
    int count = 0;
    for (Index used = 0; product < g.num_products && count < 2 && used < Blocks::cols;) {
      const Index cols = min_of(g.products[product].cols - col, Blocks::cols - used);
      pieces[count++] = {&g.products[product], col, cols, scratch + used * Blocks::depth};
      used += ceil_div(cols, panel_cols) * panel_cols;
      col += cols;
      if (col == g.products[product].cols) ++product, col = 0;
    }
    for (Index k0 = 0; k0 < g.depth; k0 += Blocks::depth) {
      const Index depth = min_of(Blocks::depth, g.depth - k0);
      for (int i = 0; i < count; ++i) pack_b(pieces[i], k0, depth);
      const Range tiles{0, ceil_div(rows.end - rows.begin, Set::max_rows)};
      for_parts(tiles, Blocks::rows / Set::max_rows, [&](Index first, Index n) {
        const Index row = rows.begin + first * Set::max_rows;
        const Index end = min_of(row + n * Set::max_rows, rows.end);
        pack_a<Set>(g.a + k0 * g.a_stride + row, g.a_stride, depth, end - row, packed_a,
                    sums ? sums + row : nullptr);
        for (int i = 0; i < count; ++i) gemm_tn_block(pieces[i], packed_a, depth, {row, end});
      });
    }
    sums = nullptr;  // once is enough
  }
}
