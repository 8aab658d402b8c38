// unroll<N>(f) calls f(0), f(1), ... f(N - 1) with the index as a compile-time constant.
// Accumulators indexed so stay in registers; under an unroll pragma GCC keeps such arrays in
// memory. Included inside the instruction set's namespace, like pack.hpp.

template <int I>
struct Constant {
  static constexpr int value = I;
  CHARRNN_INLINE constexpr operator int() const { return I; }
};

template <int... I, class F>
CHARRNN_INLINE void unroll_all(std::integer_sequence<int, I...>, F&& f) {
  (f(Constant<I>()), ...);
}

template <int N, class F>
CHARRNN_INLINE void unroll(F&& f) {
  unroll_all(std::make_integer_sequence<int, N>(), f);
}
