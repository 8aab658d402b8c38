// The packed matrix product: one register tile, and the loops that feed it.

// Prefetches the cache lines of n elements at p, for reading or writing.
template <bool write, class T>
CHARRNN_INLINE void prefetch(const T* p, Index n) {
  for (Index i = 0; i < n; i += 64 / static_cast<Index>(sizeof(T)))
    __builtin_prefetch(p + i, write, 2);
}

// Packed weights of G groups lie in panels: for each k, `vectors` vectors side by side. With
// several groups these are the gates of the same units. With one group they are neighbouring units,
// so that a tile reads one stream of memory, not several a power of two apart.
template <int G>
struct Panel {
  static constexpr int vectors = G > 1 ? G : tile_accumulators / 6;
  static constexpr int unit_vectors = vectors / G;  // vectors of units
};

// Panels of B's packed block in the weight gradient's product. With fewer vectors a tile has more
// rows, a power of two, and packing A takes half the moves.
struct TnPanel {
  static constexpr int vectors = 3, unit_vectors = 3;
};

// How a block's sum is added to those before. Few blocks are added directly. For many, the rounding
// errors of the additions are summed separately (Ogita, Rump and Oishi 2005, "Accurate sum and dot
// product", algorithm 4.3) and added at the end.
struct BlockSums {
  bool with_errors, first, last;
};

template <class V>
CHARRNN_INLINE V add_block(V total, V block, V& error) {
  const V sum = total + block, part = sum - total;
  error = error + ((total - (sum - part)) + (block - part));
  return sum;
}

// total[0, n) += block, for one vector.
template <class V, class T>
CHARRNN_INLINE void add_block(V block, BlockSums how, T* total, T* errors, Index n) {
  const V before = V::load(total, n);
  if (!how.with_errors) return (before + block).store(total, n);
  V error = how.first ? V(T(0)) : V::load(errors, n);
  const V sum = add_block(before, block, error);
  if (how.last) return (sum + error).store(total, n);
  sum.store(total, n);
  error.store(errors, n);
}

// Initial values of a tile's sums: row r, group g, vector u of units at data + r * row_stride + g *
// group_stride + u * unit_stride. row_stride 0: the same for all rows.
template <class T>
struct Start {
  const T* data;
  Index row_stride, group_stride, unit_stride;
};

// Memory to prefetch while a tile of several rows is computed: `step` bytes with each chain.
struct Ahead {
  const char* data;
  Index step;
};

// One tile: c [MR][W * lanes] = start + a [MR][depth] @ weights, W vectors per k from consecutive
// panels, G groups. Accumulators stay in registers for one chain of the depth; between chains, c
// holds the sum. For bfloat16 products, rows of a are words of two k, and a_stride counts words.
template <class T>
struct TileArgs {
  const T* a;
  Index a_stride, depth;
  Weights<T> weights;
  Start<T> start;
  T* c;
  Index c_stride;
  Ahead ahead = {};
};

// One tile of a weight gradient: c [MR][cols] += a [MR][depth] @ weights, for one block of the rows
// summed over; depth is in words for bfloat16 products. errors: see BlockSums.
template <class T>
struct TnTileArgs {
  const T* a;
  Index depth;
  Weights<T> weights;
  T* c;
  Index c_stride, cols;
  T* errors;
  Index errors_stride;
  BlockSums sums;
};

// A operands of a tile: rows at any address; or packed [k][row], for a weight gradient.
struct RowMajor {
  static constexpr bool sums_rows = false;
  template <int G>
  using Panels = Panel<G>;
  template <class T>
  using Args = TileArgs<T>;
};
struct PackedRows {
  static constexpr bool sums_rows = true;
  template <int G>
  using Panels = TnPanel;
  template <class T>
  using Args = TnTileArgs<T>;
};

template <int MR, int W, class V>
CHARRNN_INLINE void clear(V (&acc)[MR][W]) {
  unroll<MR>([&](auto r) __attribute__((always_inline)) {
    unroll<W>([&](auto w) __attribute__((always_inline)) { acc[r][w] = V(Scalar<V>(0)); });
  });
}

// c = from + acc.
template <int G, int MR, int W, class V, class T>
CHARRNN_INLINE void add_chain(const TileArgs<T>& p, const Start<T>& from, const V (&acc)[MR][W]) {
  unroll<MR>([&](auto r) __attribute__((always_inline)) {
    const T* const row = from.data + r * from.row_stride;
    unroll<W>([&](auto w) __attribute__((always_inline)) {
      (V::load(row + (w % G) * from.group_stride + (w / G) * from.unit_stride) + acc[r][w])
          .store(p.c + r * p.c_stride + w * V::lanes);
    });
  });
}

// acc[r][w] = add(row(r), weight(w), acc[r][w]). Holds the fewer of rows and weights in registers
// and streams the others: with 12 accumulators in 16 registers, holding the more of a 6 x 2 tile
// would spill.
template <int MR, int W, class V, class Row, class Weight, class Add>
CHARRNN_INLINE void add_products(const Row& row, const Weight& weight, V (&acc)[MR][W],
                                 const Add& add) {
  using Operand = decltype(row(std::integral_constant<int, 0>()));
  Operand held[MR < W ? MR : W];
  if constexpr (MR < W) {
    unroll<MR>([&](auto r) __attribute__((always_inline)) { held[r] = row(r); });
    unroll<W>([&](auto w) __attribute__((always_inline)) {
      const Operand passing = weight(w);
      unroll<MR>([&](auto r) __attribute__((always_inline)) {
        acc[r][w] = add(held[r], passing, acc[r][w]);
      });
    });
  } else {
    unroll<W>([&](auto w) __attribute__((always_inline)) { held[w] = weight(w); });
    unroll<MR>([&](auto r) __attribute__((always_inline)) {
      const Operand passing = row(r);
      unroll<W>([&](auto w) __attribute__((always_inline)) {
        acc[r][w] = add(passing, held[w], acc[r][w]);
      });
    });
  }
}
template <int MR, int W, class V, class Row, class Weight>
CHARRNN_INLINE void add_products(const Row& row, const Weight& weight, V (&acc)[MR][W]) {
  add_products(row, weight, acc,
               [](V a, V b, V sum) __attribute__((always_inline)) { return fma(a, b, sum); });
}

