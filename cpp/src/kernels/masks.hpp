// Masks of dropout and zoneout: the numbers of philox.hpp, of as many counters at once as a vector
// has 32-bit lanes.
//
// A round needs two full products of 32 by 32 bits. x86 multiplies the low halves of 64-bit lanes
// and ignores the high ones. There a word of the counters is two vectors of 64-bit lanes with
// arbitrary high halves, so the low half of a product is free. Arm multiplies, and sorts the halves
// of the products, with one instruction each. There a word is one vector.
//
// Counters of a block of units differ only in their first word, those of rows in their second. So
// the parts of the first three rounds that depend on the block alone, or on the row alone, are
// computed once.

typedef std::uint32_t WordVec __attribute__((vector_size(vector_bytes)));
typedef std::uint32_t HalfWordVec __attribute__((vector_size(vector_bytes / 2)));
typedef std::uint64_t WideVec __attribute__((vector_size(vector_bytes)));
typedef std::int64_t SignedWideVec __attribute__((vector_size(vector_bytes)));
constexpr int word_lanes = vector_bytes / 4;

#if defined(__aarch64__)
using WordLane = std::uint32_t;
using WordLanes = WordVec;
struct Words {
  WordVec v;
};
struct Products {
  WideVec first, second;
};

CHARRNN_INLINE Words operator^(Words a, Words b) { return {a.v ^ b.v}; }
CHARRNN_INLINE Words operator^(Words a, WordLanes b) { return {a.v ^ b}; }
CHARRNN_INLINE Products multiply(Words a, std::uint32_t b) {
  const uint32x4_t v = (uint32x4_t)a.v, factor = vdupq_n_u32(b);
  return {(WideVec)vmull_u32(vget_low_u32(v), vget_low_u32(factor)),
          (WideVec)vmull_high_u32(v, factor)};
}
CHARRNN_INLINE Words low(Products p) {
  return {(WordVec)vuzp1q_u32((uint32x4_t)p.first, (uint32x4_t)p.second)};
}
CHARRNN_INLINE Words high(Products p) {
  return {(WordVec)vuzp2q_u32((uint32x4_t)p.first, (uint32x4_t)p.second)};
}
CHARRNN_INLINE WordVec packed(Words w) { return w.v; }
CHARRNN_INLINE WordVec packed_high(Products p) { return high(p).v; }
CHARRNN_INLINE Words lane_numbers() {
  Words w;
  unroll<word_lanes>([&](auto i) __attribute__((always_inline)) { w.v[i.value] = i.value; });
  return w;
}
#else
// Of every four counters, one vector holds the first two, another the last two: then shufps takes
// one half of each lane in order.
using WordLane = std::uint64_t;
using WordLanes = WideVec;
struct Words {
  WideVec first, second;
};
using Products = Words;

