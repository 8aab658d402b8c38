// Kernels other than matrix products: losses, optimizer updates, sums along rows.

// totals [n], up to sum_vectors vectors, += sums over rows. add(block, acc) adds a block of rows to
// acc, in order.
constexpr int sum_vectors = 4;  // reads a whole cache line of each row
template <class T, class F>
CHARRNN_INLINE void add_row_blocks(Index rows, T* totals, Index n, F&& add) {
  using V = Native<T>;
  V total[sum_vectors], error[sum_vectors];
  unroll<sum_vectors>([&](auto i) __attribute__((always_inline)) {
    total[i] = V::load(totals + i * V::lanes, n - i * V::lanes), error[i] = V(T(0));
  });
  const bool with_errors = block_sums(0, 0, rows).with_errors;
  for (Index first = 0; first < rows; first += sum_block) {
    V block[sum_vectors];
    unroll<sum_vectors>([&](auto i) __attribute__((always_inline)) { block[i] = V(T(0)); });
    add(Range{first, min_of(first + sum_block, rows)}, block);
    unroll<sum_vectors>([&](auto i) __attribute__((always_inline)) {
      total[i] = with_errors ? add_block(total[i], block[i], error[i]) : total[i] + block[i];
    });
  }
  unroll<sum_vectors>([&](auto i) __attribute__((always_inline)) {
    if (with_errors) total[i] = total[i] + error[i];
    total[i].store(totals + i * V::lanes, n - i * V::lanes);
  });
}

template <class T>
void column_sums(const T* a, Index stride, Index rows, Range cols, T* sums) {
  using V = Native<T>;
  for (Index j = cols.begin; j < cols.end; j += sum_vectors * V::lanes) {
    const Index n = cols.end - j;
    add_row_blocks(rows, sums + j, n, [&](Range block, V* acc) __attribute__((always_inline)) {
      for (Index r = block.begin; r < block.end;) {
        V some[sum_vectors];
        unroll<sum_vectors>([&](auto i) __attribute__((always_inline)) { some[i] = V(T(0)); });
        for (const Index end = min_of(r + sum_rows, block.end); r < end; ++r) {
          // The hardware does not prefetch a column of cache lines.
          constexpr Index ahead = 16;
          if (r + ahead < rows)
            prefetch<false>(a + (r + ahead) * stride + j, sum_vectors * V::lanes);
          unroll<sum_vectors>([&](auto i) __attribute__((always_inline)) {
            some[i] = some[i] + V::load(a + r * stride + j + i * V::lanes, n - i * V::lanes);
          });
        }
        unroll<sum_vectors>([&](auto i)
                                __attribute__((always_inline)) { acc[i] = acc[i] + some[i]; });
      }
    });
  }
}

template <class T>
void column_products(const T* a, Index a_stride, const T* b, Index b_stride, Index rows, Range cols,
                     T* sums) {
  using V = Native<T>;
  for (Index j = cols.begin; j < cols.end; j += sum_vectors * V::lanes) {
    const Index n = cols.end - j;
    add_row_blocks(rows, sums + j, n, [&](Range block, V* acc) __attribute__((always_inline)) {
      for (Index r = block.begin; r < block.end; ++r)
        unroll<sum_vectors>([&](auto i) __attribute__((always_inline)) {
          const Index at = j + i * V::lanes, left = n - i * V::lanes;
          acc[i] = fma(V::load(a + r * a_stride + at, left), V::load(b + r * b_stride + at, left),
                       acc[i]);
        });
    });
  }
}

template <class T>
void gather(const GatherArgs<T>& p, Range rows) {
  using V = Native<T>;
  const FlushSubnormals flush(p.compute == Compute::bfloat16);
  for (Index r = rows.begin; r < rows.end; ++r) {
    const T* const from = p.table + p.tokens[r] * p.cols;
    T* const to = p.out + r * p.out_stride;
    const V scale = operand(V(p.scales ? p.scales[r] : T(1)), p.compute);
    for (Index j = 0; j < p.cols; j += V::lanes) {
      const Index n = p.cols - j;
      const V bias = p.bias ? V::load(p.bias + j, n) : V(T(0));
      add_product(scale, operand(V::load(from + j, n), p.compute), bias, p.compute)
          .store(to + j, n);
    }
  }
}

