// Layer normalization of rows (Ba, Kiros and Hinton 2016): forward and, under it, backward.

// The variance is at least this.
template <class T>
constexpr T norm_epsilon = T(1e-5);

// The sum of f(j) over the vectors of n elements: four chains, then the lanes.
template <class T, class F>
CHARRNN_INLINE T sum_of(Index n, F&& f) {
  using V = Native<T>;
  constexpr int chains = 4;
  V sums[chains];
  unroll<chains>([&](auto i) __attribute__((always_inline)) { sums[i] = V(T(0)); });
  for (Index j = 0; j < n; j += chains * V::lanes)
    unroll<chains>([&](auto i) __attribute__((always_inline)) {
      const Index at = j + i * V::lanes;
      if (at < n) sums[i] = sums[i] + f(at).first(n - at);
    });
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])).sum();
}

template <class T>
CHARRNN_INLINE void copy_row(const T* from, Index n, T* to) {
  using V = Native<T>;
  for (Index j = 0; j < n; j += V::lanes) V::load(from + j, n - j).store(to + j, n - j);
}

// x = (x - mean) / sqrt(variance + epsilon), for a row of n; also the divisor's inverse.
template <class T>
void normalize(T* x, Index n, T* inverse) {
  using V = Native<T>;
  if (n == 0) return;
  const auto at = [&](Index j) __attribute__((always_inline)) { return V::load(x + j, n - j); };
  const V mean = V(sum_of<T>(n, at) / T(n));
  const T squares = sum_of<T>(n, [&](Index j) __attribute__((always_inline)) {
    const V d = at(j) - mean;
    return d * d;
  });
  *inverse = T(1) / __builtin_sqrt(squares / T(n) + norm_epsilon<T>);
  for (Index j = 0; j < n; j += V::lanes) ((at(j) - mean) * V(*inverse)).store(x + j, n - j);
}

// Turns d, the gradient of gain * normalized(x), into that of x.
template <class T>
void normalize_backward(T* d, const T* gain, const T* normalized, T inverse, Index n) {
  using V = Native<T>;
  if (n == 0) return;
  const auto scaled = [&](Index j) __attribute__((always_inline)) {
    return V::load(d + j, n - j) * V::load(gain + j, n - j);
  };
  const auto hat = [&](Index j)
                       __attribute__((always_inline)) { return V::load(normalized + j, n - j); };
  const V mean = V(sum_of<T>(n, scaled) / T(n));
  const V slope =
      V(sum_of<T>(n, [&](Index j) __attribute__((always_inline)) { return scaled(j) * hat(j); }) /
        T(n));
  for (Index j = 0; j < n; j += V::lanes)
    (V(inverse) * (fma(-hat(j), slope, scaled(j)) - mean)).store(d + j, n - j);
}

template <class T>
void layer_norm(const LayerNormArgs<T>& p, Range rows) {
  using V = Native<T>;
  const Index width = p.widths[0] + p.widths[1];
  for (Index r = rows.begin; r < rows.end; ++r) {
    T *const x = p.x + r * width, inverse[2] = {};
    normalize(x, p.widths[0], inverse);
    normalize(x + p.widths[0], p.widths[1], inverse + 1);
    if (p.inverse) __builtin_memcpy(p.inverse + r * 2, inverse, sizeof inverse);
    for (Index j = 0; j < width; j += V::lanes) {
      const Index n = width - j;
      const V hat = V::load(x + j, n);
      if (p.normalized) hat.store(p.normalized + r * width + j, n);
      fma(V::load(p.gain + j, n), hat, p.bias ? V::load(p.bias + j, n) : V(T(0))).store(x + j, n);
    }
  }
}

template <class T>
void layer_norm_backward(const LayerNormBackwardArgs<T>& p, Range rows) {
  const Index width = p.widths[0] + p.widths[1];
  for (Index r = rows.begin; r < rows.end; ++r)
    for (Index group = 0, at = 0; group < 2; at += p.widths[group++])
      normalize_backward(p.d + r * p.stride + at, p.gain + at, p.normalized + r * width + at,
                         p.inverse[r * 2 + group], p.widths[group]);
}
