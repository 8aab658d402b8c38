// What the parts of Network share: sizes, and how work is shared out.
#pragma once

#include <algorithm>
#include <cstring>

#include "charrnn_fast/network.hpp"
#include "team.hpp"

namespace charrnn_fast {

// Buffers are laid out in multiples of a cache line of doubles and floats alike.
constexpr Index alignment_elements = 16;
inline Index aligned(Index n) {
  return (n + alignment_elements - 1) / alignment_elements * alignment_elements;
}
inline Index ceil_div(Index a, Index b) { return (a + b - 1) / b; }

// Streams are shared out where each thread gets a tile's worth of rows, else units are.
constexpr Index rows_per_thread = 6;

template <class T>
void zero(T* to, Index n) {
  if (n > 0) std::memset(to, 0, static_cast<std::size_t>(n) * sizeof(T));
}
template <class T>
void copy(const T* from, Index n, T* to) {
  if (n > 0) std::memcpy(to, from, static_cast<std::size_t>(n) * sizeof(T));
}
template <class T>
void add(const T* from, Range range, T* to) {
  for (Index i = range.begin; i < range.end; ++i) to[i] += from[i];
}
inline Range intersect(Range a, Range b) {
  return {std::max(a.begin, b.begin), std::min(a.end, b.end)};
}

// Packed weights, `offset` behind the first ones of their packing.
template <class T>
Weights<T> weights_at(const T* packed, Storage storage, Index offset, Index panel_columns,
                      Index depth) {
  const bool half = storage == Storage::bfloat16;
  return {packed + (half ? offset / 2 : offset), panel_columns,
          panel_columns * (half ? ceil_div(depth, 2) : depth), half};
}

// What masks are drawn for. A site is a layer, a direction and one of these.
enum class MaskSite { input, recurrent, zoneout_h, zoneout_c, weights, output };
inline std::uint32_t mask_site(Index layer, Index direction, MaskSite site) {
  return static_cast<std::uint32_t>((layer * 2 + direction) * 8 + static_cast<int>(site));
}

}  // namespace charrnn_fast
