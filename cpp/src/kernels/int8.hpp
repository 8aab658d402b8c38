// Products with int8 weights: their other operand as integers, and sums of products of integers,
// which are exact in any order and on any instruction set.
//
// A row of the operand is cut into parts of int8_part of the depth. In a part, x becomes an integer
// of `int8_bits` bits and a sign times the part's unit: a power of two, such that the part's
// largest magnitude is below 2^int8_bits units. The integer is written as digits, signed and so
// short that 32 bits hold a part's sum of digits times weights: three of 8 bits for the instruction
// vpdpbusd, which multiplies bytes, else two of 12 bits in 16. Weights are stored with an offset of
// 128, because vpdpbusd takes one operand without a sign: sums begin from -128 times the digits'
// sum.

constexpr Index int8_part = 512;
constexpr int int8_bits = 22;
#if defined(__AVX512VNNI__)
constexpr bool int8_by_bytes = true;
#else
constexpr bool int8_by_bytes = false;
#endif
constexpr int int8_digits = int8_by_bytes ? 3 : 2, int8_digit_bits = int8_by_bytes ? 8 : 12;
// Words of a part: the unit; where each digit's sum begins; the digits, the lowest ones first.
constexpr Index int8_header = 1 + int8_digits;
constexpr Index int8_digit_words = int8_part / (int8_by_bytes ? 4 : 2);
constexpr Index int8_part_words = ceil_div(int8_header + int8_digits * int8_digit_words, 16) * 16;

using Int8Digit = std::conditional_t<int8_by_bytes, signed char, std::int16_t>;
template <int N>
struct Int8Digits {
  typedef Int8Digit Vec __attribute__((vector_size(N * sizeof(Int8Digit))));
};

// Words of an encoded row.
CHARRNN_INLINE Index int8_row_words(Index depth) {
  return ceil_div(depth, int8_part) * int8_part_words;
}

// The place in a word of a weight's byte, of four k. The halves of 16 bits have the bytes 0 and 2,
// and 1 and 3.
CHARRNN_INLINE constexpr int int8_place(int k) {
  constexpr int halves[4] = {0, 2, 1, 3};
  return int8_by_bytes ? k : halves[k];
}

template <class T>
struct Int8Sums {
  using V = Native<T>;
  using IntVec = typename V::IntVec;

#if defined(__AVX512VNNI__)
  // sum[i] += the four products of byte j of weights[i], unsigned, and of digits[i], signed.
  CHARRNN_INLINE static IntVec add_bytes(IntVec sum, IntVec weights, IntVec digits) {
    return (IntVec)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)weights, (__m512i)digits);
  }
#endif

  // sum[i] += the two products of the signed halves of a[i] and b[i].
  CHARRNN_INLINE static IntVec add_halves(IntVec sum, IntVec a, IntVec b) {
#if defined(__AVX512BW__)
    if constexpr (sizeof(IntVec) == 64)
      return sum + (IntVec)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#endif
#if defined(__AVX2__)
    if constexpr (sizeof(IntVec) == 32)
      return sum + (IntVec)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#endif
#if defined(__x86_64__)
    if constexpr (sizeof(IntVec) == 16) return sum + (IntVec)_mm_madd_epi16((__m128i)a, (__m128i)b);
#endif
    return sum + (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
  }

  // The sum of digits' sums, rounded once to float: doubles hold each of them, and the whole.
  CHARRNN_INLINE static V total(const IntVec* sums) {
    constexpr int half = V::lanes / 2;
    using Doubles = typename VectorTypes<double, half>::Vec;
    using Ints = typename VectorTypes<float, half>::IntVec;
    using Floats = typename VectorTypes<float, half>::Vec;
    constexpr double base = 1 << int8_digit_bits;
    V result;
    unroll<2>([&](auto side) __attribute__((always_inline)) {
      Doubles sum = {};
      unroll<int8_digits>([&](auto i) __attribute__((always_inline)) {
        Ints part;
        __builtin_memcpy(
            &part, reinterpret_cast<const char*>(&sums[int8_digits - 1 - i]) + side * sizeof part,
            sizeof part);
        sum = sum * base + __builtin_convertvector(part, Doubles);
      });
      const Floats rounded = __builtin_convertvector(sum, Floats);
      __builtin_memcpy(reinterpret_cast<char*>(&result.v) + side * sizeof rounded, &rounded,
                       sizeof rounded);
    });
    return result;
  }
};