inline void sort_by_token(const Token* tokens, Index rows, Index vocab_size, Index* counts,
                          Index* order) {
  for (Index v = 0; v < vocab_size; ++v) counts[v] = 0;
  for (Index r = 0; r < rows; ++r) ++counts[tokens[r]];
  for (Index v = 0, before = 0; v < vocab_size; ++v) {
    const Index here = counts[v];
    counts[v] = before, before += here;
  }
  for (Index r = 0; r < rows; ++r) order[counts[tokens[r]]++] = r;
}

// Elements `stride` apart.
template <class T>
CHARRNN_INLINE Native<T> load_strided(const T* p, Index stride, Index count) {
  using V = Native<T>;
  if (stride == 1) return V::load(p, count);
  alignas(sizeof(typename V::Vec)) T lane[V::lanes] = {};
  for (Index i = 0; i < min_of(V::lanes, count); ++i) lane[i] = p[i * stride];
  return V::load(lane);
}
template <class T>
CHARRNN_INLINE void store_strided(Native<T> v, T* p, Index stride, Index count) {
  using V = Native<T>;
  if (stride == 1) return v.store(p, count);
  alignas(sizeof(typename V::Vec)) T lane[V::lanes];
  v.store(lane);
  for (Index i = 0; i < min_of(V::lanes, count); ++i) p[i * stride] = lane[i];
}

// One token's sums stay in registers. A block without the token adds nothing, as in the matrix
// product with one-hot vectors.
template <class T>
void scatter_add(const ScatterArgs<T>& p, Range cols) {
  using V = Native<T>;
  const bool rounded = p.compute == Compute::bfloat16;
  const FlushSubnormals flush(rounded);
  const bool with_errors = block_sums(0, 0, p.rows).with_errors;
  for (Index j = cols.begin; j < cols.end; j += sum_vectors * V::lanes) {
    const Index n = cols.end - j;
    for (Index i = 0; i < p.rows;) {
      const Token token = p.tokens[p.order[i]];
      T* const sums = p.table + token * p.token_stride + j * p.col_stride;
      V total[sum_vectors], error[sum_vectors];
      unroll<sum_vectors>([&](auto v) __attribute__((always_inline)) {
        const Index at = v * V::lanes;
        total[v] = load_strided(sums + at * p.col_stride, p.col_stride, n - at);
        error[v] = V(T(0));
      });
      while (i < p.rows && p.tokens[p.order[i]] == token) {
        const Index end = (p.order[i] / sum_block + 1) * sum_block;
        V block[sum_vectors];
        unroll<sum_vectors>([&](auto v) __attribute__((always_inline)) { block[v] = V(T(0)); });
        const auto add = [&](Index r) __attribute__((always_inline)) {
          const V scale = operand(V(p.scales ? p.scales[r] : T(1)), p.compute);
          unroll<sum_vectors>([&](auto v) __attribute__((always_inline)) {
            const V d = V::load(p.a + r * p.stride + j + v * V::lanes, n - v * V::lanes);
            block[v] = add_product(scale, operand(d, p.compute), block[v], p.compute);
          });
        };
        for (; i < p.rows && p.order[i] < end && p.tokens[p.order[i]] == token; ++i) {
          const Index r = p.order[i];
          constexpr Index ahead = 16;
          if (i + ahead < p.rows)
            prefetch<false>(p.a + p.order[i + ahead] * p.stride + j, sum_vectors * V::lanes);
          // Rows are sorted: if the next is this one's neighbour in a pair, it comes first.
          if (rounded && r % 2 == 0 && i + 1 < p.rows && p.order[i + 1] == r + 1 &&
              p.tokens[r + 1] == token) {
            add(r + 1);
            ++i;
          }
          add(r);
        }
        unroll<sum_vectors>([&](auto v) __attribute__((always_inline)) {
          total[v] = with_errors ? add_block(total[v], block[v], error[v]) : total[v] + block[v];
        });
      }
      unroll<sum_vectors>([&](auto v) __attribute__((always_inline)) {
        if (with_errors) total[v] = total[v] + error[v];
        const Index at = v * V::lanes;
        store_strided(total[v], sums + at * p.col_stride, p.col_stride, n - at);
      });
    }
  }
}