// The same for words of two bfloat16 each: the odd k's product first, then the even one's.
template <int MR, int W, class V, class Row, class Weight>
CHARRNN_INLINE void add_pairs(const Row& row, const Weight& weight, V (&acc)[MR][W]) {
  using Words = typename V::IntVec;
#if defined(__AVX512BF16__)
  add_products(row, weight, acc, [](Words a, Words b, V sum) __attribute__((always_inline)) {
    return V((typename V::Vec)_mm512_dpbf16_ps((__m512)sum.v, (__m512bh)a, (__m512bh)b));
  });
#else
  const auto add = [](V a, V b, V sum)
                       __attribute__((always_inline)) { return fma_bfloat16(a, b, sum); };
  const auto half = [](const auto& words, auto&& take) __attribute__((always_inline)) {
    return [&words, take](auto i)
               __attribute__((always_inline)) { return V::from_bits(take(words(i))); };
  };
  const auto odd = [](Words w) __attribute__((always_inline)) { return w & ~0xffff; };
  const auto even = [](Words w) __attribute__((always_inline)) { return w << 16; };
  add_products(half(row, odd), half(weight, odd), acc, add);
  add_products(half(row, even), half(weight, even), acc, add);
#endif
}

// The word at p in all lanes.
template <class T>
CHARRNN_INLINE typename Native<T>::IntVec all_words(const T* p) {
  typename BitsOf<T>::Int word;
  __builtin_memcpy(&word, p, sizeof word);
  return word - typename Native<T>::IntVec{};
}

// Calls f(k, n) for each chain [k, k + n) of the depth; the chain runs in acc and is added to c.
template <int G, int MR, int W, class V, class T, class F>
CHARRNN_INLINE void for_chains(const TileArgs<T>& p, V (&acc)[MR][W], F&& f) {
  Start<T> from = p.start;
  const char* ahead = p.ahead.data;
  Index k = 0;
  do {
    clear(acc);
    if constexpr (MR > 1)
      for (const char* const end = ahead + p.ahead.step; ahead < end; ahead += 64)
        __builtin_prefetch(ahead, 0, 2);
    f(k, min_of(p.depth - k, chain_depth));
    add_chain<G>(p, from, acc);
    from = {p.c, p.c_stride, V::lanes, G * V::lanes};
    k += chain_depth;
  } while (k < p.depth);
}

template <class T, int G, int MR, int W>
__attribute__((noinline)) void tile(const TileArgs<T>& p) {
  using V = Native<T>;
  constexpr int P = Panel<G>::vectors;
  const T *a = p.a, *b = p.weights.data;
  const Index a_stride = p.a_stride;
  const Index depth_stride = p.weights.depth_stride, panel_stride = p.weights.panel_stride;
  V acc[MR][W];
  for_chains<G>(p, acc, [&](Index from, Index n) __attribute__((always_inline)) {
    for (Index k = from; k < from + n; ++k, b += depth_stride) {
      const auto weight = [&](auto w) __attribute__((always_inline)) {
        return V::load(b + (w / P) * panel_stride + (w % P) * V::lanes);
      };
      const auto row = [&](auto r)
                           __attribute__((always_inline)) { return V(a[r * a_stride + k]); };
      add_products(row, weight, acc);
    }
  });
}

// The same with bfloat16 weights, two k to a word; a shift or a mask turns them into floats.
template <class T, int G, int MR, int W>
__attribute__((noinline)) void tile_bfloat16(const TileArgs<T>& p) {
  using V = Native<T>;
  constexpr int P = Panel<G>::vectors;
  const T *a = p.a, *b = p.weights.data;
  const Index a_stride = p.a_stride;
  const Index depth_stride = p.weights.depth_stride, panel_stride = p.weights.panel_stride;
  V acc[MR][W];
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
  static_assert(chain_depth % 2 == 0);
  for_chains<G>(p, acc, [&](Index k, Index n) __attribute__((always_inline)) {
    const Index end = k + n;
    for (; k + 2 <= end; k += 2, b += depth_stride) {
      add(even, k);
      add(odd, k + 1);
    }
    if (k < end) add(even, k);
  });
}

// The same for bfloat16 products.
template <class T, int G, int MR, int W>
__attribute__((noinline)) void tile_rounded(const TileArgs<T>& p) {
  using V = Native<T>;
  constexpr int P = Panel<G>::vectors;
  const T *a = p.a, *b = p.weights.data;
  const Index a_stride = p.a_stride;
  const Index depth_stride = p.weights.depth_stride, panel_stride = p.weights.panel_stride;
  V acc[MR][W];
  for_chains<G>(p, acc, [&](Index from, Index n) __attribute__((always_inline)) {
    const Index end = ceil_div(from + n, 2);
    for (Index i = from / 2; i < end; ++i, b += depth_stride) {
      const auto weight = [&](auto w) __attribute__((always_inline)) {
        return V::load(b + (w / P) * panel_stride + (w % P) * V::lanes).bits();
      };
      const auto row = [&](auto r) __attribute__((always_inline)) {
        return all_words(a + r * a_stride + i);
      };
      add_pairs(row, weight, acc);
    }
  });
}

