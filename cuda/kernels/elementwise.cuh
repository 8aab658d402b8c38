// Kernels other than matrix products: losses, optimizer updates, sums along rows.
#pragma once

#include "charrnn_fast/math.hpp"
#include "charrnn_fast/optimizers.hpp"
#include "kernels/gemm.cuh"

namespace charrnn_fast {
namespace cuda {

// ---- sums over the rows of a sequence: a thread for each column -----------------------------

template <class T>
struct ColumnSum {
  const T* a;
  Index stride, rows, first;
  T* sums;

  CHARRNN_INLINE void operator()(Index i) const {
    const T* const column = a + first + i;
    const Index step = stride;
    BlockSum<T> sum = block_sum(sums[first + i], rows);
    for (Index r = 0; r < rows; r += sum_block)
      sum.add(plain_sum<T>(r, min_of(r + sum_block, rows),
                           [=](Index row) { return column[row * step]; }));
    sums[first + i] = sum.end();
  }
};
template <class T>
void column_sums(const T* a, Index stride, Index rows, Range cols, T* sums) {
  each(size_of(cols), ColumnSum<T>{a, stride, rows, cols.begin, sums});
}

template <class T>
struct ColumnProduct {
  const T* a;
  Index a_stride;
  const T* b;
  Index b_stride, rows, first;
  T* sums;

  CHARRNN_INLINE void operator()(Index i) const {
    const Index j = first + i;
    BlockSum<T> sum = block_sum(sums[j], rows);
    for (Index r = 0; r < rows;) {
      T block = T(0);
      for (const Index end = min_of(r + sum_block, rows); r < end; ++r)
        block = fma(a[r * a_stride + j], b[r * b_stride + j], block);
      sum.add(block);
    }
    sums[j] = sum.end();
  }
};
template <class T>
void column_products(const T* a, Index a_stride, const T* b, Index b_stride, Index rows, Range cols,
                     T* sums) {
  each(size_of(cols), ColumnProduct<T>{a, a_stride, b, b_stride, rows, cols.begin, sums});
}

template <class T>
struct Gather {
  GatherArgs<T> p;
  Index first;

  CHARRNN_INLINE void operator()(Index i) const {
    const Index r = first + i / p.cols, j = i % p.cols;
    const T scale = p.scales ? p.scales[r] : T(1), bias = p.bias ? p.bias[j] : T(0);
    p.out[r * p.out_stride + j] =
        add_product(operand(scale, p.compute),
                    operand(p.table[p.tokens[r] * p.cols + j], p.compute), bias, p.compute);
  }
};
template <class T>
void gather(const GatherArgs<T>& p, Range rows) {
  each(size_of(rows) * p.cols, Gather<T>{p, rows.begin});
}

// Sorts by counting: each token's thread counts its rows, then writes them behind those of the
// tokens before.
struct CountToken {
  const Token* tokens;
  Index rows;
  Index* counts;

  CHARRNN_INLINE void operator()(Index v) const {
    Index count = 0;
    for (Index r = 0; r < rows; ++r) count += tokens[r] == v;
    counts[v] = count;
  }
};
struct AddCounts {
  Index vocab_size;
  Index* counts;

  CHARRNN_INLINE void operator()(Index) const {
    for (Index v = 0, before = 0; v < vocab_size; ++v) {
      const Index here = counts[v];
      counts[v] = before, before += here;
    }
  }
};
struct PlaceToken {
  const Token* tokens;
  Index rows;
  const Index* counts;
  Index* order;

  CHARRNN_INLINE void operator()(Index v) const {
    Index at = counts[v];
    for (Index r = 0; r < rows; ++r)
      if (tokens[r] == v) order[at++] = r;
  }
};
inline void sort_by_token(const Token* tokens, Index rows, Index vocab_size, Index* counts,
                          Index* order) {
  each(vocab_size, CountToken{tokens, rows, counts});
  each(1, AddCounts{vocab_size, counts});
  each(vocab_size, PlaceToken{tokens, rows, counts, order});
}

// A thread for each column and each place in the order: that at which a token begins adds up its
// rows.
template <class T>
struct ScatterAdd {
  ScatterArgs<T> p;
  Range cols;

