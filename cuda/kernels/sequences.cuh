// Moves rows of sequences: states, and batches sorted by length. Also sums the rows' losses.
#pragma once

#include "kernels/launch.cuh"

namespace charrnn_fast {
namespace cuda {

// The step at which row r of the batch begins, and ends, in the walk; -1: it has none.
CHARRNN_INLINE Index longest_step(const Steps& s, Index r) {
  Index t = s.seq_len - 1;
  while (t >= 0 && r >= rows_at(s, t)) --t;
  return t;
}
CHARRNN_INLINE Index begin_step(const Steps& s, Index r) {
  const Index longest = longest_step(s, r);
  return longest < 0 || s.reverse ? longest : 0;
}
CHARRNN_INLINE Index end_step(const Steps& s, Index r) {
  const Index longest = longest_step(s, r);
  return longest >= 0 && s.reverse ? 0 : longest;
}

template <class T>
struct BeginStates {
  StateRows<T> to;
  const T* from;
  Index first, width;

  CHARRNN_INLINE void operator()(Index i) const {
    const Index r = first + i / width, j = i % width;
    to.initial[r * to.stride + j] = from ? from[r * width + j] : T(0);
  }
};
template <class T>
void begin_states(const StatesArgs<T>& p, Range rows) {
  for (Index s = 0; s < p.num_states; ++s)
    each(size_of(rows) * p.widths[s],
         BeginStates<T>{p.states[s], p.at[s], rows.begin, p.widths[s]});
}

template <class T>
struct EndStates {
  Steps steps;
  StateRows<T> from;
  T* to;
  Index first, width;

  CHARRNN_INLINE void operator()(Index i) const {
    const Index r = first + i / width, j = i % width, t = end_step(steps, r);
    const T* const rows =
        t < 0 || from.in_place ? from.initial : from.rows + first_row(steps, t) * from.stride;
    to[r * width + j] = rows[r * from.stride + j];
  }
};
template <class T>
void end_states(const StatesArgs<T>& p, Range rows) {
  for (Index s = 0; s < p.num_states; ++s)
    each(size_of(rows) * p.widths[s],
         EndStates<T>{p.steps, p.states[s], p.at[s], rows.begin, p.widths[s]});
}

template <class T>
struct SortRow {
  SortArgs<T> p;
  Index first;

  CHARRNN_INLINE void operator()(Index i) const {
    const Index j = i % p.cols, r = i / p.cols % p.steps.batch;
    const Index t = first + i / p.cols / p.steps.batch;
    if (r < rows_at(p.steps, t))
      p.to[(first_row(p.steps, t) + r) * p.cols + j] =
          p.from[(t * p.steps.batch + p.order[r]) * p.cols + j];
  }
};
template <class T>
void sort_rows(const SortArgs<T>& p, Range steps) {
  each(size_of(steps) * p.steps.batch * p.cols, SortRow<T>{p, steps.begin});
}

template <class T>
struct UnsortRow {
  SortArgs<T> p;
  Index first;

  CHARRNN_INLINE void operator()(Index i) const {
    const Index j = i % p.cols, r = i / p.cols % p.steps.batch;
    const Index t = first + i / p.cols / p.steps.batch;
    p.to[(t * p.steps.batch + p.order[r]) * p.cols + j] =
        r < rows_at(p.steps, t) ? p.from[(first_row(p.steps, t) + r) * p.cols + j] : T(0);
  }
};
template <class T>
void unsort_rows(const SortArgs<T>& p, Range steps) {
  each(size_of(steps) * p.steps.batch * p.cols, UnsortRow<T>{p, steps.begin});
}

// The order of the sum is the caller's rows': one thread adds up what all have fetched. Padding
// adds 0, which changes no sum.
constexpr unsigned loss_threads = 256;
template <class T>
__global__ void sum_losses_kernel(LossSumArgs<T> p) {
  CHARRNN_SHARED(double, terms, loss_threads);
  const Index B = p.steps.batch, all = p.steps.seq_len * B, thread = threadIdx.x;
  const auto loss = [&](Index t, Index b) {
    const Index r = p.ranks ? p.ranks[b] : b;
    return r < rows_at(p.steps, t) ? static_cast<double>(p.losses[first_row(p.steps, t) + r]) : 0.0;
  };
  double sum = 0;
  for (Index first = 0; first < all; first += loss_threads) {
    const Index n = min_of(loss_threads, all - first);
    if (thread < n) terms[thread] = loss((first + thread) / B, (first + thread) % B);
    sync_block();
    for (Index i = 0; thread == 0 && i < n; ++i) sum += terms[i];
    sync_block();
  }
  if (thread == 0) *p.sum = sum;
  for (Index b = thread; p.stream_sums && b < B; b += loss_threads) {
    double of_stream = 0;
    for (Index t = 0; t < p.steps.seq_len; ++t) of_stream += loss(t, b);
    p.stream_sums[b] = of_stream;
  }
}
template <class T>
void sum_losses(const LossSumArgs<T>& p) {
  launch({dim3(1), dim3(loss_threads)}, table_stream(), sum_losses_kernel<T>, p);
}

}  // namespace cuda
}  // namespace charrnn_fast