// c [rows][width] = from + the sums of a part's products, of vectors [first, first + width). Not
// inlined: it is long, and for as many products as a part has, seldom.
template <int G, class T>
__attribute__((noinline)) void add_int8_sums(const TileArgs<T>& p,
                                             const typename Native<T>::IntVec* sums, const T* part,
                                             const Start<T>& from, T* c, int first, int rows,
                                             int width) {
  using V = Native<T>;
  constexpr int P = Panel<G>::vectors;
  for (int r = 0; r < rows; ++r, part += p.a_stride, c += p.c_stride) {
    const T* const start = from.data + r * from.row_stride;
    for (int w = 0; w < width; ++w, sums += int8_digits) {
      const int at = first + w;
      const T* const scale =
          p.weights.data + (at / P) * p.weights.panel_stride + (at % P) * V::lanes;
      fma(V::load(scale), Int8Sums<T>::total(sums) * V(part[0]),
          V::load(start + (at % G) * from.group_stride + (at / G) * from.unit_stride))
          .store(c + w * V::lanes);
    }
  }
}

// Rows [row, row + MR) and vectors [first, first + W) of a tile with int8 weights, four k to a word
// behind their scales. p.a is as Int8Rows has it.
template <int G, int MR, int W, int first, class T>
CHARRNN_INLINE void int8_block(const TileArgs<T>& p, Index row) {
  using V = Native<T>;
  using IntVec = typename V::IntVec;
  using Sums = Int8Sums<T>;
  constexpr int P = Panel<G>::vectors;
  const Index depth_stride = p.weights.depth_stride, panel_stride = p.weights.panel_stride;
  const auto place = [&](auto w) __attribute__((always_inline)) {
    return ((first + w) / P) * panel_stride + ((first + w) % P) * V::lanes;
  };
  const T* words = p.weights.data + P * V::lanes;  // behind the scales
  const T* part = p.a + row * p.a_stride;
  Start<T> from = p.start;
  from.data += row * from.row_stride;
  T* const c = p.c + row * p.c_stride + first * V::lanes;
  Index k = 0;
  do {
    IntVec sums[MR][W][int8_digits];
    unroll<MR>([&](auto r) __attribute__((always_inline)) {
      unroll<int8_digits>([&](auto i) __attribute__((always_inline)) {
        const IntVec begin = all_words(part + r * p.a_stride + 1 + i);
        unroll<W>([&](auto w) __attribute__((always_inline)) { sums[r][w][i] = begin; });
      });
    });
    const T* digits = part + int8_header;
    const Index end = k + int8_part < p.depth ? k + int8_part : p.depth;
    for (; k < end; k += 4, words += depth_stride, digits += int8_by_bytes ? 1 : 2) {
      // One row reads more than it computes: the next tile's weights come while this one's are
      // used.
      if constexpr (MR == 1)
        unroll<W>([&](auto w) __attribute__((always_inline)) {
          if constexpr ((first + w) * sizeof(V) % 64 == 0)
            __builtin_prefetch(words + place(w) + ceil_div(first + W, P) * panel_stride, 0, 2);
        });
      unroll<W>([&](auto w) __attribute__((always_inline)) {
        const IntVec weights = V::load(words + place(w)).bits();
        unroll<MR>([&](auto r) __attribute__((always_inline)) {
          const T* const at = digits + r * p.a_stride;
          unroll<int8_digits>([&](auto i) __attribute__((always_inline)) {
            IntVec& sum = sums[r][w][i];
            const T* const digit = at + i * int8_digit_words;
            if constexpr (int8_by_bytes) {
#if defined(__AVX512VNNI__)
              sum = Sums::add_bytes(sum, weights, all_words(digit));
#endif
            } else {
              sum = Sums::add_halves(sum, weights & 0xff00ff, all_words(digit));
              sum = Sums::add_halves(sum, (IntVec)((typename V::UintVec)weights >> 8) & 0xff00ff,
                                     all_words(digit + 1));
            }
          });
        });
      });
    }
    alignas(64) IntVec stored[MR * W * int8_digits];
    unroll<MR>([&](auto r) __attribute__((always_inline)) {
      unroll<W>([&](auto w) __attribute__((always_inline)) {
        unroll<int8_digits>([&](auto i) __attribute__((always_inline)) {
          stored[(r * W + w) * int8_digits + i] = sums[r][w][i];
        });
      });
    });
    add_int8_sums<G>(p, stored, part, from, c, first, MR, W);
    from = {p.c + row * p.c_stride, p.c_stride, V::lanes, G * V::lanes};
    part += int8_part_words;
  } while (k < p.depth);
}

// A tile of any number of rows: blocks of as many sums as the registers hold, with a word of
// weights and what becomes of it; of several rows, where there are, which share the latter.
template <class T, int G, int W>
__attribute__((noinline)) void tile_int8(const TileArgs<T>& p, Index rows) {
  constexpr int most = (tile_accumulators > 12 ? 24 : 8) / int8_digits;
  const auto columns = [&](auto height, auto width, Index row) __attribute__((always_inline)) {
    constexpr int blocks = W / width.value, left = W % width.value;
    unroll<blocks>([&](auto i) __attribute__((always_inline)) {
      int8_block<G, height.value, width.value, i.value * width.value>(p, row);
    });
    if constexpr (left > 0) int8_block<G, height.value, left, W - left>(p, row);
  };
  constexpr int narrow = W < most / 2 ? W : most / 2, height = most / narrow;
  Index row = 0;
  for (; row + height <= rows; row += height) columns(Constant<height>(), Constant<narrow>(), row);
  for (; row < rows; ++row) columns(Constant<1>(), Constant<(W < most ? W : most)>(), row);
}

// c += block [rows][width], of the first p.cols columns.
template <class T>
__attribute__((noinline)) void add_tile_block(const TnTileArgs<T>& p, const T* block, Index rows,
                                              Index width) {
  using V = Native<T>;
  for (Index r = 0; r < rows; ++r)
    for (Index j = 0; j < p.cols; j += V::lanes)
      add_block(V::load(block + r * width + j), p.sums, p.c + r * p.c_stride + j,
                p.errors + r * p.errors_stride + j, p.cols - j);
}

