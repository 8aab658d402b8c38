// Pack<T, N>: N lanes of float or double with the operators and functions that math.hpp and
// cells.hpp ask of a value type, over the vector extensions of GCC and Clang.
//
// Included once per instruction set, inside that set's namespace and an anonymous one (see
// isa.hpp): no other object file may see this code. Every operation works lane by lane with IEEE
// 754 rounding. `fma` rounds once if the set has the instruction, else twice (product, then sum;
// x86-64-v2).
//
// Partial loads and stores take the number of lanes. Lanes past it read as 0 and are not written.

template <class T>
struct BitsOf;
template <>
struct BitsOf<float> {
  using Int = std::int32_t;
  using Uint = std::uint32_t;
};
template <>
struct BitsOf<double> {
  using Int = std::int64_t;
  using Uint = std::uint64_t;
};

template <class T, int N>
struct VectorTypes {
  using Int = typename BitsOf<T>::Int;
  typedef T Vec __attribute__((vector_size(N * sizeof(T))));
  typedef T UnalignedVec __attribute__((vector_size(N * sizeof(T)), aligned(sizeof(T)), may_alias));
  typedef Int IntVec __attribute__((vector_size(N * sizeof(T))));
  typedef typename BitsOf<T>::Uint UintVec __attribute__((vector_size(N * sizeof(T))));
  typedef Bfloat16 HalfVec __attribute__((vector_size(N * sizeof(Bfloat16))));
};

template <class T, int N>
struct Pack {
  using Scalar = T;
  using Vec = typename VectorTypes<T, N>::Vec;
  using UnalignedVec = typename VectorTypes<T, N>::UnalignedVec;
  using IntVec = typename VectorTypes<T, N>::IntVec;
  using UintVec = typename VectorTypes<T, N>::UintVec;
  static constexpr int lanes = N;

  Vec v;

  CHARRNN_INLINE Pack() = default;
  CHARRNN_INLINE Pack(Vec vec) : v(vec) {}
  CHARRNN_INLINE explicit Pack(T x) : v(broadcast(x)) {}

  CHARRNN_INLINE static Pack load(const T* p) {
    return Pack(*reinterpret_cast<const UnalignedVec*>(p));
  }
  CHARRNN_INLINE void store(T* p) const { *reinterpret_cast<UnalignedVec*>(p) = v; }

  // At any address, of bytes.
  CHARRNN_INLINE static IntVec load_bits(const void* p) {
    typedef IntVec AnyVec __attribute__((aligned(1), may_alias));
    return *static_cast<const AnyVec*>(p);
  }
  CHARRNN_INLINE static Pack from_integers(IntVec x) {
    return Pack(__builtin_convertvector(x, Vec));
  }

  CHARRNN_INLINE static Pack load(const T* p, Index count) {
    if (count >= N) return load(p);
#if defined(__AVX512F__)
    if constexpr (sizeof(Vec) == 64 && sizeof(T) == 4)
      return Pack((Vec)_mm512_maskz_loadu_ps(lane_mask(count), p));
    if constexpr (sizeof(Vec) == 64 && sizeof(T) == 8)
      return Pack((Vec)_mm512_maskz_loadu_pd(lane_mask(count), p));
#endif
    alignas(sizeof(Vec)) T lane[N] = {};
    if (count > 0) __builtin_memcpy(lane, p, static_cast<std::size_t>(count) * sizeof(T));
    return load(lane);
  }
  CHARRNN_INLINE void store(T* p, Index count) const {
    if (count >= N) return store(p);
#if defined(__AVX512F__)
    if constexpr (sizeof(Vec) == 64 && sizeof(T) == 4)
      return _mm512_mask_storeu_ps(p, lane_mask(count), v);
    if constexpr (sizeof(Vec) == 64 && sizeof(T) == 8)
      return _mm512_mask_storeu_pd(p, lane_mask(count), v);
#endif
    alignas(sizeof(Vec)) T lane[N];
    store(lane);
    if (count > 0) __builtin_memcpy(p, lane, static_cast<std::size_t>(count) * sizeof(T));
  }