CHARRNN_INLINE Words operator^(Words a, Words b) {
  return {a.first ^ b.first, a.second ^ b.second};
}
CHARRNN_INLINE Words operator^(Words a, WordLanes b) { return {a.first ^ b, a.second ^ b}; }
CHARRNN_INLINE WideVec multiply(WideVec a, WideVec b) {
#if defined(__AVX512F__)
  return (WideVec)_mm512_maskz_mul_epu32(0xff, (__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (WideVec)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__x86_64__)
  return (WideVec)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
  return (a & 0xffffffff) * (b & 0xffffffff);
#endif
}
CHARRNN_INLINE Products multiply(Words a, std::uint32_t b) {
  const WideVec factor = std::uint64_t{b} - WideVec{};
  return {multiply(a.first, factor), multiply(a.second, factor)};
}
CHARRNN_INLINE Words low(Products p) { return p; }
CHARRNN_INLINE Words high(Products p) { return {p.first >> 32, p.second >> 32}; }
template <bool high>
CHARRNN_INLINE WordVec packed_halves(Words w) {
#if defined(__AVX512F__)
  return (WordVec)_mm512_maskz_shuffle_ps(0xffff, (__m512)w.first, (__m512)w.second,
                                          high ? 0xdd : 0x88);
#elif defined(__AVX2__)
  return (WordVec)_mm256_shuffle_ps((__m256)w.first, (__m256)w.second, high ? 0xdd : 0x88);
#elif defined(__x86_64__)
  return (WordVec)_mm_shuffle_ps((__m128)w.first, (__m128)w.second, high ? 0xdd : 0x88);
#else
  WordVec v;
  unroll<word_lanes>([&](auto i) __attribute__((always_inline)) {
    v[i.value] = static_cast<std::uint32_t>((i % 4 < 2 ? w.first : w.second)[i / 4 * 2 + i % 2] >>
                                            (high ? 32 : 0));
  });
  return v;
#endif
}
CHARRNN_INLINE WordVec packed(Words w) { return packed_halves<false>(w); }
CHARRNN_INLINE WordVec packed_high(Products p) { return packed_halves<true>(p); }
CHARRNN_INLINE Words lane_numbers() {
  Words w;
  unroll<word_lanes / 2>([&](auto i) __attribute__((always_inline)) {
    constexpr unsigned number = i / 2 * 4 + i % 2;
    w.first[i.value] = number, w.second[i.value] = number + 2;
  });
  return w;
}
#endif

CHARRNN_INLINE WordLanes in_all_lanes(WordLane x) { return x - WordLanes{}; }
// The multipliers that the words choose from, in all lanes.
template <class T>
struct MaskMultipliers {
  WordVec threshold;
  Native<T> dropped, kept;

  CHARRNN_INLINE explicit MaskMultipliers(const MaskArgs<T>& p)
      : threshold(p.threshold - WordVec{}), dropped(p.dropped), kept(p.kept) {}

  // word_lanes elements, of which the first `count` exist. x null: the multipliers themselves.
  CHARRNN_INLINE void apply(WordVec word, const T* x, T* out, Index count) const {
    using V = Native<T>;
    const auto store = [&](V m, Index at) __attribute__((always_inline)) {
      (x ? m * V::load(x + at, count - at) : m).store(out + at, count - at);
    };
    if constexpr (V::lanes == word_lanes) {
      store(V((typename V::Vec)(word < threshold ? (WordVec)dropped.v : (WordVec)kept.v)), 0);
    } else {
      // Through memory: a load from there widens.
      alignas(sizeof(WordVec)) std::uint32_t lanes[word_lanes];
      __builtin_memcpy(lanes, &word, sizeof word);
      const SignedWideVec limit = (SignedWideVec)((WideVec)threshold >> 32);
      unroll<word_lanes / V::lanes>([&](auto i) __attribute__((always_inline)) {
        HalfWordVec half;
        __builtin_memcpy(&half, lanes + i * V::lanes, sizeof half);
        store(V(__builtin_convertvector(half, SignedWideVec) < limit ? dropped.v : kept.v),
              i * V::lanes);
      });
    }
  }
};

// Rows of one step.
template <class T>
void mask_step(const MaskArgs<T>& p, Range rows) {
  constexpr Index group_rows = 16;  // stay in the first-level cache from block to block
  constexpr int side_by_side = 2;   // rows whose chains of rounds hide each other's latency
  constexpr int shared_rounds = 3, rounds = Philox::rounds;
  constexpr std::uint32_t m0 = Philox::m0, m1 = Philox::m1;
  const Philox philox(p.key);
  const auto& k = philox.keys;
  WordLanes keys[rounds][2];
  unroll<rounds>([&](auto i) __attribute__((always_inline)) {
    keys[i][0] = in_all_lanes(k[i][0]), keys[i][1] = in_all_lanes(k[i][1]);
  });
  const WordVec last_keys[2] = {k[rounds - 1][0] - WordVec{}, k[rounds - 1][1] - WordVec{}};
  const MaskMultipliers<T> multipliers(p);
  const std::uint64_t time_product = multiply(p.time, m1);
  const Words numbers = lane_numbers();
  // Locals, which stores to `out` cannot change.
  const T* const x_0 = p.x;
  T* const out_0 = p.out;
  const Index x_stride = p.x_stride, out_stride = p.out_stride, cols = p.cols;

  for (Index begin = rows.begin; begin < rows.end; begin += group_rows) {
    const Index num_rows = min_of(rows.end - begin, group_rows);
    // The second round's product of a row's first word.
    WordLane row_low[group_rows], row_high[group_rows];
    for (Index r = 0; r < num_rows; ++r) {
      const auto stream = static_cast<std::uint32_t>(p.streams ? p.streams[begin + r] : begin + r);
      const std::uint64_t product = multiply(high(time_product) ^ stream ^ k[0][0], m0);
      row_low[r] = low(product), row_high[r] = high(product);
    }
    for (Index j = 0; j < cols; j += mask_block)
      for (Index lane = 0; lane < min_of(mask_block_counters, cols - j); lane += word_lanes) {
        const auto counter =
            static_cast<std::uint32_t>(j / mask_block * mask_block_counters + lane);
        // Three rounds of what all rows share; second_2 is the shared part of the rows' words 2
        // after the second round, and so on.
        const Products p0 = multiply(numbers ^ in_all_lanes(counter), m0);
        const Products p1 = multiply(high(p0) ^ in_all_lanes(p.site ^ k[0][1]), m1);
        const Products p2 = multiply(high(p1) ^ in_all_lanes(low(time_product) ^ k[1][0]), m0);
        const Words second_2 = low(p0) ^ keys[1][1], third_0 = low(p1) ^ keys[2][0],
                    third_2 = high(p2) ^ keys[2][1], third_3 = low(p2);

        const auto draw = [&]<int R>(Constant<R>, Index r) __attribute__((always_inline)) {
          Words c[R][4];
          unroll<R>([&](auto i) __attribute__((always_inline)) {
            const Products q1 = multiply(second_2 ^ in_all_lanes(row_high[r + i]), m1);
            c[i][0] = high(q1) ^ third_0, c[i][1] = low(q1);
            c[i][2] = third_2 ^ in_all_lanes(row_low[r + i]), c[i][3] = third_3;
          });
          unroll<rounds - 1 - shared_rounds>([&](auto round) __attribute__((always_inline)) {
            const auto& key = keys[shared_rounds + round];
            unroll<R>([&](auto i) __attribute__((always_inline)) {
              const Products q0 = multiply(c[i][0], m0), q1 = multiply(c[i][2], m1);
              c[i][0] = high(q1) ^ c[i][1] ^ key[0], c[i][1] = low(q1);
              c[i][2] = high(q0) ^ c[i][3] ^ key[1], c[i][3] = low(q0);
            });
          });
          // The last round orders its words as the units.
          WordVec words[R][4];
          unroll<R>([&](auto i) __attribute__((always_inline)) {
            const Products q0 = multiply(c[i][0], m0), q1 = multiply(c[i][2], m1);
            words[i][0] = packed_high(q1) ^ packed(c[i][1]) ^ last_keys[0];
            words[i][1] = packed(low(q1));
            words[i][2] = packed_high(q0) ^ packed(c[i][3]) ^ last_keys[1];
            words[i][3] = packed(low(q0));
          });
          unroll<R>([&](auto i) __attribute__((always_inline)) {
            const T* const x = x_0 ? x_0 + (begin + r + i) * x_stride + j + lane : nullptr;
            T* const out = out_0 + (begin + r + i) * out_stride + j + lane;
            const auto apply = [&](auto w, const T* from,
                                   Index count) __attribute__((always_inline)) {
              constexpr Index at = w * mask_block_counters;
              multipliers.apply(words[i][w], from ? from + at : nullptr, out + at, count);
            };
            if (cols - j < mask_block)
              unroll<4>([&](auto w) __attribute__((always_inline)) {
                apply(w, x, cols - j - lane - w * mask_block_counters);
              });
            else if (x)
              unroll<4>([&](auto w) __attribute__((always_inline)) { apply(w, x, word_lanes); });
            else
              unroll<4>([&](auto w)
                            __attribute__((always_inline)) { apply(w, nullptr, word_lanes); });
          });
        };
        Index r = 0;
        for (; r + side_by_side <= num_rows; r += side_by_side) draw(Constant<side_by_side>(), r);
        for (; r < num_rows; ++r) draw(Constant<1>(), r);
      }
  }
}

// f(arguments of a step, its first row, its rows among the given ones) for each step that has some.
template <class T, class F>
CHARRNN_INLINE void each_mask_step(const MaskArgs<T>& p, Range rows, F&& f) {
  if (p.steps.seq_len == 0) return f(p, Index(0), rows);
  MaskArgs<T> step = p;
  for (Index t = 0; t < p.steps.seq_len; ++t) {
    const Index first = first_row(p.steps, t);
    const Index begin = max_of(rows.begin, first);
    const Index end = min_of(rows.end, first + rows_at(p.steps, t));
    if (begin >= end) continue;
    if (!p.one_time) step.time = static_cast<std::uint32_t>(t);
    step.x = p.x ? p.x + first * p.x_stride : nullptr;
    step.out = p.out + first * p.out_stride;
    f(step, first, Range{begin - first, end - first});
  }
}

template <class T>
void mask(const MaskArgs<T>& p, Range rows) {
  each_mask_step(p, rows,
                 [](const MaskArgs<T>& step, Index, Range mine)
                     __attribute__((always_inline)) { mask_step(step, mine); });
}

template <class T>
void mask_step_elements(const MaskArgs<T>& p, const Token* units, Range rows) {
  const Philox philox(p.key);
  for (Index r = rows.begin; r < rows.end; ++r) {
    const Token unit = units[r];
    const Token counter = unit / mask_block * mask_block_counters + unit % mask_block_counters;
    std::uint32_t words[4] = {static_cast<std::uint32_t>(counter),
                              static_cast<std::uint32_t>(p.streams ? p.streams[r] : r), p.time,
                              p.site};
    philox.draw(words);
    const std::uint32_t word = words[unit % mask_block / mask_block_counters];
    p.out[r] = word < p.threshold ? p.dropped : p.kept;
  }
}

template <class T>
void mask_elements(const MaskArgs<T>& p, const Token* units, Range rows) {
  each_mask_step(
      p, rows,
      [&](const MaskArgs<T>& step, Index first, Range mine)
          __attribute__((always_inline)) { mask_step_elements(step, units + first, mine); });
}