template <class T>
CHARRNN_INLINE T row_maximum(const T* x, Index n) {
  using V = Native<T>;
  V most = V(-T(__builtin_inf()));
  Index j = 0;
  for (; j + V::lanes <= n; j += V::lanes) most = max(most, V::load(x + j));
  T result = most.maximum();
  for (; j < n; ++j) result = x[j] > result ? x[j] : result;
  return result;
}

template <class T>
void cross_entropy(const CrossEntropyArgs<T>& p, Range rows) {
  using V = Native<T>;
  const Index n = p.vocab_size;
  for (Index r = rows.begin; r < rows.end; ++r) {
    const T* x = p.logits + r * p.stride;
    T* d = p.dlogits ? p.dlogits + r * p.dstride : nullptr;
    const Token target = p.targets[r];
    const T scale = p.weights ? p.weights[r] : p.scale;
    if (target < 0 || (p.weights && !(scale > T(0)))) {
      p.losses[r] = T(0);
      if (d)
        for (Index j = 0; j < n; j += V::lanes) V(T(0)).store(d + j, n - j);
      continue;
    }
    const T most = row_maximum(x, n), at_target = x[target];
    V sums = V(T(0));
    for (Index j = 0; j < n; j += V::lanes) {
      const V e = math::exp(V::load(x + j, n - j) - V(most));
      // A lane past the end holds exp(0 - most), which must not enter the sum.
      sums = sums + e.first(n - j);
      if (d) e.store(d + j, n - j);
    }
    const T sum = sums.sum();
    p.losses[r] = T(__builtin_log(double(sum)) - (double(at_target) - double(most)));
    if (d) {
      const V factor = V(scale / sum);
      for (Index j = 0; j < n; j += V::lanes) (V::load(d + j, n - j) * factor).store(d + j, n - j);
      d[target] -= scale;
    }
  }
}

// Computes as cross_entropy does, for all targets at once.
template <class T>
void log_softmax(const LogSoftmaxArgs<T>& p, Range rows) {
  using V = Native<T>;
  const Index n = p.vocab_size;
  for (Index r = rows.begin; r < rows.end; ++r) {
    const T* const x = p.logits + r * n;
    const T most = row_maximum(x, n);
    V sums = V(T(0));
    for (Index j = 0; j < n; j += V::lanes) {
      const V e = math::exp(V::load(x + j, n - j) - V(most));
      sums = sums + e.first(n - j);
    }
    const double log_sum = __builtin_log(double(sums.sum()));
    for (Index j = 0; j < n; ++j) p.out[r * n + j] = -T(log_sum - (double(x[j]) - double(most)));
  }
}

template <class T>
void exp_shifted(const T* x, Index n, T inverse_temperature, T* out) {
  using V = Native<T>;
  const V most = V(row_maximum(x, n)), factor = V(inverse_temperature);
  for (Index j = 0; j < n; j += V::lanes)
    math::exp((V::load(x + j, n - j) - most) * factor).store(out + j, n - j);
}

