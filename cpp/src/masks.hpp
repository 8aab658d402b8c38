// The mask kernels' arguments for a rate.
#pragma once

#include <cstdint>

#include "kernels/table.hpp"

namespace charrnn_fast {

enum class MaskKind {
  dropout,  // 0 with probability `rate`, else 1 / (1 - rate)
  zoneout   // 1 with probability `rate`, else 0
};

// A mask at time 0 with key `seed`; row r is stream r; x and out are not set. rate must be in [0,
// 1), else std::invalid_argument is thrown.
template <class T>
MaskArgs<T> mask_args(MaskKind kind, double rate, std::uint64_t seed, std::uint32_t site);

}  // namespace charrnn_fast