template <class T, int MR, int W, bool rounded = false>
__attribute__((noinline)) void tn_tile(const TnTileArgs<T>& p) {
  using V = Native<T>;
  constexpr int P = TnPanel::vectors;
  const T *a = p.a, *b = p.weights.data;
  const Index depth = p.depth, panel_stride = p.weights.panel_stride;
  V acc[MR][W];
  clear(acc);
  for (Index k = 0; k < depth; ++k, a += MR, b += P * V::lanes) {
    const auto weight = [&](auto w) __attribute__((always_inline)) {
      return V::load(b + (w / P) * panel_stride + (w % P) * V::lanes);
    };
    if constexpr (rounded) {
      const auto words = [&](auto w) __attribute__((always_inline)) { return weight(w).bits(); };
      const auto row = [&](auto r) __attribute__((always_inline)) { return all_words(a + r); };
      add_pairs(row, words, acc);
    } else {
      const auto row = [&](auto r) __attribute__((always_inline)) { return V(a[r]); };
      add_products(row, weight, acc);
    }
  }
  // Fast path for the usual case.
  if (!p.sums.with_errors && p.cols == W * V::lanes) {
    unroll<MR>([&](auto r) __attribute__((always_inline)) {
      unroll<W>([&](auto w) __attribute__((always_inline)) {
        T* const c = p.c + r * p.c_stride + w * V::lanes;
        (V::load(c) + acc[r][w]).store(c);
      });
    });
    return;
  }
  alignas(64) T block[MR * W * V::lanes];
  unroll<MR>([&](auto r) __attribute__((always_inline)) {
    unroll<W>([&](auto w) __attribute__((always_inline)) {
      acc[r][w].store(block + (r * W + w) * V::lanes);
    });
  });
  add_tile_block(p, block, MR, W * V::lanes);
}

template <class A, class T, int G>
struct Tiles {
  using Panels = typename A::template Panels<G>;
  static constexpr int max_rows = tile_accumulators / Panels::vectors;
  static constexpr int max_vectors =
      8;  // one row: enough chains to hide an fma's latency; with 16, from twice as many panels at
          // once, large weights were read 5 to 15 % slower
  static constexpr int panels_for(int rows) {
    const int by_registers = tile_accumulators / (rows * Panels::vectors);
    const int most = max_vectors / Panels::vectors;
    return by_registers < most ? by_registers : most;
  }

  // [rows][vectors]; for small weights and bfloat16 products, if supported
  using Args = typename A::template Args<T>;
  static constexpr bool has_rounded = sizeof(T) == 4, has_small = has_rounded && !A::sums_rows;
  void (*by_size[max_rows + 1][max_vectors + 1])(const Args&) = {};
  void (*by_size_bfloat16[max_rows + 1][max_vectors + 1])(const Args&) = {};
  void (*by_width_int8[max_vectors + 1])(const Args&, Index rows) = {};
  void (*by_size_rounded[max_rows + 1][max_vectors + 1])(const Args&) = {};

  constexpr Tiles() { fill<1, G>(); }
  CHARRNN_INLINE void run(Index rows, Index vectors, const Args& p) const {
    if (has_rounded && p.weights.compute == Compute::bfloat16)
      return by_size_rounded[rows][vectors](p);
    const Storage storage = has_small ? p.weights.storage : Storage::full;
    if (storage == Storage::int8) return by_width_int8[vectors](p, rows);
    (storage == Storage::full ? by_size : by_size_bfloat16)[rows][vectors](p);
  }
  template <int MR, int W>
  constexpr void fill() {
    if constexpr (MR <= max_rows) {
      if constexpr (W <= panels_for(MR) * Panels::vectors) {
        if constexpr (A::sums_rows)
          by_size[MR][W] = &tn_tile<T, MR, W>;
        else
          by_size[MR][W] = &tile<T, G, MR, W>;
        if constexpr (has_small) {
          by_size_bfloat16[MR][W] = &tile_bfloat16<T, G, MR, W>;
          by_width_int8[W] = &tile_int8<T, G, W>;
        }
        if constexpr (has_rounded && A::sums_rows)
          by_size_rounded[MR][W] = &tn_tile<T, MR, W, true>;
        else if constexpr (has_rounded)
          by_size_rounded[MR][W] = &tile_rounded<T, G, MR, W>;
        fill<MR, W + G>();
      } else {
        fill<MR + 1, G>();
      }
    }
  }
};
template <class A, class T, int G>
constexpr Tiles<A, T, G> tiles{};

// Splits [range.begin, range.end) into ranges of at most `most`, as even as possible: a last range
// of one row would run at a fraction of the speed.
template <class F>
CHARRNN_INLINE void for_parts(Range range, Index most, F&& f) {
  const Index size = range.end - range.begin, pieces = ceil_div(size, most);
  Index begin = range.begin;
  for (Index p = 0; p < pieces; ++p) {
    const Index n = (range.end - begin) / (pieces - p);
    f(begin, n);
    begin += n;
  }
}

// A tile's place: rows [row, row + rows), vectors of units [vector, vector + vectors), first panel
// `panel`.
struct Place {
  Index row, rows, panel, vector, vectors;
};

// The tiles of rows x panels; panels are the outer loop, so that their weights stay in cache for
// all rows.
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

// Bytes of a small second-level cache.
constexpr Index second_level_cache = 512 << 10;

// What the tiles of some rows prefetch, each an equal share a row, so that no tile waits for
// weights from beyond the second-level cache: those that the same rows are multiplied with next.
// Nothing if the cache keeps all weights, or if no second tile reads a panel's weights.
template <class Set, class T>
struct NextWeights {
  const Weights<T>& weights;
  Range rows;
  bool useful;