  // Lanes from `count` on become 0.
  CHARRNN_INLINE Pack first(Index count) const {
    if (count >= N) return *this;
    alignas(sizeof(Vec)) T lane[N];
    store(lane);
    for (Index i = count; i < N; ++i) lane[i] = T(0);
    return load(lane);
  }

  CHARRNN_INLINE static Vec broadcast(T x) {
    return x - Vec{};  // exact for -0 too; one instruction, unlike a loop over lanes
  }
  CHARRNN_INLINE static Pack from_bits(IntVec bits) { return Pack((Vec)bits); }
  CHARRNN_INLINE IntVec bits() const { return (IntVec)v; }
  CHARRNN_INLINE static IntVec sign_bits() { return Pack(T(-0.0)).bits(); }

  CHARRNN_INLINE friend Pack operator+(Pack a, Pack b) { return Pack(a.v + b.v); }
  CHARRNN_INLINE friend Pack operator-(Pack a, Pack b) { return Pack(a.v - b.v); }
  CHARRNN_INLINE friend Pack operator*(Pack a, Pack b) { return Pack(a.v * b.v); }
  CHARRNN_INLINE friend Pack operator/(Pack a, Pack b) { return Pack(a.v / b.v); }
  CHARRNN_INLINE friend Pack operator-(Pack a) { return from_bits(a.bits() ^ sign_bits()); }

  // As in math.hpp: b if either is NaN.
  CHARRNN_INLINE friend Pack max(Pack a, Pack b) {
#if defined(__AVX512F__)
    if constexpr (sizeof(Vec) == 64 && sizeof(T) == 4)
      return Pack((Vec)_mm512_maskz_max_ps(0xffff, a.v, b.v));
    if constexpr (sizeof(Vec) == 64 && sizeof(T) == 8)
      return Pack((Vec)_mm512_maskz_max_pd(0xff, a.v, b.v));
#endif
#if defined(__AVX2__)
    if constexpr (sizeof(Vec) == 32 && sizeof(T) == 4) return Pack((Vec)_mm256_max_ps(a.v, b.v));
    if constexpr (sizeof(Vec) == 32 && sizeof(T) == 8) return Pack((Vec)_mm256_max_pd(a.v, b.v));
#endif
    return Pack(a.v > b.v ? a.v : b.v);
  }
  CHARRNN_INLINE friend Pack min(Pack a, Pack b) {
#if defined(__AVX512F__)
    if constexpr (sizeof(Vec) == 64 && sizeof(T) == 4)
      return Pack((Vec)_mm512_maskz_min_ps(0xffff, a.v, b.v));
    if constexpr (sizeof(Vec) == 64 && sizeof(T) == 8)
      return Pack((Vec)_mm512_maskz_min_pd(0xff, a.v, b.v));
#endif
#if defined(__AVX2__)
    if constexpr (sizeof(Vec) == 32 && sizeof(T) == 4) return Pack((Vec)_mm256_min_ps(a.v, b.v));
    if constexpr (sizeof(Vec) == 32 && sizeof(T) == 8) return Pack((Vec)_mm256_min_pd(a.v, b.v));
#endif
    return Pack(a.v < b.v ? a.v : b.v);
  }
  CHARRNN_INLINE friend Pack abs(Pack a) { return from_bits(a.bits() & ~sign_bits()); }
  CHARRNN_INLINE friend Pack copysign(Pack a, Pack sign) {
    return from_bits((a.bits() & ~sign_bits()) | (sign.bits() & sign_bits()));
  }
  CHARRNN_INLINE friend Pack select_negative(Pack x, Pack a, Pack b) {
    return Pack(x.bits() < 0 ? a.v : b.v);
  }
  CHARRNN_INLINE friend Pack select_positive(Pack x, Pack a, Pack b) {
    return Pack(x.v > broadcast(T(0)) ? a.v : b.v);
  }
  CHARRNN_INLINE friend Pack pow2(Pack n) {
    using F = FloatBits<T>;
    return from_bits((n + Pack(F::round_magic + T(F::bias))).bits() << F::mantissa);
  }