// The sum of term(j) over j < n, as interleaved sums: enough to hide an addition's latency.
template <class F>
CHARRNN_INLINE double interleaved_sum(Index n, F&& term) {
  constexpr int width = 64;
  double sums[width] = {};
  Index j = 0;
  for (; j + width <= n; j += width)
    for (int i = 0; i < width; ++i) sums[i] += term(j + i);
  for (int i = 0; j + i < n; ++i) sums[i] += term(j + i);
  for (int half = width / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
  return sums[0];
}

CHARRNN_INLINE double square(double x) { return x * x; }

// In double, where the square of a float is exact and cannot overflow.
template <class T>
void sums_of_squares(const T* x, Index n, Range chunks, double* sums) {
  for (Index i = chunks.begin; i < chunks.end; ++i) {
    const T* const chunk = x + i * square_chunk;
    sums[i] = interleaved_sum(min_of(square_chunk, n - i * square_chunk),
                              [&](Index j) __attribute__((always_inline)) {
                                return square(static_cast<double>(chunk[j]));
                              });
  }
}

inline void add_up(const double* sums, Index n, double* sum) {
  double total = 0;
  for (Index i = 0; i < n; ++i) total += sums[i];
  *sum = total;
}

template <class T>
void fill(T* to, T value, Range elements) {
  for (Index i = elements.begin; i < elements.end; ++i) to[i] = value;
}

template <class T>
void add(const T* from, Range elements, T* to) {
  for (Index i = elements.begin; i < elements.end; ++i) to[i] += from[i];
}

// step(x, z, weight, term) returns the gradient times the weight and sets `term`;
// value(double(term)) is the loss.
template <class T, class Step, class Value>
CHARRNN_INLINE void element_losses(const ElementLossArgs<T>& p, Range blocks, Step&& step,
                                   Value&& value) {
  using V = Native<T>;
  T terms[loss_block];
  for (Index block = blocks.begin; block < blocks.end; ++block) {
    const Index first = block * loss_block, n = min_of(loss_block, p.elements - first);
    const T* const x = p.x + first;
    const T* const z = p.targets + first;
    const T* const weights = p.weights ? p.weights + first : nullptr;
    T* const dx = p.dx + first;
    for (Index j = 0; j < n; j += V::lanes) {
      const Index left = n - j;
      const V weight = weights ? V::load(weights + j, left) : V(p.scale);
      V term;
      const V d = step(V::load(x + j, left), V::load(z + j, left), weight, term);
      select_positive(weight, d, V(T(0))).store(dx + j, left);
      term.store(terms + j, left);
    }
    if (weights)
      p.sums[block] = interleaved_sum(n, [&](Index j) __attribute__((always_inline)) {
        const double weight = static_cast<double>(weights[j]);
        return weight > 0 ? weight * value(static_cast<double>(terms[j])) : 0.0;
      });
    else
      p.sums[block] = interleaved_sum(n, [&](Index j) __attribute__((always_inline)) {
        return value(static_cast<double>(terms[j]));
      });
  }
}

// softplus(x) - x z as the sum of two terms that are never negative, so that no digits cancel: |x|
// times the target's distance from what the logit's sign predicts, and softplus(-|x|). Its e^-|x|
// is the sigmoid's too.
template <class T>
void binary_cross_entropy(const ElementLossArgs<T>& p, Range blocks) {
  using V = Native<T>;
  element_losses(
      p, blocks,
      [](V x, V z, V weight, V& term) __attribute__((always_inline)) {
        const V distance = select_negative(x, z, V(T(1)) - z);
        term = fma(abs(x), distance, math::softplus_minus_abs(x));
        return (math::sigmoid(x) - z) * weight;
      },
      [](double loss) __attribute__((always_inline)) { return loss; });
}

// Squares in double, as in sum_of_squares.
template <class T>
void mean_square(const ElementLossArgs<T>& p, Range blocks) {
  using V = Native<T>;
  element_losses(
      p, blocks,
      [](V x, V z, V weight, V& term) __attribute__((always_inline)) {
        term = x - z;
        const V half = term * weight;
        return half + half;
      },
      [](double difference) __attribute__((always_inline)) { return square(difference); });
}

template <class T, class F>
CHARRNN_INLINE void for_vectors(T* x, Index n, F&& f) {
  using V = Native<T>;
  for (Index j = 0; j < n; j += V::lanes) f(V::load(x + j, n - j)).store(x + j, n - j);
}

template <class T>
void scale(T* x, Index n, T factor) {
  using V = Native<T>;
  for_vectors(x, n, [&](V v) __attribute__((always_inline)) { return v * V(factor); });
}

template <class V, class T>
CHARRNN_INLINE V clamp(V v, T limit) {
  return min(V(limit), max(V(-limit), v));
}

template <class T>
void clip_value(T* x, Index n, T limit) {
  using V = Native<T>;
  for_vectors(x, n, [&](V v) __attribute__((always_inline)) { return clamp(v, limit); });
}

template <class Rule, class T>
void update(const UpdateArgs<T>& p, Range elements) {
  using V = Native<T>;
  constexpr int S = Rule::num_slots;
  for (Index j = elements.begin; j < elements.end; j += V::lanes) {
    const Index n = elements.end - j;
    V param = V::load(p.params + j, n);
    const V gradient = clamp(V::load(p.gradients + j, n) * V(p.gradient_scale), p.gradient_limit);
    Values<V, S> slots;
    unroll<S>([&](auto s)
                  __attribute__((always_inline)) { slots.v[s] = V::load(p.slots[s] + j, n); });
    Rule::update(param, gradient, slots.v,
                 [&](int h) __attribute__((always_inline)) { return V(p.hyper[h]); });
    param.store(p.params + j, n);
    unroll<S>([&](auto s) __attribute__((always_inline)) { slots.v[s].store(p.slots[s] + j, n); });
  }
}

template <class T, class F>
CHARRNN_INLINE void map(const T* x, T* out, Index n, F&& f) {
  using V = Native<T>;
  for (Index j = 0; j < n; j += V::lanes) f(V::load(x + j, n - j)).store(out + j, n - j);
}
template <class T>
void map_exp(const T* x, T* out, Index n) {
  map(x, out, n, [](auto v) __attribute__((always_inline)) { return math::exp(v); });
}
template <class T>
void map_sigmoid(const T* x, T* out, Index n) {
  map(x, out, n, [](auto v) __attribute__((always_inline)) { return math::sigmoid(v); });
}
template <class T>
void map_tanh(const T* x, T* out, Index n) {
  map(x, out, n, [](auto v) __attribute__((always_inline)) { return math::tanh(v); });
}
template <class T>
void map_softplus(const T* x, T* out, Index n) {
  map(x, out, n, [](auto v) __attribute__((always_inline)) { return math::softplus(v); });
}

// As many independent chains as a tile has accumulators reach the machine's peak.
constexpr int peak_chains = 12;

template <class T>
T fma_loop(Index iterations) {
  using V = Native<T>;
  V acc[peak_chains];
  const V a = V(T(0.999)), b = V(T(0.001));
  unroll<peak_chains>([&](auto i) __attribute__((always_inline)) { acc[i] = V(T(i.value)); });
  for (Index k = 0; k < iterations; ++k)
    unroll<peak_chains>([&](auto i) __attribute__((always_inline)) { acc[i] = fma(acc[i], a, b); });
  V total = V(T(0));
  unroll<peak_chains>([&](auto i) __attribute__((always_inline)) { total = total + acc[i]; });
  return total.sum();
}

// The sum of x [n], in enough chains to read at the machine's bandwidth.
template <class T>
T read_loop(const T* x, Index n) {
  using V = Native<T>;
  constexpr Index block = peak_chains * V::lanes;
  V acc[peak_chains];
  unroll<peak_chains>([&](auto i) __attribute__((always_inline)) { acc[i] = V(T(0)); });
  Index j = 0;
  for (; j + block <= n; j += block)
    unroll<peak_chains>([&](auto i) __attribute__((always_inline)) {
      acc[i] = acc[i] + V::load(x + j + i * V::lanes);
    });
  V total = V(T(0));
  for (; j < n; j += V::lanes) total = total + V::load(x + j, n - j);
  unroll<peak_chains>([&](auto i) __attribute__((always_inline)) { total = total + acc[i]; });
  return total.sum();
}
