// Shared by the sources of Network: sizes and ranges of work.
#pragma once

#include <algorithm>

#include "charrnn_fast/network.hpp"
#include "sharing.hpp"

namespace charrnn_fast {

// Arrays in buffers are aligned to a cache line, of doubles and of floats.
constexpr Index alignment_elements = 16;
inline Index aligned(Index n) {
  return (n + alignment_elements - 1) / alignment_elements * alignment_elements;
}
inline Index ceil_div(Index a, Index b) { return (a + b - 1) / b; }

inline Range intersect(Range a, Range b) {
  return {std::max(a.begin, b.begin), std::min(a.end, b.end)};
}

// Throws std::invalid_argument unless networks on the device can compute so.
void check_compute(Compute compute, bool is_float64, const Device& device);
// How weights are stored for a network's products: bfloat16 products have no other way.
inline Storage stored(Storage storage, Compute compute) {
  return compute == Compute::bfloat16 ? Storage::bfloat16 : storage;
}

// Of `elements` packed weights, or an offset among them: the words that they take. Full ones are
// laid out so that it divides (Network::lay_out).
inline Index packed_size(Index elements, Storage storage) {
  return storage == Storage::full ? elements : elements / (storage == Storage::int8 ? 4 : 2);
}
// Words of a column: int8 weights are behind their scale.
inline Index packed_steps(Index depth, Storage storage) {
  if (storage == Storage::full) return depth;
  return storage == Storage::int8 ? 1 + ceil_div(depth, 4) : ceil_div(depth, 2);
}

// Packed weights, `offset` elements after the first of their packing.
template <class T>
Weights<T> weights_at(const T* packed, Storage storage, Compute compute, Index offset,
                      Index panel_columns, Index depth) {
  storage = stored(storage, compute);
  return {packed + packed_size(offset, storage), panel_columns,
          panel_columns * packed_steps(depth, storage), storage, compute};
}

}  // namespace charrnn_fast