  CHARRNN_INLINE friend Pack scale(Pack x, Pack n) {
#if defined(__AVX512F__)
    if constexpr (sizeof(Vec) == 64 && sizeof(T) == 4)
      return Pack((Vec)_mm512_maskz_scalef_ps(0xffff, x.v, n.v));
    if constexpr (sizeof(Vec) == 64 && sizeof(T) == 8)
      return Pack((Vec)_mm512_maskz_scalef_pd(0xff, x.v, n.v));
#endif
    return scale_in_halves(x, n);
  }
  CHARRNN_INLINE friend Pack scale_down(Pack x, Pack n) {
#if defined(__AVX512F__)
    if constexpr (sizeof(Vec) == 64) return scale(x, n);
#endif
    return charrnn_fast::scale_down<Pack>(x, n);
  }

  CHARRNN_INLINE friend Pack fma(Pack a, Pack b, Pack c) { return Pack(fused(a.v, b.v, c.v)); }

  // fma of factors that are bfloat16: rounded once on every set.
  CHARRNN_INLINE friend Pack fma_bfloat16(Pack a, Pack b, Pack c) {
#if defined(__FMA__) || defined(__aarch64__)
    return fma(a, b, c);
#else
    Pack r;
    for (int i = 0; i < N; ++i) r.v[i] = fused_once(a.v[i], b.v[i], c.v[i]);
    return r;
#endif
  }

  // The words of a product's operand with bfloat16: x of an even k, rounded, in the low half, that
  // of the odd k after it in the high half.
  CHARRNN_INLINE static Pack words(Pack even, Pack odd) {
    return from_bits((IntVec)((UintVec)to_bfloat16(even).bits() >> 16) | to_bfloat16(odd).bits());
  }
  // x rounded to bfloat16 for a product: to nearest, ties to even, subnormal x to zero.
  CHARRNN_INLINE friend Pack to_bfloat16(Pack x) {
    static_assert(sizeof(T) == 4);
    const UintVec bits = (UintVec)x.v, magnitude = bits & 0x7fffffff;
    const UintVec nearest = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;
    const UintVec normal = magnitude > 0x7f800000 ? ((bits & 0xffff0000) | 0x400000) : nearest;
    return Pack((Vec)(magnitude < 0x00800000 ? (bits & 0x80000000) : normal));
  }
  // The same, stored as bfloat16.
  CHARRNN_INLINE void store_bfloat16(Bfloat16* p, Index count) const {
    static_assert(sizeof(T) == 4);
    using HalfVec = typename VectorTypes<T, N>::HalfVec;
#if defined(__AVX512BF16__)
    const HalfVec halves = (HalfVec)_mm512_cvtneps_pbh((__m512)v);
#else
    const UintVec high = (UintVec)to_bfloat16(*this).bits() >> 16;
    const HalfVec halves = __builtin_convertvector(high, HalfVec);
#endif
    const Index n = count < N ? count : N;
    if (n == N)
      __builtin_memcpy(p, &halves, sizeof halves);
    else if (n > 0)
      __builtin_memcpy(p, &halves, static_cast<std::size_t>(n) * sizeof(Bfloat16));
  }
  CHARRNN_INLINE friend Pack sqrt(Pack a) {
#if defined(__AVX512F__)
    if constexpr (sizeof(Vec) == 64 && sizeof(T) == 4)
      return Pack((Vec)_mm512_maskz_sqrt_ps(0xffff, a.v));
    if constexpr (sizeof(Vec) == 64 && sizeof(T) == 8)
      return Pack((Vec)_mm512_maskz_sqrt_pd(0xff, a.v));
#endif
#if defined(__AVX2__)
    if constexpr (sizeof(Vec) == 32 && sizeof(T) == 4) return Pack((Vec)_mm256_sqrt_ps(a.v));
    if constexpr (sizeof(Vec) == 32 && sizeof(T) == 8) return Pack((Vec)_mm256_sqrt_pd(a.v));
#endif
    Pack r;
    for (int i = 0; i < N; ++i) r.v[i] = root(a.v[i]);
    return r;
  }

  // Sum and maximum of the lanes in a fixed order: halves, then halves of halves.
  CHARRNN_INLINE T sum() const {
    T lane[N];
    store(lane);
    for (int width = N / 2; width > 0; width /= 2)
      for (int i = 0; i < width; ++i) lane[i] = lane[i] + lane[i + width];
    return lane[0];
  }
  CHARRNN_INLINE T maximum() const {
    T lane[N];
    store(lane);
    for (int i = 1; i < N; ++i) lane[0] = lane[i] > lane[0] ? lane[i] : lane[0];
    return lane[0];
  }