  CHARRNN_INLINE void operator()(Index n) const {
    const Index width = size_of(cols), j = cols.begin + n % width;
    Index i = n / width;
    const Token token = p.tokens[p.order[i]];
    if (i > 0 && p.tokens[p.order[i - 1]] == token) return;
    T* const to = p.table + token * p.token_stride + j * p.col_stride;
    BlockSum<T> sum = block_sum(*to, p.rows);
    while (i < p.rows && p.tokens[p.order[i]] == token) {
      const Index end = (p.order[i] / sum_block + 1) * sum_block;
      T block = T(0);
      const auto add = [&](Index r) {
        block = add_product(operand(p.scales ? p.scales[r] : T(1), p.compute),
                            operand(p.a[r * p.stride + j], p.compute), block, p.compute);
      };
      for (; i < p.rows && p.order[i] < end && p.tokens[p.order[i]] == token; ++i) {
        const Index r = p.order[i];
        // Rows are sorted: if the next is this one's neighbour in a pair, it comes first.
        if (p.compute == Compute::bfloat16 && r % 2 == 0 && i + 1 < p.rows &&
            p.order[i + 1] == r + 1 && p.tokens[r + 1] == token) {
          add(r + 1);
          ++i;
        }
        add(r);
      }
      sum.add(block);
    }
    *to = sum.end();
  }
};
template <class T>
void scatter_add(const ScatterArgs<T>& p, Range cols) {
  each(size_of(cols) * p.rows, ScatterAdd<T>{p, cols});
}

// ---- losses -------------------------------------------------------------------------------

// One row, by sum_lanes threads, of a warp that calls this as a whole. x: its logits; d: receives
// their gradients, or null; the two may be the same.
template <class T>
__device__ void cross_entropy_row(const CrossEntropyArgs<T>& p, bool given, Index r, const T* x,
                                  T* d) {
  constexpr unsigned lanes = sum_lanes<T>;
  const Index n = p.vocab_size, lane = threadIdx.x % lanes;
  const Token target = given ? p.targets[r] : Token(-1);
  const T scale = given && p.weights ? p.weights[r] : p.scale;
  const bool counts = target >= 0 && !(p.weights && !(scale > T(0)));
  T most = -T(INFINITY), sum = T(0);
  const T at_target = counts ? x[target] : T(0);
  if (counts)
    for (Index j = lane; j < n; j += lanes) most = x[j] > most ? x[j] : most;
  for (unsigned half = lanes / 2; half > 0; half /= 2) {
    const T other = shuffle_xor(most, half);
    most = other > most ? other : most;
  }
  sync_warp();  // dlogits may be the logits: all have read the target's before one writes it
  if (counts)
    for (Index j = lane; j < n; j += lanes) {
      const T e = math::exp(x[j] - most);
      sum = sum + e;
      if (d) d[j] = e;
    }
  for (unsigned half = lanes / 2; half > 0; half /= 2) sum = sum + shuffle_xor(sum, half);
  if (!given) return;
  if (!counts) {
    if (lane == 0) p.losses[r] = T(0);
    if (d)
      for (Index j = lane; j < n; j += lanes) d[j] = T(0);
    return;
  }
  if (lane == 0)
    p.losses[r] = T(::log(static_cast<double>(sum)) -
                    (static_cast<double>(at_target) - static_cast<double>(most)));
  if (!d) return;
  const T factor = scale / sum;
  for (Index j = lane; j < n; j += lanes) {
    const T probability = d[j] * factor;
    d[j] = j == target ? probability - scale : probability;
  }
}

template <class T>
__global__ void cross_entropy_kernel(CrossEntropyArgs<T> p, Range rows) {
  constexpr unsigned lanes = sum_lanes<T>;
  const Index r = rows.begin + Index(blockIdx.x) * (blockDim.x / lanes) + threadIdx.x / lanes;
  const bool given = r < rows.end;
  cross_entropy_row(p, given, r, given ? p.logits + r * p.stride : nullptr,
                    given && p.dlogits ? p.dlogits + r * p.dstride : nullptr);
}
template <class T>
void cross_entropy(const CrossEntropyArgs<T>& p, Range rows) {
  if (size_of(rows) <= 0) return;
  const Index rows_of_block = each_threads / sum_lanes<T>;
  launch({dim3(static_cast<unsigned>(ceil_div(size_of(rows), rows_of_block))), dim3(each_threads)},
         table_stream(), cross_entropy_kernel<T>, p, rows);
}

// As cross_entropy, for all targets at once.
template <class T>
__global__ void log_softmax_kernel(LogSoftmaxArgs<T> p, Range rows) {
  constexpr unsigned lanes = sum_lanes<T>;
  const Index r = rows.begin + Index(blockIdx.x) * (blockDim.x / lanes) + threadIdx.x / lanes;
  const bool given = r < rows.end;
  const Index n = given ? p.vocab_size : 0, lane = threadIdx.x % lanes;
  const T* const x = p.logits + r * p.vocab_size;
  T most = -T(INFINITY), sum = T(0);
  for (Index j = lane; j < n; j += lanes) most = x[j] > most ? x[j] : most;
  for (unsigned half = lanes / 2; half > 0; half /= 2) {
    const T other = shuffle_xor(most, half);
    most = other > most ? other : most;
  }
  for (Index j = lane; j < n; j += lanes) sum = sum + math::exp(x[j] - most);
  for (unsigned half = lanes / 2; half > 0; half /= 2) sum = sum + shuffle_xor(sum, half);
  const double log_sum = ::log(static_cast<double>(sum));
  for (Index j = lane; j < n; j += lanes)
    p.out[r * p.vocab_size + j] =
        -T(log_sum - (static_cast<double>(x[j]) - static_cast<double>(most)));
}
template <class T>
void log_softmax(const LogSoftmaxArgs<T>& p, Range rows) {
  if (size_of(rows) <= 0) return;
  const Index rows_of_block = each_threads / sum_lanes<T>;
  launch({dim3(static_cast<unsigned>(ceil_div(size_of(rows), rows_of_block))), dim3(each_threads)},
         table_stream(), log_softmax_kernel<T>, p, rows);
}

// A block's threads each have a sum; all threads of it get the total: halves, then halves of
// halves.
constexpr unsigned interleaved = 64;
__device__ __forceinline__ double total_of_block(double sum) {
  CHARRNN_SHARED(double, sums, interleaved);
  sums[threadIdx.x] = sum;
  sync_block();
  for (unsigned half = interleaved / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    sync_block();
  }
  return sums[0];
}

CHARRNN_INLINE double square(double x) { return x * x; }

// Of x[begin, end), by all threads of the block.
template <class T>
__device__ double squares_of_block(const T* x, Index begin, Index end) {
  double sum = 0;
  for (Index j = begin + threadIdx.x; j < end; j += interleaved)
    sum += square(static_cast<double>(x[j]));
  return total_of_block(sum);
}
template <class T>
__global__ void squares_kernel(const T* x, Index n, Index first_chunk, double* sums) {
  const Index chunk = first_chunk + blockIdx.x, begin = chunk * square_chunk;
  const double total = squares_of_block(x, begin, min_of(begin + square_chunk, n));
  if (threadIdx.x == 0) sums[chunk] = total;
}
template <class T>
void sums_of_squares(const T* x, Index n, Range chunks, double* sums) {
  if (size_of(chunks) > 0)
    launch({dim3(static_cast<unsigned>(size_of(chunks))), dim3(interleaved)}, table_stream(),
           squares_kernel<T>, x, n, chunks.begin, sums);
}

// sums[0] + sums[1] + ..., from left to right
CHARRNN_INLINE double sum_in_order(const double* sums, Index n) {
  double total = 0;
  for (Index i = 0; i < n; ++i) total += sums[i];
  return total;
}
struct AddUp {
  const double* sums;
  Index n;
  double* sum;

