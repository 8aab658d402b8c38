// The packed matrix product: one register tile, and the loops that feed it.

// A operands of a tile: element (row, k) of rows that lie anywhere, or packed [k][row].
struct RowMajor {
  template <int MR, class T>
  CHARRNN_INLINE static T at(const T* a, Index stride, int row, Index k) {
    return a[row * stride + k];
  }
};
struct PackedRows {
  template <int MR, class T>
  CHARRNN_INLINE static T at(const T* a, Index, int row, Index k) {
    return a[k * MR + row];
  }
};

// c [MR][PU * G * lanes] += a [MR][depth] @ b, PU panels of packed weights with G vectors per k.
// The accumulators stay in registers from the first k to the last.
template <class A, class T, int G, int MR, int PU>
__attribute__((noinline)) void tile(const T* a, Index a_stride, Index depth, const T* b,
                                    Index panel_stride, T* c, Index c_stride) {
  using V = Native<T>;
  constexpr int W = PU * G;
  V acc[MR][W];
  unroll<MR>([&](auto r) __attribute__((always_inline)) {
    unroll<W>([&](auto w) __attribute__((always_inline)) {
      acc[r][w] = V::load(c + r * c_stride + w * V::lanes);
    });
  });
  for (Index k = 0; k < depth; ++k, b += G * V::lanes) {
    // The fewer of rows and weights are held, the others pass one by one: with 12 accumulators
    // in 16 registers, holding the more of a 6 x 2 tile would spill.
    const auto weight = [&](auto w) __attribute__((always_inline)) {
      return V::load(b + (w / G) * panel_stride + (w % G) * V::lanes);
    };
    const auto row = [&](auto r) __attribute__((always_inline)) {
      return V(A::template at<MR>(a, a_stride, r, k));
    };
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
  unroll<MR>([&](auto r) __attribute__((always_inline)) {
    unroll<W>([&](auto w) __attribute__((always_inline)) {
      acc[r][w].store(c + r * c_stride + w * V::lanes);
    });
  });
}

template <class T>
using Tile = void (*)(const T*, Index, Index, const T*, Index, T*, Index);

// The tiles for G groups: every MR x PU whose accumulators fit in the registers.
template <class A, class T, int G>
struct Tiles {
  // Six rows feed one vector of weights; more rows at a time gain nothing once the loads of
  // weights are hidden.
  static constexpr int max_rows = G == 1 ? 6 : tile_accumulators / G;
  static constexpr int max_panels = 8;
  static constexpr int panels_for(int rows) {
    const int p = tile_accumulators / (rows * G);
    return p < 1 ? 1 : p > max_panels ? max_panels : p;
  }

  Tile<T> by_size[max_rows + 1][max_panels + 1] = {};

  constexpr Tiles() { fill<1, 1>(); }
  template <int MR, int PU>
  constexpr void fill() {
    if constexpr (MR <= max_rows) {
      if constexpr (PU <= panels_for(MR)) {
        by_size[MR][PU] = &tile<A, T, G, MR, PU>;
        fill<MR, PU + 1>();
      } else {
        fill<MR + 1, 1>();
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

// The tiles of rows x panels: panels outside, so that their weights stay in cache for all rows.
// f(row, rows, panel, panels) for each.
template <class Set, class F>
CHARRNN_INLINE void for_tiles(Range rows, Range panels, F&& f) {
  const Index most_rows = min_of(rows.end - rows.begin, Set::max_rows);
  if (most_rows <= 0) return;
  for_parts(panels, Set::panels_for(static_cast<int>(most_rows)), [&](Index panel, Index np) {
    for_parts(rows, Set::max_rows, [&](Index row, Index nr) { f(row, nr, panel, np); });
  });
}

template <class T>
void pack(const PackArgs<T>& p, Range panels) {
  constexpr int lanes = Native<T>::lanes;
  for (Index panel = panels.begin; panel < panels.end; ++panel) {
    const Index unit = panel * lanes, n = min_of(lanes, p.units - unit);
    for (Index g = 0; g < p.groups; ++g) {
      const T* w = p.weights + (g * p.units + unit) * p.row_stride;
      T* out = p.packed + (panel * p.depth * p.groups + g) * lanes;
      for (Index k = 0; k < p.depth; ++k, w += p.depth_stride, out += p.groups * lanes) {
        Index i = 0;
        for (; i < n; ++i) out[i] = w[i * p.row_stride];
        for (; i < lanes; ++i) out[i] = T(0);
      }
    }
  }
}

// A tile of C whose columns are whole panels is worked on in place, others in a buffer.
template <class T, class Set>
CHARRNN_INLINE void gemm_tile(const Set& set, const T* a, Index a_stride, Index depth, const T* b,
                              Index panel_stride, T* c, Index c_stride, Index rows, Index panels,
                              Index cols, const T* bias, bool accumulate) {
  using V = Native<T>;
  const Tile<T> run = set.by_size[rows][panels];
  const bool whole = cols == panels * V::lanes;
  alignas(64) T buffer[tile_accumulators * V::lanes];
  T* const out = whole ? c : buffer;
  const Index out_stride = whole ? c_stride : panels * V::lanes;
  if (!(whole && accumulate)) {
    for (Index r = 0; r < rows; ++r)
      for (Index j = 0; j < cols; j += V::lanes) {
        const Index n = min_of(V::lanes, cols - j);
        const V first = accumulate ? V::load(c + r * c_stride + j, n)
                        : bias     ? V::load(bias + j, n)
                                   : V(T(0));
        first.store(out + r * out_stride + j);
      }
  }
  run(a, a_stride, depth, b, panel_stride, out, out_stride);
  if (!whole) {
    for (Index r = 0; r < rows; ++r)
      for (Index j = 0; j < cols; j += V::lanes)
        V::load(buffer + r * out_stride + j).store(c + r * c_stride + j, min_of(V::lanes, cols - j));
  }
}

template <class T>
void gemm(const GemmArgs<T>& g, Range rows, Range panels) {
  using Set = Tiles<RowMajor, T, 1>;
  constexpr int lanes = Native<T>::lanes;
  const Index panel_stride = g.depth * lanes;
  for_tiles<Set>(rows, panels, [&](Index row, Index nr, Index panel, Index np) {
    const Index col = panel * lanes;
    gemm_tile(tiles<RowMajor, T, 1>, g.a + row * g.a_stride, g.a_stride, g.depth,
              g.packed + panel * panel_stride, panel_stride, g.c + row * g.c_stride + col, g.c_stride,
              nr, np, min_of(np * lanes, g.cols - col), g.bias ? g.bias + col : nullptr,
              g.accumulate);
  });
}

// Block sizes of the weight-gradient product: a block of B (depth x cols) fills half of a small
// second-level cache (256 KB), the packed rows of A beside it stay in the first level.
template <class T>
struct TnBlocks {
  static constexpr Index depth = 256, cols = 256 * 4 / static_cast<Index>(sizeof(T)), rows = 96;
};

template <class T>
Index gemm_tn_scratch() {
  using Blocks = TnBlocks<T>;
  return Blocks::depth * (Blocks::cols + Blocks::rows);
}

// out [depth][rows] = a [depth, rows], the number of rows as a constant: copies of a known size
// are two moves each, a loop over rows is several times as slow.
template <int N, class T>
CHARRNN_INLINE void pack_rows(Index rows, const T* a, Index stride, Index depth, T* out) {
  if constexpr (N > 1) {
    if (rows < N) return pack_rows<N - 1>(rows, a, stride, depth, out);
  }
  for (Index k = 0; k < depth; ++k, a += stride, out += N) __builtin_memcpy(out, a, N * sizeof(T));
}

template <class T>
void gemm_tn(const GemmTnArgs<T>& g, Range rows, T* scratch) {
  using Set = Tiles<PackedRows, T, 1>;
  using Blocks = TnBlocks<T>;
  constexpr int lanes = Native<T>::lanes;
  T* const packed_b = scratch;
  T* const packed_a = scratch + Blocks::depth * Blocks::cols;
  for (Index col0 = 0; col0 < g.cols; col0 += Blocks::cols) {
    const Index nc = min_of(Blocks::cols, g.cols - col0);
    for (Index k0 = 0; k0 < g.depth; k0 += Blocks::depth) {
      const Index depth = min_of(Blocks::depth, g.depth - k0);
      const Index panel_stride = depth * lanes;
      for (Index k = 0; k < depth; ++k) {
        const T* b = g.b + (k0 + k) * g.b_stride + col0;
        for (Index j = 0; j < nc; j += lanes)
          Native<T>::load(b + j, nc - j).store(packed_b + (j / lanes) * panel_stride + k * lanes);
      }
      for_parts(rows, Blocks::rows, [&](Index row0, Index nrows) {
        // [tile][k][row of the tile]
        T* out = packed_a;
        for_parts({row0, row0 + nrows}, Set::max_rows, [&](Index row, Index nr) {
          pack_rows<Set::max_rows>(nr, g.a + k0 * g.a_stride + row, g.a_stride, depth, out);
          out += nr * depth;
        });
        const Index most = Set::panels_for(static_cast<int>(min_of(nrows, Set::max_rows)));
        for_parts({0, ceil_div(nc, lanes)}, most, [&](Index panel, Index np) {
          const T* a = packed_a;
          const Index col = panel * lanes;
          for_parts({row0, row0 + nrows}, Set::max_rows, [&](Index row, Index nr) {
            gemm_tile(tiles<PackedRows, T, 1>, a, 0, depth, packed_b + panel * panel_stride,
                      panel_stride, g.c + row * g.c_stride + col0 + col, g.c_stride, nr, np,
                      min_of(np * lanes, nc - col), static_cast<const T*>(nullptr), true);
            a += nr * depth;
          });
        });
      });
    }
  }
}