 private:
#if defined(__AVX512F__)
  CHARRNN_INLINE static unsigned short lane_mask(Index count) {
    return static_cast<unsigned short>((1u << (count > 0 ? count : 0)) - 1u);
  }
#endif
  CHARRNN_INLINE static float root(float x) { return __builtin_sqrtf(x); }
  CHARRNN_INLINE static double root(double x) { return __builtin_sqrt(x); }
#if !defined(__FMA__) && !defined(__aarch64__)
  // In double the product is exact. The sum is rounded to odd (Boldo and Melquiond 2008, "Emulation
  // of FMA and correctly rounded sums: proved algorithms using rounding to odd"), then to float.
  // Not inlined: a tile would have hundreds of copies.
  __attribute__((noinline)) static float fused_once(float a, float b, float c) {
    const double product = double(a) * double(b), sum = product + double(c);
    const double part = sum - product;
    const double error = (product - (sum - part)) + (double(c) - part);
    std::int64_t bits;
    __builtin_memcpy(&bits, &sum, sizeof bits);
    if (sum - sum == 0 && error != 0 && bits % 2 == 0) bits += (error > 0) == (sum > 0) ? 1 : -1;
    double odd;
    __builtin_memcpy(&odd, &bits, sizeof odd);
    return static_cast<float>(odd);
  }
#endif

  CHARRNN_INLINE static Vec fused(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
    if constexpr (sizeof(Vec) == 64 && sizeof(T) == 4) return (Vec)_mm512_fmadd_ps(a, b, c);
    if constexpr (sizeof(Vec) == 64 && sizeof(T) == 8) return (Vec)_mm512_fmadd_pd(a, b, c);
#endif
#if defined(__FMA__)
    if constexpr (sizeof(Vec) == 32 && sizeof(T) == 4) return (Vec)_mm256_fmadd_ps(a, b, c);
    if constexpr (sizeof(Vec) == 32 && sizeof(T) == 8) return (Vec)_mm256_fmadd_pd(a, b, c);
#endif
#if defined(__aarch64__)
    if constexpr (sizeof(Vec) == 16 && sizeof(T) == 4) return (Vec)vfmaq_f32(c, a, b);
    if constexpr (sizeof(Vec) == 16 && sizeof(T) == 8) return (Vec)vfmaq_f64(c, a, b);
#endif
    return a * b + c;
  }
};

// Swaps, in every other block of M lanes, a's block and the block of b before it; returns one of
// the two results.
template <class T, int N, int M, bool second, int... J>
CHARRNN_INLINE Pack<T, N> exchange(Pack<T, N> a, Pack<T, N> b, std::integer_sequence<int, J...>) {
  using IntVec = typename Pack<T, N>::IntVec;
  constexpr auto from = [](int j) {
    return second ? (j & M ? N + j : j + M) : (j & M ? N + j - M : j);
  };
#if defined(__clang__)
  return Pack<T, N>(__builtin_shufflevector(a.v, b.v, from(J)...));
#else
  return Pack<T, N>(__builtin_shuffle(a.v, b.v, IntVec{from(J)...}));
#endif
}

// Transposes the N x N matrix whose rows are the vectors, by blocks of 1, 2, 4, ... lanes.
template <int M = 1, class T, int N>
CHARRNN_INLINE void transpose(Pack<T, N> (&rows)[N]) {
  if constexpr (M < N) {
    unroll<N>([&](auto i) __attribute__((always_inline)) {
      if constexpr ((i.value & M) == 0) {
        const Pack<T, N> a = rows[i], b = rows[i + M];
        constexpr auto lanes = std::make_integer_sequence<int, N>();
        rows[i] = exchange<T, N, M, false>(a, b, lanes);
        rows[i + M] = exchange<T, N, M, true>(a, b, lanes);
      }
    });
    transpose<2 * M>(rows);
  }
}

// The widest pack of the instruction set.
template <class T>
using Native = Pack<T, vector_bytes / static_cast<int>(sizeof(T))>;