  CHARRNN_INLINE void operator()(Index) const { *sum = sum_in_order(sums, n); }
};
inline void add_up(const double* sums, Index n, double* sum) { each(1, AddUp{sums, n, sum}); }

CHARRNN_INLINE bool is_finite(double x) { return x - x == 0; }

// A block for each chunk of the gradients; that which ends last adds up the chunks' sums, those of
// each array first.
template <class T>
__global__ void control_kernel(ControlArgs<T> p) {
  CHARRNN_SHARED(std::uint32_t, before, 1);
  const Index chunk = blockIdx.x;
  const double total = squares_of_block(p.gradients, p.chunks[2 * chunk], p.chunks[2 * chunk + 1]);
  if (threadIdx.x == 0) {
    p.sums[chunk] = total;
    *before = add_acquire_release(p.finished, 1);
  }
  sync_block();
  if (*before + 1 < gridDim.x) return;
  double* const of_arrays = p.sums + p.num_chunks;
  for (Index i = threadIdx.x; i < p.num_arrays; i += interleaved)
    of_arrays[i] = sum_in_order(p.sums + p.arrays[i], p.arrays[i + 1] - p.arrays[i]);
  sync_block();
  if (threadIdx.x > 0) return;
  const double squares = sum_in_order(of_arrays, p.num_arrays);
  const double norm = std::sqrt(squares) * p.scale;
  const double loss = p.loss_scale * (p.loss_sum ? *p.loss_sum : p.loss);
  *p.sum_of_squares = squares;
  p.control->scale = static_cast<T>(p.scale * norm_factor(norm, p.clip_norm));
  p.control->go = is_finite(norm) && is_finite(loss) ? T(1) : T(0);
  store_relaxed(p.finished, 0);
}
template <class T>
void control(const ControlArgs<T>& p) {
  launch({dim3(static_cast<unsigned>(p.num_chunks)), dim3(interleaved)}, table_stream(),
         control_kernel<T>, p);
}

struct BinaryCrossEntropy {
  template <class T>
  CHARRNN_INLINE static T step(T x, T z, T weight, T& term) {
    const T distance = select_negative(x, z, T(1) - z);
    term = fma(abs(x), distance, math::softplus_minus_abs(x));
    return (math::sigmoid(x) - z) * weight;
  }
  CHARRNN_INLINE static double value(double loss) { return loss; }
};
struct MeanSquare {
  template <class T>
  CHARRNN_INLINE static T step(T x, T z, T weight, T& term) {
    term = x - z;
    const T half = term * weight;
    return half + half;
  }
  CHARRNN_INLINE static double value(double difference) { return square(difference); }
};
template <class Loss, class T>
__global__ void element_loss_kernel(ElementLossArgs<T> p, Index first_block) {
  const Index block = first_block + blockIdx.x, begin = block * loss_block;
  double sum = 0;
  for (Index j = begin + threadIdx.x; j < min_of(begin + loss_block, p.elements);
       j += interleaved) {
    const T weight = p.weights ? p.weights[j] : p.scale;
    T term;
    const T d = Loss::step(p.x[j], p.targets[j], weight, term);
    p.dx[j] = select_positive(weight, d, T(0));
    const double loss = Loss::value(static_cast<double>(term));
    if (!p.weights)
      sum += loss;
    else
      sum += weight > T(0) ? static_cast<double>(weight) * loss : 0.0;
  }
  const double total = total_of_block(sum);
  if (threadIdx.x == 0) p.sums[block] = total;
}
template <class Loss, class T>
void element_losses(const ElementLossArgs<T>& p, Range blocks) {
  if (size_of(blocks) > 0)
    launch({dim3(static_cast<unsigned>(size_of(blocks))), dim3(interleaved)}, table_stream(),
           element_loss_kernel<Loss, T>, p, blocks.begin);
}

// ---- elements -----------------------------------------------------------------------------

template <class T>
struct Fill {
  T* to;
  T value;
  CHARRNN_INLINE void operator()(Index i) const { to[i] = value; }
};
template <class T>
void fill(T* to, T value, Range elements) {
  each(size_of(elements), Fill<T>{to + elements.begin, value});
}

template <class T>
struct Add {
  const T* from;
  T* to;
  CHARRNN_INLINE void operator()(Index i) const { to[i] += from[i]; }
};
template <class T>
void add(const T* from, Range elements, T* to) {
  each(size_of(elements), Add<T>{from + elements.begin, to + elements.begin});
}

template <class T>
struct ScaleBy {
  T* x;
  T factor;
  CHARRNN_INLINE void operator()(Index i) const { x[i] = x[i] * factor; }
};
template <class T>
void scale(T* x, Index n, T factor) {
  each(n, ScaleBy<T>{x, factor});
}

template <class T>
CHARRNN_INLINE T clamp(T x, T limit) {
  return min(limit, max(-limit, x));
}
template <class T>
struct Clip {
  T* x;
  T limit;
  CHARRNN_INLINE void operator()(Index i) const { x[i] = clamp(x[i], limit); }
};
template <class T>
void clip_value(T* x, Index n, T limit) {
  each(n, Clip<T>{x, limit});
}

template <class T>
struct Hyper {
  const T* numbers;
  CHARRNN_INLINE T operator()(int i) const { return numbers[i]; }
};
template <class Rule, class T>
struct Update {
  UpdateArgs<T> p;
  Index first;

