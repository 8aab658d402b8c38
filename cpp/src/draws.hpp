// Sampling: from the kernel's result to an error.
#pragma once

#include "charrnn_fast/sampling.hpp"
#include "kernels/table.hpp"

namespace charrnn_fast {

// Throws std::invalid_argument if DrawArgs::failure (of the host, [3]) holds one.
template <class T>
void check_draw(const double* failure);

}  // namespace charrnn_fast
