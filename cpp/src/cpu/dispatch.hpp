// Chooses the instruction set's table of kernels, once, at first use.
#pragma once

#include <string>
#include <vector>

#include "kernels/table.hpp"

namespace charrnn_fast {

// The best set that this processor runs, or the one that CHARRNN_ISA names; throws
// std::invalid_argument where that is unknown, not built or not runnable here.
template <class T>
const Kernels<T>& kernels();

std::string isa_in_use();
std::vector<std::string> runnable_isas();  // best first

}  // namespace charrnn_fast
