// exp, sigmoid, tanh and softplus for any value type V: float, double, a SIMD pack, a scalar of a
// CUDA thread.
//
// A value type needs its operators and these functions, found by argument-dependent lookup: fma,
// max, min, abs, copysign, select_negative(x, a, b) (a if x has its sign bit set, else b),
// select_positive(x, a, b) (a if x > 0, else b); and, for a V of small whole numbers, pow2 (2^n)
// and scale (x 2^n). `Scalar<V>` is the type of one lane. The code has no branches: every lane of a
// pack computes what the same code computes for one number.
//
// Largest error, in units in the last place of the result. Found by an exhaustive search of
// float32: for tanh all values, for exp, sigmoid and softplus all with |x| in [2^-10, 128]. The
// test suite repeats a sample, or on request the whole search:
//             float32
//   exp       1.02 ulp
//   sigmoid   2.41 ulp
//   tanh      2.61 ulp
//   softplus  2.87 ulp
// Results below the normal range are rounded into the subnormals, not flushed to zero.
#pragma once

#include <cstdint>
#include <cstring>

#include "charrnn_fast/config.hpp"

#if !defined(__CUDACC__)
#include <cmath>
#endif

namespace charrnn_fast {

// The errors of the table above, for tests and documents.
struct MathUlpBounds {
  static constexpr double exp = 1.02, sigmoid = 2.41, tanh = 2.61, softplus = 2.87;
};

template <class V>
struct ScalarOf {
  using type = typename V::Scalar;
};
template <>
struct ScalarOf<float> {
  using type = float;
};
template <>
struct ScalarOf<double> {
  using type = double;
};
template <class V>
using Scalar = typename ScalarOf<V>::type;

// ---- float and double as value types ------------------------------------------------------

template <class T>
struct FloatBits;
template <>
struct FloatBits<float> {
  using Bits = std::uint32_t;
  static constexpr int mantissa = 23, bias = 127;
  static constexpr float round_magic = 0x1.8p23f;  // adding it rounds to a whole number
};
template <>
struct FloatBits<double> {
  using Bits = std::uint64_t;
  static constexpr int mantissa = 52, bias = 1023;
  static constexpr double round_magic = 0x1.8p52;
};

#if defined(__CUDA_ARCH__)
CHARRNN_INLINE float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
CHARRNN_INLINE double fma(double a, double b, double c) { return __fma_rn(a, b, c); }
CHARRNN_INLINE float abs(float x) { return ::fabsf(x); }
CHARRNN_INLINE double abs(double x) { return ::fabs(x); }
CHARRNN_INLINE float sqrt(float x) { return ::sqrtf(x); }
CHARRNN_INLINE double sqrt(double x) { return ::sqrt(x); }
CHARRNN_INLINE float copysign(float x, float s) { return ::copysignf(x, s); }
CHARRNN_INLINE double copysign(double x, double s) { return ::copysign(x, s); }
#else
CHARRNN_INLINE float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
CHARRNN_INLINE double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
CHARRNN_INLINE float abs(float x) { return __builtin_fabsf(x); }
CHARRNN_INLINE double abs(double x) { return __builtin_fabs(x); }
CHARRNN_INLINE float sqrt(float x) { return __builtin_sqrtf(x); }
CHARRNN_INLINE double sqrt(double x) { return __builtin_sqrt(x); }
CHARRNN_INLINE float copysign(float x, float s) { return __builtin_copysignf(x, s); }
CHARRNN_INLINE double copysign(double x, double s) { return __builtin_copysign(x, s); }
#endif

// max(a, b) and min(a, b) give b if either is NaN, as on x86. With the variable second, a clamp
// passes NaN through.
CHARRNN_INLINE float max(float a, float b) { return a > b ? a : b; }
CHARRNN_INLINE double max(double a, double b) { return a > b ? a : b; }
CHARRNN_INLINE float min(float a, float b) { return a < b ? a : b; }
CHARRNN_INLINE double min(double a, double b) { return a < b ? a : b; }

CHARRNN_INLINE float select_negative(float x, float a, float b) {
  return copysign(1.0f, x) < 0.0f ? a : b;
}
CHARRNN_INLINE double select_negative(double x, double a, double b) {
  return copysign(1.0, x) < 0.0 ? a : b;
}
CHARRNN_INLINE float select_positive(float x, float a, float b) { return x > 0.0f ? a : b; }
CHARRNN_INLINE double select_positive(double x, double a, double b) { return x > 0.0 ? a : b; }

// 2^n for a whole number n with |n| <= bias. Adds n to a number whose last bits are the exponent's
// bias, and shifts the sum into the exponent.
template <class T>
CHARRNN_INLINE T pow2_scalar(T n) {
  using F = FloatBits<T>;
  const T shifted = n + (F::round_magic + static_cast<T>(F::bias));
  typename F::Bits bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits <<= F::mantissa;
  T result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}
CHARRNN_INLINE float pow2(float n) { return pow2_scalar(n); }
CHARRNN_INLINE double pow2(double n) { return pow2_scalar(n); }

// x 2^n by two factors, so that n may exceed the exponent's range on either side.
template <class V>
CHARRNN_INLINE V scale_in_halves(V x, V n) {
  using T = Scalar<V>;
  const V magic = V(FloatBits<T>::round_magic);
  const V half = fma(n, V(T(0.5)), magic) - magic;
  return x * pow2(half) * pow2(n - half);
}
CHARRNN_INLINE float scale(float x, float n) { return scale_in_halves(x, n); }
CHARRNN_INLINE double scale(double x, double n) { return scale_in_halves(x, n); }

// x 2^n for n <= 0, by two powers above the subnormals, of which one is a constant. A value type
// may have a faster one.
template <class V>
CHARRNN_INLINE V scale_down(V x, V n) {
  using T = Scalar<V>;
  return x * pow2(n + V(T(64))) * V(T(0x1p-64));
}

namespace math {

// ---- the shared core: x = n ln 2 + r, |r| <= ln 2 / 2 -------------------------------------

template <class T>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  static constexpr float inv_ln2 = 1.44269504f;
  static constexpr float ln2_hi = 0.693359375f,
                         ln2_lo = -2.12194440e-4f;           // hi: 12 bits, n hi exact
  static constexpr float lowest = -104.0f, highest = 89.0f;  // e^x is 0, infinite
  static constexpr float tanh_highest = 10.0f;               // tanh rounds to 1
};
template <>
struct ExpConstants<double> {
  static constexpr double inv_ln2 = 1.4426950408889634;
  static constexpr double ln2_hi = 0x1.62e42fefa0000p-1, ln2_lo = 1.6465949582897082e-12;
  static constexpr double lowest = -746.0, highest = 710.0;
  static constexpr double tanh_highest = 20.0;
};

// (e^r - 1 - r) / r^2: minimax for the relative error of e^r (Lawson iteration), which is
// 0.05 / 2^24 for float and 0.04 / 2^53 for double.
template <class V>
CHARRNN_INLINE V exp_tail(V r, float) {
  V q = V(0.0013814454f);
  q = fma(q, r, V(0.008368782f));
  q = fma(q, r, V(0.041668393f));
  q = fma(q, r, V(0.1666652f));
  return fma(q, r, V(0.49999994f));
}
template <class V>
CHARRNN_INLINE V exp_tail(V r, double) {
  V q = V(2.4999989442466343e-08);
  q = fma(q, r, V(2.763038157136265e-07));
  q = fma(q, r, V(2.7557587382455563e-06));
  q = fma(q, r, V(2.4801492753957597e-05));
  q = fma(q, r, V(0.00019841269504806576));
  q = fma(q, r, V(0.001388888894393179));
  q = fma(q, r, V(0.008333333333495622));
  q = fma(q, r, V(0.04166666666652915));
  q = fma(q, r, V(0.1666666666666641));
  return fma(q, r, V(0.5000000000000011));
}

template <class V>
struct Reduced {
  V n;           // whole number
  V exp_minus1;  // e^r - 1
};

template <class V>
CHARRNN_INLINE Reduced<V> reduce(V x) {
  using T = Scalar<V>;
  using C = ExpConstants<T>;
  const V magic = V(FloatBits<T>::round_magic);
  const V n = fma(x, V(C::inv_ln2), magic) - magic;
  V r = fma(n, V(-C::ln2_hi), x);
  r = fma(n, V(-C::ln2_lo), r);
  return {n, fma(exp_tail(r, T()), r * r, r)};
}

template <class V>
CHARRNN_INLINE V exp(V x) {
  using T = Scalar<V>;
  using C = ExpConstants<T>;
  const Reduced<V> e = reduce(min(V(C::highest), max(V(C::lowest), x)));
  return scale(V(T(1)) + e.exp_minus1, e.n);
}

// The same bits for x <= 0, with less work.
template <class V>
CHARRNN_INLINE V exp_below_0(V x) {
  using T = Scalar<V>;
  const Reduced<V> e = reduce(max(V(ExpConstants<T>::lowest), x));
  return scale_down(V(T(1)) + e.exp_minus1, e.n);
}

// 1 / (1 + e^-x). Uses e^-|x| on both sides of zero: no overflow.
template <class V>
CHARRNN_INLINE V sigmoid(V x) {
  using T = Scalar<V>;
  const V e = exp_below_0(-abs(x));
  // 1 if x >= 0, else e. NaN passes through either factor.
  const V numerator = select_negative(x, e, V(T(1)));
  return numerator / (V(T(1)) + e);
}

// (e^2a - 1) / (e^2a + 1) with a = |x|. e^2a - 1 is computed without cancellation.
template <class V>
CHARRNN_INLINE V tanh(V x) {
  using T = Scalar<V>;
  const V a = min(V(ExpConstants<T>::tanh_highest), abs(x));
  const Reduced<V> e = reduce(a + a);
  const V scale = pow2(e.n);
  const V exp_minus1 = fma(scale, e.exp_minus1, scale - V(T(1)));
  return copysign(exp_minus1 / (exp_minus1 + V(T(2))), x);
}

// (log(1 + e) - u) / u^3 as a polynomial in u^2, with u as in log1p_unit: minimax for the relative
// error of log(1 + e) (Remez exchange), which is 0.08 / 2^24 for float and 0.03 / 2^53 for double.
template <class V>
CHARRNN_INLINE V log1p_tail(V u2, float) {
  V q = V(0.0005471094f);
  q = fma(q, u2, V(0.0021876406f));
  q = fma(q, u2, V(0.012506727f));
  return fma(q, u2, V(0.08333302f));
}
template <class V>
CHARRNN_INLINE V log1p_tail(V u2, double) {
  V q = V(8.110869520106481e-08);
  q = fma(q, u2, V(1.5916804708691005e-07));
  q = fma(q, u2, V(9.235336490053391e-07));
  q = fma(q, u2, V(4.0591803111427076e-06));
  q = fma(q, u2, V(1.8782407635416708e-05));
  q = fma(q, u2, V(8.877804922958758e-05));
  q = fma(q, u2, V(0.00043402781159258293));
  q = fma(q, u2, V(0.0022321428553218835));
  q = fma(q, u2, V(0.012500000000048467));
  return fma(q, u2, V(0.08333333333333288));
}

// log(1 + e) for 0 <= e <= 1, as 2 atanh(u / 2) with u = 2e / (2 + e), at most 2/3. A tiny e is
// returned unchanged.
template <class V>
CHARRNN_INLINE V log1p_unit(V e) {
  using T = Scalar<V>;
  const V u = (e + e) / (e + V(T(2)));
  const V u2 = u * u;
  return fma(u * u2, log1p_tail(u2, T()), u);
}

// log(1 + e^x). Uses e^-|x| on both sides of zero: no overflow.
template <class V>
CHARRNN_INLINE V softplus_minus_abs(V x) {  // softplus(-|x|)
  return log1p_unit(exp_below_0(-abs(x)));
}
template <class V>
CHARRNN_INLINE V softplus(V x) {
  using T = Scalar<V>;
  return max(V(T(0)), x) + softplus_minus_abs(x);
}

}  // namespace math
}  // namespace charrnn_fast
