// Sampling: from the options to the kernel's arguments, and from its result to an error.
#pragma once

#include "charrnn_fast/sampling.hpp"
#include "kernels/table.hpp"

namespace charrnn_fast {

// The caller sets seeds, position and outputs.
template <class T>
DrawArgs<T> draw_args(const T* logits, Index vocab_size, const SamplingOptions& options);

// Throws std::invalid_argument if DrawArgs::failure (of the host, [3]) holds one.
template <class T>
void check_draw(const double* failure);

}  // namespace charrnn_fast