  CHARRNN_INLINE void operator()(Index i) const {
    constexpr int S = Rule::num_slots;
    if (p.control && !(p.control->go > T(0))) return;
    const Index j = first + i;
    T param = p.params[j], slots[S > 0 ? S : 1] = {};
    const T scale = p.control ? p.control->scale : p.gradient_scale;
    const T gradient = clamp(p.gradients[j] * scale, p.gradient_limit);
    for (int s = 0; s < S; ++s) slots[s] = p.slots[s][j];
    Rule::update(param, gradient, slots, Hyper<T>{p.hyper});
    p.params[j] = param;
    for (int s = 0; s < S; ++s) p.slots[s][j] = slots[s];
  }
};
template <class Rule, class T>
void update(const UpdateArgs<T>& p, Range elements) {
  each(size_of(elements), Update<Rule, T>{p, elements.begin});
}

#define CHARRNN_MAP(name)                                                        \
  template <class T>                                                             \
  struct Map_##name {                                                            \
    const T* x;                                                                  \
    T* out;                                                                      \
    CHARRNN_INLINE void operator()(Index i) const { out[i] = math::name(x[i]); } \
  };                                                                             \
  template <class T>                                                             \
  void map_##name(const T* x, T* out, Index n) {                                 \
    each(n, Map_##name<T>{x, out});                                              \
  }
CHARRNN_MAP(exp)
CHARRNN_MAP(sigmoid)
CHARRNN_MAP(tanh)
CHARRNN_MAP(softplus)
#undef CHARRNN_MAP

}  // namespace cuda
}  // namespace charrnn_fast
