// Masks of dropout and zoneout: the CPU's random numbers, a thread for each counter.
#pragma once

#include "kernels/launch.cuh"

namespace charrnn_fast {
namespace cuda {

#include "kernels/philox.hpp"

// The step of row n of a sequence.
CHARRNN_INLINE Index step_of_row(const Steps& s, Index n) {
  if (!s.offsets) return n / s.batch;
  Index low_step = 0, high_step = s.seq_len;  // of steps t with offsets[t] <= n, the last
  while (high_step - low_step > 1) {
    const Index middle = (low_step + high_step) / 2;
    (s.offsets[middle] <= n ? low_step : high_step) = middle;
  }
  return low_step;
}

// Row n's place: its stream and time.
template <class T>
CHARRNN_INLINE void mask_place(const MaskArgs<T>& p, Index n, std::uint32_t& stream,
                               std::uint32_t& time) {
  Index row = n;
  time = p.time;
  if (p.steps.seq_len > 0) {
    const Index t = step_of_row(p.steps, n);
    row = n - first_row(p.steps, t);
    if (!p.one_time) time = static_cast<std::uint32_t>(t);
  }
  stream = static_cast<std::uint32_t>(p.streams ? p.streams[row] : row);
}

template <class T>
struct MaskRow {
  MaskArgs<T> p;
  Index first, counters;  // of a row

  CHARRNN_INLINE void operator()(Index i) const {
    const Index n = first + i / counters, counter = i % counters;
    std::uint32_t stream, time;
    mask_place(p, n, stream, time);
    std::uint32_t words[4] = {static_cast<std::uint32_t>(counter), stream, time, p.site};
    Philox(p.key).draw(words);
    const Index unit = counter / mask_block_counters * mask_block + counter % mask_block_counters;
    for (int w = 0; w < 4; ++w) {
      const Index at = unit + w * mask_block_counters;
      if (at >= p.cols) return;
      const T m = words[w] < p.threshold ? p.dropped : p.kept;
      p.out[n * p.out_stride + at] = p.x ? m * p.x[n * p.x_stride + at] : m;
    }
  }
};
template <class T>
void mask(const MaskArgs<T>& p, Range rows) {
  const Index counters = ceil_div(p.cols, mask_block) * mask_block_counters;
  each(size_of(rows) * counters, MaskRow<T>{p, rows.begin, counters});
}

template <class T>
struct MaskElement {
  MaskArgs<T> p;
  const Token* units;
  Index first;

  CHARRNN_INLINE void operator()(Index i) const {
    const Index n = first + i;
    const Token unit = units[n];
    std::uint32_t stream, time;
    mask_place(p, n, stream, time);
    const Token counter = unit / mask_block * mask_block_counters + unit % mask_block_counters;
    std::uint32_t words[4] = {static_cast<std::uint32_t>(counter), stream, time, p.site};
    Philox(p.key).draw(words);
    const std::uint32_t word = words[unit % mask_block / mask_block_counters];
    p.out[n] = word < p.threshold ? p.dropped : p.kept;
  }
};
template <class T>
void mask_elements(const MaskArgs<T>& p, const Token* units, Range rows) {
  each(size_of(rows), MaskElement<T>{p, units, rows.begin});
}

}  // namespace cuda
}  // namespace charrnn_fast