  CHARRNN_INLINE NextWeights(const Weights<T>& w, Range r, Range all_panels) : weights(w), rows(r) {
    useful = r.end - r.begin > Set::max_rows &&
             (all_panels.end - all_panels.begin) * w.panel_stride * Index(sizeof(T)) >
                 second_level_cache;
  }
  // For the tile at `at`, of `depth` k: as many from the first k of panel `panel` are next.
  CHARRNN_INLINE Ahead operator()(const Place& at, Index depth, Index panel, Index k) const {
    if (!useful) return {};
    const Index halved = weights.compute == Compute::bfloat16 ? 2 : 1;
    const Index stride = weights.depth_stride * Index(sizeof(T)) / halved;  // of one k
    const Index share = depth * stride / (rows.end - rows.begin);
    const auto* const data =
        reinterpret_cast<const char*>(weights.data + panel * weights.panel_stride);
    return {data + k * stride + share * (at.row - rows.begin),
            share * at.rows / ceil_div(depth, chain_depth)};
  }
};

// A product whose rows of A take more than half of a second-level cache is divided: some rows, some
// units, and for these one part of the depth after the other, with the sums in a buffer. So the
// parts of A are read from that cache.
template <class T>
struct ProductBlocks {
  static constexpr Index rows = 64, units = 512 / Index(sizeof(T)), depth = 4 * chain_depth;
  static constexpr Index elements = rows * units;  // of the buffer

  // f(at, part, sums, ahead) for the tiles of rows x panels, and for each the parts of the depth,
  // ascending; sums: the tile's place in the buffer.
  template <class Set, class F>
  CHARRNN_INLINE static void for_tiles(const Weights<T>& weights, Range rows, Range panels,
                                       Index all_units, Index depth, T* buffer, F&& f) {
    constexpr Index panel_units = Set::Panels::unit_vectors * Native<T>::lanes;
    const Index all = rows.end - rows.begin;
    const bool divided =
        all > Set::max_rows && all * depth * Index(sizeof(T)) > second_level_cache / 2;
    const Index most_rows = divided ? ProductBlocks::rows : max_of(all, 1);
    const Index most_panels = divided ? units / panel_units : max_of(panels.end - panels.begin, 1);
    const Index most_depth = divided ? ProductBlocks::depth : depth;
    for_parts(rows, most_rows, [&](Index row, Index num_rows) {
      const NextWeights<Set, T> next_weights(weights, {row, row + num_rows}, panels);
      for_parts(panels, most_panels, [&](Index panel, Index num_panels) {
        const Index end = panel + num_panels;
        Index k = 0;
        do {
          const Range part{k, min_of(k + most_depth, depth)};
          CHARRNN_ISA::for_tiles<Set, T>(
              {row, row + num_rows}, {panel, end}, all_units,
              [&](const Place& at) __attribute__((always_inline)) {
                Index next = at.panel + ceil_div(at.vectors, Set::Panels::unit_vectors);
                Index next_k = k;
                if (next == end) {
                  next_k = part.end < depth ? part.end : 0;
                  next = next_k > 0 ? panel : end < panels.end ? end : panels.begin;
                }
                const Index before = (at.panel - panel) * num_rows + at.row - row;
                f(at, part, buffer + (divided ? before * panel_units : 0),
                  next_weights(at, part.end - part.begin, next, next_k));
              });
          k = part.end;
        } while (k < depth);
      });
    });
  }
};

// to [lanes, lanes] = the transpose of from.
template <class T>
CHARRNN_INLINE void transpose_block(const T* from, Index from_stride, T* to, Index to_stride) {
  using V = Native<T>;
  V block[V::lanes];
  unroll<V::lanes>(
      [&](auto i) __attribute__((always_inline)) { block[i] = V::load(from + i * from_stride); });
  transpose(block);
  unroll<V::lanes>([&](auto i)
                       __attribute__((always_inline)) { block[i].store(to + i * to_stride); });
}

template <class T>
void transpose(const T* from, Index rows, Index cols, Range given, T* to) {
  constexpr Index lanes = Native<T>::lanes;
  for (Index r = given.begin; r < given.end; r += lanes) {
    const Index n = min_of(lanes, given.end - r);
    Index c = 0;
    if (n == lanes)
      for (; c + lanes <= cols; c += lanes)
        transpose_block(from + r * cols + c, cols, to + c * rows + r, rows);
    for (; c < cols; ++c)
      for (Index i = r; i < r + n; ++i) to[c * rows + i] = from[i * cols + c];
  }
}

// out[k * out_stride + i] = w[i * row_stride + k * depth_stride], 0 for i >= n: one vector of units
// at every depth.
template <class T>
void pack_units(const T* w, Index row_stride, Index depth_stride, Index n, Index depth, T* out,
                Index out_stride) {
  using V = Native<T>;
  Index k = 0;
  if (depth_stride == 1 && n == V::lanes) {
    for (; k + V::lanes <= depth; k += V::lanes)
      transpose_block(w + k, row_stride, out + k * out_stride, out_stride);
  }
  for (; k < depth; ++k)
    for (Index i = 0; i < V::lanes; ++i)
      out[k * out_stride + i] = i < n ? w[i * row_stride + k * depth_stride] : T(0);
}