// A part of a row, n <= int8_part, as integers; zeros past the end. A part that has a number that
// is not finite has the unit NaN.
template <class T>
CHARRNN_INLINE void encode_int8_part(const T* x, Index n, T* out) {
  using V = Native<T>;
  using IntVec = typename V::IntVec;
  constexpr std::int32_t infinity = 0x7f800000, bias = 127;
  constexpr int mantissa = 23, smallest = -100;
  IntVec largest = {};
  for (Index k = 0; k < n; k += V::lanes) {
    const IntVec size = V::load(x + k, n - k).bits() & 0x7fffffff;
    largest = size > largest ? size : largest;
  }
  std::int32_t most = 0;
  for (int i = 0; i < V::lanes; ++i) most = largest[i] > most ? largest[i] : most;
  const bool finite = most < infinity;
  // most < 2^exponent; numbers below 2^smallest are rounded to its units.
  std::int32_t exponent = (most >> mantissa) - (bias - 1);
  if (exponent < smallest) exponent = smallest;
  const auto power = [](std::int32_t e) __attribute__((always_inline)) {
    const std::int32_t bits = (e + bias) << mantissa;
    float value;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
  };
  out[0] = finite ? power(exponent - int8_bits) : __builtin_nanf("");
  const V by = V(finite ? power(int8_bits - exponent) : 0.0f);
  const V magic = V(12582912.0f);  // 1.5 * 2^23: the floats around it are integers
  IntVec sums[int8_digits] = {};
  auto* const digits = reinterpret_cast<char*>(out + int8_header);
  using Digit = Int8Digit;
  using Digits = typename Int8Digits<V::lanes>::Vec;
  const Index whole = ceil_div(n, 4) * 4;
  for (Index k = 0; k < whole; k += V::lanes) {
    IntVec rest = {};
    if (finite) rest = (V::load(x + k, n - k) * by + magic).bits() - magic.bits();
    unroll<int8_digits>([&](auto i) __attribute__((always_inline)) {
      IntVec digit = rest;
      if constexpr (i + 1 < int8_digits) {
        constexpr int unused = 32 - int8_digit_bits;
        digit = rest << unused >> unused;
        rest = (rest - digit) >> int8_digit_bits;
      }
      sums[i] += digit;
      const Digits narrow = __builtin_convertvector(digit, Digits);
      __builtin_memcpy(digits + (i * int8_part + k) * Index(sizeof(Digit)), &narrow, sizeof narrow);
    });
  }
  for (int i = 0; i < int8_digits; ++i) {
    std::int32_t begin = 0;
    for (int lane = 0; lane < V::lanes; ++lane) begin -= 128 * sums[i][lane];
    __builtin_memcpy(out + 1 + i, &begin, sizeof begin);
  }
}

// out [int8_row_words(depth)] = the row x [depth], as integers.
template <class T>
CHARRNN_INLINE void encode_int8_row(const T* x, Index depth, T* out) {
  for (Index k = 0; k < depth; k += int8_part, out += int8_part_words)
    encode_int8_part(x + k, min_of(int8_part, depth - k), out);
}

// Rows of a product's operand as integers, as many as the memory holds: a block of rows, and a
// block of the depth of a plain product.
template <class T>
struct Int8Rows {
  static constexpr Index parts = 24;                  // some 50 KB of a stack
  static constexpr Index widest = parts * int8_part;  // of a row
  alignas(64) T words[parts * int8_part_words];

  // Rows that fit.
  CHARRNN_INLINE static Index most_rows(Index depth) {
    return max_of(parts / max_of(ceil_div(depth, int8_part), 1), 1);
  }
  CHARRNN_INLINE void encode(const T* a, Index a_stride, Index rows, Index depth) {
    for (Index r = 0; r < rows; ++r)
      encode_int8_row(a + r * a_stride, depth, words + r * int8_row_words(depth));
  }
};

// ---- packing ------------------------------------------------------------------------------

// The scale of a row of n weights as int8; NaN if one of them is.
template <class T>
CHARRNN_INLINE float int8_scale(const T* w, Index depth_stride, Index n) {
  float most = 0;
  for (Index k = 0; k < n && most == most; ++k) {
    const float x = static_cast<float>(w[k * depth_stride]), size = x < 0 ? -x : x;
    if (!(size <= most)) most = size;
  }
  float scale = most / 127;
  if (scale != scale) return scale;
  std::uint32_t bits;
  __builtin_memcpy(&bits, &scale, sizeof bits);
  bits &= ~0xffu;
  __builtin_memcpy(&scale, &bits, sizeof scale);
  return scale;
}

// x / scale, rounded to nearest, ties to even; 0 if the scale is 0 or not finite.
CHARRNN_INLINE std::int32_t to_int8(float x, float scale) {
  constexpr float whole = 12582912;  // 1.5 * 2^23: floats around it are integers
  if (!(scale > 0 && scale - scale == 0)) return 0;
  const float q = (x / scale + whole) - whole;
  return static_cast<std::int32_t>(q > 127 ? 127 : q < -127 ? -127 : q);
}

// out: where the vector's scales go; the words of the first four k are out_stride behind.
template <class T>
void pack_units_int8(const T* w, Index row_stride, Index depth_stride, Index n, Index depth, T* out,
                     Index out_stride) {
  for (Index i = 0; i < Native<T>::lanes; ++i) {
    const T* const row = w + i * row_stride;
    const float scale = i < n ? int8_scale(row, depth_stride, depth) : 0.0f;
    out[i] = static_cast<T>(scale);
    for (Index k = 0, at = out_stride; k < depth; k += 4, at += out_stride) {
      std::uint32_t word = 0;
      for (int j = 0; j < 4; ++j) {
        std::int32_t weight = 0;
        if (k + j < depth && i < n)
          weight = to_int8(static_cast<float>(row[(k + j) * depth_stride]), scale);
        word |= static_cast<std::uint32_t>(weight + 128) << 8 * int8_place(j);
      }
      __builtin_memcpy(out + at + i, &word, sizeof word);
    }
  }
}
