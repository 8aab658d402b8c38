// From the options of sampling to the arguments of the kernel, and from what it found to an error.
#pragma once

#include "charrnn_fast/sampling.hpp"
#include "kernels/table.hpp"

namespace charrnn_fast {

// Seeds, position and where to draw to are left to the caller.
template <class T>
DrawArgs<T> draw_args(const T* logits, Index vocab_size, const SamplingOptions& options);

// Throws std::invalid_argument where DrawArgs::failure (of the host, [3]) holds one.
template <class T>
void check_draw(const double* failure);

}  // namespace charrnn_fast