// x as bfloat16, rounded to nearest, ties to even.
CHARRNN_INLINE std::uint32_t to_bfloat16(float x) {
  std::uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  if (x != x) return bits >> 16 | 0x40;  // NaN stays NaN
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

// The same for bfloat16 products.
template <class T>
void pack_units_rounded(const T* w, Index row_stride, Index depth_stride, Index n, Index depth,
                        T* out, Index out_stride) {
  if constexpr (sizeof(T) == 4) {
    using V = Native<T>;
    // Of the depths 2 i and 2 i + 1.
    const auto put = [&](Index i, V even, V odd) __attribute__((always_inline)) {
      V::words(even, odd).store(out + i * out_stride);
    };
    Index k = 0;
    if (depth_stride == 1 && n == V::lanes)
      for (; k + V::lanes <= depth; k += V::lanes) {
        V block[V::lanes];
        unroll<V::lanes>([&](auto i) __attribute__((always_inline)) {
          block[i] = V::load(w + i * row_stride + k);
        });
        transpose(block);
        unroll<V::lanes / 2>([&](auto i) __attribute__((always_inline)) {
          put(k / 2 + i, block[2 * i], block[2 * i + 1]);
        });
      }
    const auto units = [&](Index at) __attribute__((always_inline)) {
      if (at >= depth || n <= 0) return V(T(0));
      if (row_stride == 1) return V::load(w + at * depth_stride, n);
      T lane[V::lanes] = {};
      for (Index i = 0; i < min_of(n, V::lanes); ++i)
        lane[i] = w[i * row_stride + at * depth_stride];
      return V::load(lane);
    };
    for (; k < depth; k += 2) put(k / 2, units(k), units(k + 1));
  }
}

template <int G, class T>
void pack_panels(const PackArgs<T>& p, Range panels) {
  constexpr int lanes = Native<T>::lanes, P = Panel<G>::vectors,
                unit_vectors = Panel<G>::unit_vectors;
  const bool half = p.storage == Storage::bfloat16, full = p.storage == Storage::full;
  // Units are contiguous: a panel is as many neighbouring vectors of each row.
  if (p.row_stride == 1 && G == 1 && full) {
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
      const Index steps = full ? p.depth : half ? ceil_div(p.depth, 2) : 1 + ceil_div(p.depth, 4);
      const auto pack = p.compute == Compute::bfloat16 ? &pack_units_rounded<T>
                        : full                         ? &pack_units<T>
                        : half                         ? &pack_units_bfloat16<T>
                                                       : &pack_units_int8<T>;
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

// The weights starting at a panel.
template <class T>
CHARRNN_INLINE Weights<T> from_panel(const Weights<T>& w, Index panel) {
  return {w.data + panel * w.panel_stride, w.depth_stride, w.panel_stride, w.storage, w.compute};
}

// Columns [0, cols) of a tile of C: in place if they are whole vectors, else through a buffer.
template <class T>
CHARRNN_INLINE void gemm_tile(const T* a, Index a_stride, Index depth, const Weights<T>& weights,
                              T* c, Index c_stride, Index rows, Index cols, const T* bias,
                              bool accumulate) {
  using V = Native<T>;
  using Set = Tiles<RowMajor, T, 1>;
  alignas(64) static constexpr T zeros[Set::max_vectors * V::lanes] = {};
  const Index vectors = ceil_div(cols, V::lanes), width = vectors * V::lanes;
  const auto run = [&](const Start<T>& start, T* to, Index stride) __attribute__((always_inline)) {
    tiles<RowMajor, T, 1>.run(rows, vectors,
                              TileArgs<T>{a, a_stride, depth, weights, start, to, stride});
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

// For bfloat16 products, blocks of A are rounded first, as large as a thread's stack and its
// first-level cache have room for.
template <class T>
__attribute__((noinline)) void gemm_rounded(const GemmArgs<T>& g, Range rows, Range panels) {
  using Set = Tiles<RowMajor, T, 1>;
  constexpr Index lanes = Native<T>::lanes, most_rows = 48, most_depth = 2 * chain_depth;
  const FlushSubnormals flush(true);
  alignas(64) Bfloat16 a[most_rows * most_depth];
  for_parts(rows, most_rows, [&](Index first, Index n) {
    Index k = 0;
    do {
      const Index depth = min_of(most_depth, g.depth - k), stride = even(depth);
      for (Index r = 0; r < n; ++r)
        round_row(g.a + (first + r) * g.a_stride + k, depth, a + r * stride);
      Weights<T> weights = g.weights;
      weights.data += k / 2 * weights.depth_stride;
      for_tiles<Set, T>({first, first + n}, panels, g.cols, [&](const Place& at) {
        const Index col = at.vector * lanes;
        gemm_tile(reinterpret_cast<const T*>(a + (at.row - first) * stride), stride / 2, depth,
                  from_panel(weights, at.panel), g.c + at.row * g.c_stride + col, g.c_stride,
                  at.rows, min_of(at.vectors * lanes, g.cols - col),
                  g.bias ? g.bias + col : nullptr, g.accumulate || k > 0);
      });
      k += most_depth;
    } while (k < g.depth);
  });
}

// Columns `panels` of some rows whose A is at a.
template <class T>
CHARRNN_INLINE void gemm_tiles(const GemmArgs<T>& g, Range rows, Range panels, const T* a,
                               Index a_stride) {
  using Set = Tiles<RowMajor, T, 1>;
  constexpr Index lanes = Native<T>::lanes;
  for_tiles<Set, T>(rows, panels, g.cols, [&](const Place& at) {
    const Index col = at.vector * lanes;
    gemm_tile(a + (at.row - rows.begin) * a_stride, a_stride, g.depth,
              from_panel(g.weights, at.panel), g.c + at.row * g.c_stride + col, g.c_stride, at.rows,
              min_of(at.vectors * lanes, g.cols - col), g.bias ? g.bias + col : nullptr,
              g.accumulate);
  });
}

// With int8 weights, A becomes integers first.
template <class T>
__attribute__((noinline)) void gemm_int8(const GemmArgs<T>& g, Range rows, Range panels) {
  Int8Rows<T> a;
  for_parts(rows, Int8Rows<T>::most_rows(g.depth), [&](Index first, Index n) {
    a.encode(g.a + first * g.a_stride, g.a_stride, n, g.depth);
    gemm_tiles(g, {first, first + n}, panels, a.words, int8_row_words(g.depth));
  });
}

template <class T>
void gemm(const GemmArgs<T>& g, Range rows, Range panels) {
  if constexpr (sizeof(T) == 4) {
    if (g.weights.compute == Compute::bfloat16) return gemm_rounded(g, rows, panels);
    if (g.weights.storage == Storage::int8) return gemm_int8(g, rows, panels);
  }
  gemm_tiles(g, rows, panels, g.a + rows.begin * g.a_stride, g.a_stride);
}

// Block sizes of the weight-gradient product. A block of B (depth x cols) fills half of a small
// second-level cache (256 KB); the packed rows of A stay in the first level. Errors, if any, are of
// as many rows of C as take about the memory of B.
template <class T>
struct TnBlocks {
  static constexpr Index panel = TnPanel::vectors * Native<T>::lanes;
  static constexpr Index depth = sum_block, rows = 96, rows_with_errors = 4 * rows;
  static constexpr Index cols = (256 * 4 / Index(sizeof(T)) + panel - 1) / panel * panel;
  // Offset between packed tiles of A beyond a power of two, so that they use different cache sets.
  static constexpr Index skew = 16;
  static constexpr Index b_elements = depth * cols, a_elements = rows * (depth + skew);
  static constexpr Index errors_elements = rows_with_errors * (cols + 1);
  // Words of two k take half the depth: twice the columns take as much memory.
  static constexpr Index cols_of(bool rounded) { return rounded ? 2 * cols : cols; }
  static constexpr Index rows_with_errors_of(bool rounded) {
    return rounded ? rows_with_errors / 2 : rows_with_errors;
  }
};
// The depth of a block in its packed form.
CHARRNN_INLINE Index packed_depth(Index depth, bool rounded) {
  return rounded ? ceil_div(depth, 2) : depth;
}

template <class T>
Index gemm_tn_scratch() {
  return TnBlocks<T>::b_elements + TnBlocks<T>::a_elements + TnBlocks<T>::errors_elements;
}

// How rows [begin, end) are added to the sums; `whole`: number of all rows summed over.
CHARRNN_INLINE BlockSums block_sums(Index begin, Index end, Index whole) {
  return {whole > most_plain_rows, begin == 0, end == whole};
}

// out [depth][rows] = a [depth, rows], with the number of rows a constant: copies of known size are
// a move or two each; a loop over rows is several times slower. sums += the sums of a's columns.
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
  T sum[N] = {}, values[N];
  for (Index k = 0; k < depth; ++k, a += stride, out += N) {
    __builtin_memcpy(values, a, sizeof values);
    for (int i = 0; i < N; ++i) sum[i] += values[i];
    __builtin_memcpy(out, values, sizeof values);
  }
  for (int i = 0; i < N; ++i) sums[i] += sum[i];
}

// The same for bfloat16 products: out [depth / 2, rounded up][rows], in words.
template <int N, class T>
CHARRNN_INLINE void pack_rows_rounded(Index rows, const T* a, Index stride, Index depth, T* out,
                                      T* sums) {
  if constexpr (N > 1) {
    if (rows < N) return pack_rows_rounded<N - 1>(rows, a, stride, depth, out, sums);
  }
  using V = Native<T>;
  constexpr int vectors = (N + V::lanes - 1) / V::lanes;
  unroll<vectors>([&](auto v) __attribute__((always_inline)) {
    constexpr Index first = v * V::lanes, n = N - first < V::lanes ? N - first : V::lanes;
    V sum = V(T(0));
    for (Index k = 0; k < depth; k += 2) {
      const V even = V::load(a + k * stride + first, n);
      sum = sum + even;
      V odd = V(T(0));
      if (k + 1 < depth) {
        odd = V::load(a + (k + 1) * stride + first, n);
        sum = sum + odd;
      }
      V::words(even, odd).store(out + k / 2 * N + first, n);
    }
    if (sums) (V::load(sums + first, n) + sum).store(sums + first, n);
  });
}

// packed = A [depth, rows] as tiles [k][row of the tile], several k at a time, so that one read of
// a cache line of A serves all tiles that share it.
template <class Set, bool rounded, class T>
void pack_a(const T* a, Index stride, Index depth, Index rows, T* packed, T* sums) {
  constexpr Index steps = sum_rows, ahead = 4 * steps;  // far enough for main memory
  for (Index k = 0; k < depth; k += steps) {
    for (Index next = k + ahead; next < min_of(depth, k + ahead + steps); ++next)
      prefetch<false>(a + next * stride, rows);
    T* out = packed;
    for_parts({0, rows}, Set::max_rows, [&](Index row, Index nr) {
      const T* const from = a + k * stride + row;
      T *const to = out + packed_depth(k, rounded) * nr, *const sum = sums ? sums + row : nullptr;
      const Index n = min_of(steps, depth - k);
      if constexpr (rounded)
        pack_rows_rounded<Set::max_rows>(nr, from, stride, n, to, sum);
      else
        pack_rows<Set::max_rows>(nr, from, stride, n, to, sum);
      out += nr * packed_depth(depth, rounded) + TnBlocks<T>::skew;
    });
  }
}

// Neighbouring columns of one product, and their places in B's packed block and in the errors.
template <class T>
struct TnPiece {
  const GemmTnProduct<T>* product;
  Index col, cols;
  T *packed, *errors;
  Index errors_stride;
};

template <bool rounded, class T>
void pack_b(const TnPiece<T>& piece, Index k0, Index depth) {
  using V = Native<T>;
  constexpr Index P = TnPanel::vectors;
  const GemmTnProduct<T>& g = *piece.product;
  const Index steps = packed_depth(depth, rounded);
  for (Index i = 0; i < steps; ++i)
    for (Index v = 0; v * V::lanes < piece.cols; ++v) {
      const auto row = [&](Index k) __attribute__((always_inline)) {
        const T* const b = g.b + (k0 + k) * g.b_stride + piece.col;
        return V::load(b + v * V::lanes, piece.cols - v * V::lanes);
      };
      V value;
      if constexpr (rounded)
        value = V::words(row(2 * i), 2 * i + 1 < depth ? row(2 * i + 1) : V(T(0)));
      else
        value = row(i);
      value.store(piece.packed + ((v / P * steps + i) * P + v % P) * V::lanes);
    }
}

// One block of C: rows whose A is packed, columns of the piece. errors: those of the first of these
// rows.
template <class T>
void gemm_tn_block(const TnPiece<T>& piece, const T* packed_a, Index depth, Compute compute,
                   Range rows, T* errors, BlockSums how) {
  using Set = Tiles<PackedRows, T, 1>;
  constexpr Index lanes = Native<T>::lanes, panel_cols = TnPanel::vectors * lanes;
  const GemmTnProduct<T>& g = *piece.product;
  const Index most_rows = min_of(rows.end - rows.begin, Set::max_rows);
  const Index most = Set::panels_for(static_cast<int>(most_rows));
  for_parts({0, ceil_div(piece.cols, panel_cols)}, most, [&](Index panel, Index np) {
    const T* a = packed_a;
    const Index col = panel * panel_cols, cols = min_of(np * panel_cols, piece.cols - col);
    const Weights<T> weights{piece.packed + col * depth, panel_cols, panel_cols * depth,
                             Storage::full, compute};
    for_parts(rows, Set::max_rows, [&](Index row, Index nr) {
      T* const e = errors ? errors + (row - rows.begin) * piece.errors_stride + col : nullptr;
      tiles<PackedRows, T, 1>.run(
          nr, ceil_div(cols, lanes),
          TnTileArgs<T>{a, depth, weights, g.c + row * g.c_stride + piece.col + col, g.c_stride,
                        cols, e, piece.errors_stride, how});
      a += nr * depth + TnBlocks<T>::skew;
    });
  });
}

// sums[0, n) += block[0, n).
template <class T>
void add_blocks(const T* block, Index n, BlockSums how, T* sums, T* errors) {
  using V = Native<T>;
  for (Index j = 0; j < n; j += V::lanes)
    add_block(V::load(block + j, n - j), how, sums + j, errors + j, n - j);
}

// Rows of C, few enough for the errors' memory.
template <bool rounded, class T>
void gemm_tn_rows(const GemmTnArgs<T>& g, Range rows, T* scratch) {
  using Set = Tiles<PackedRows, T, 1>;
  using Blocks = TnBlocks<T>;
  constexpr Index panel_cols = TnPanel::vectors * Native<T>::lanes;
  constexpr Index block_cols = Blocks::cols_of(rounded);
  T* const packed_a = scratch + Blocks::b_elements;
  T* const errors = packed_a + Blocks::a_elements;
  T* const sums_errors =
      g.sums_errors ? g.sums_errors + rows.begin : errors + Blocks::rows_with_errors * Blocks::cols;
  int product = 0;
  Index col = 0;
  T* sums = g.sums;
  while (product < g.num_products) {
    // As many columns as fit in a block of B: of one product, or of the end of one and the start of
    // the next.
    TnPiece<T> pieces[2];
    int count = 0;
    for (Index used = 0; product < g.num_products && count < 2 && used < block_cols;) {
      const GemmTnProduct<T>& p = g.products[product];
      const Index cols = min_of(p.cols - col, block_cols - used);
      TnPiece<T>& piece = pieces[count++];
      piece = {&p,
               col,
               cols,
               scratch + used * packed_depth(Blocks::depth, rounded),
               errors + used,
               block_cols};
      if (p.errors)
        piece.errors = p.errors + rows.begin * p.errors_stride + col,
        piece.errors_stride = p.errors_stride;
      used += ceil_div(cols, panel_cols) * panel_cols;
      col += cols;
      if (col == p.cols) ++product, col = 0;
    }
    for (Index k0 = 0; k0 < g.depth; k0 += g.block) {
      const Index depth = min_of(g.block, g.depth - k0);
      const BlockSums how = block_sums(g.done + k0, g.done + k0 + depth, whole_depth(g));
      for (int i = 0; i < count; ++i) pack_b<rounded>(pieces[i], k0, depth);
      const Range tiles{0, ceil_div(rows.end - rows.begin, Set::max_rows)};
      for_parts(tiles, Blocks::rows / Set::max_rows, [&](Index first, Index n) {
        const Index row = rows.begin + first * Set::max_rows, before = row - rows.begin;
        const Index end = min_of(row + n * Set::max_rows, rows.end);
        T block[Blocks::rows] = {};
        pack_a<Set, rounded>(g.a + k0 * g.a_stride + row, g.a_stride, depth, end - row, packed_a,
                             sums ? block : nullptr);
        if (sums) add_blocks(block, end - row, how, sums + row, sums_errors + before);
        for (int i = 0; i < count; ++i)
          gemm_tn_block(pieces[i], packed_a, packed_depth(depth, rounded), g.compute, {row, end},
                        pieces[i].errors + before * pieces[i].errors_stride, how);
      });
    }
    sums = nullptr;  // once is enough
  }
}

template <bool rounded, class T>
__attribute__((noinline)) void gemm_tn_of(const GemmTnArgs<T>& g, Range rows, T* scratch) {
  const FlushSubnormals flush(rounded);
  const bool with_errors = block_sums(0, 0, whole_depth(g)).with_errors;
  const Index most =
      with_errors ? TnBlocks<T>::rows_with_errors_of(rounded) : rows.end - rows.begin;
  for (Index row = rows.begin; row < rows.end; row += most)
    gemm_tn_rows<rounded>(g, {row, min_of(row + most, rows.end)}, scratch);
}
template <class T>
void gemm_tn(const GemmTnArgs<T>& g, Range rows, T* scratch) {
  if constexpr (sizeof(T) == 4) {
    if (g.compute == Compute::bfloat16) return gemm_tn_of<true>(g, rows, scratch);
  }
  gemm_tn_of<false>(g, rows, scratch);
}
