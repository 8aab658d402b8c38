// From a rate to the arguments of the kernels' masks.
#pragma once

#include <cstdint>

#include "kernels/table.hpp"

namespace charrnn_fast {

enum class MaskKind {
  dropout,  // 0 with probability `rate`, else 1 / (1 - rate)
  zoneout   // 1 with probability `rate`, else 0
};

// A mask at time 0 whose key is `seed`; row r is stream r, and there is no x and no out yet. Throws
// std::invalid_argument for a rate outside [0, 1).
template <class T>
MaskArgs<T> mask_args(MaskKind kind, double rate, std::uint64_t seed, std::uint32_t site);

}  // namespace charrnn_fast
