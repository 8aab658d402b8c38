// Several<V, N>: N packs as one value type. The operations of its packs alternate in the code, so a
// processor that looks only some instructions ahead runs them at once: a chain of dependent
// operations, such as a tanh, takes no longer for two packs than for one.
//
// GCC's expressions of temporaries undo the alternation; CHARRNN_IN_ORDER keeps it in a function.
#if defined(__GNUC__) && !defined(__clang__)
#define CHARRNN_IN_ORDER __attribute__((optimize("no-tree-ter")))
#else
#define CHARRNN_IN_ORDER
#endif

template <class V, int N>
struct Several {
  using Scalar = typename V::Scalar;

  V v[N];

  CHARRNN_INLINE Several() = default;
  CHARRNN_INLINE explicit Several(Scalar x) {
    for (int i = 0; i < N; ++i) v[i] = V(x);
  }

  template <class F, class... A>
  CHARRNN_INLINE static Several each(F&& f, const A&... a) {
    Several result;
    unroll<N>([&](auto i) __attribute__((always_inline)) { result.v[i] = f(a.v[i]...); });
    return result;
  }
#define CHARRNN_EACH(call, ...)                                                              \
  {                                                                                          \
    return each([](auto... p) __attribute__((always_inline)) { return call; }, __VA_ARGS__); \
  }
  CHARRNN_INLINE friend Several operator+(Several a, Several b) CHARRNN_EACH((p + ...), a, b)
      CHARRNN_INLINE friend Several operator-(Several a, Several b) CHARRNN_EACH((p - ...), a, b)
          CHARRNN_INLINE friend Several operator*(Several a, Several b)
              CHARRNN_EACH((p * ...), a, b)
                  CHARRNN_INLINE friend Several operator/(Several a, Several b)
                      CHARRNN_EACH((p / ...), a, b)
                          CHARRNN_INLINE friend Several operator-(Several a)
                              CHARRNN_EACH((-p, ...), a) CHARRNN_INLINE friend Several
      fma(Several a, Several b, Several c) CHARRNN_EACH(fma(p...), a, b, c)
          CHARRNN_INLINE friend Several max(Several a, Several b) CHARRNN_EACH(max(p...), a, b)
              CHARRNN_INLINE friend Several min(Several a, Several b) CHARRNN_EACH(min(p...), a, b)
                  CHARRNN_INLINE friend Several abs(Several a) CHARRNN_EACH(abs(p...), a)
                      CHARRNN_INLINE friend Several sqrt(Several a) CHARRNN_EACH(sqrt(p...), a)
                          CHARRNN_INLINE friend Several copysign(Several a, Several b)
                              CHARRNN_EACH(copysign(p...), a, b) CHARRNN_INLINE friend Several
      select_negative(Several x, Several a, Several b) CHARRNN_EACH(select_negative(p...), x, a, b)
          CHARRNN_INLINE friend Several select_positive(Several x, Several a, Several b)
              CHARRNN_EACH(select_positive(p...), x, a, b) CHARRNN_INLINE friend Several
      pow2(Several n) CHARRNN_EACH(pow2(p...), n) CHARRNN_INLINE friend Several
      scale(Several x, Several n) CHARRNN_EACH(scale(p...), x, n) CHARRNN_INLINE friend Several
      scale_down(Several x, Several n) CHARRNN_EACH(scale_down(p...), x, n)
#undef CHARRNN_EACH
};
