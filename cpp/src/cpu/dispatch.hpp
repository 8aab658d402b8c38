// Chooses the instruction set's kernel table, once, at first use.
#pragma once

#include <string>
#include <vector>

#include "kernels/table.hpp"

namespace charrnn_fast {

// The best set that this processor runs, or the one in CHARRNN_ISA. That must be known, built and
// runnable here, else std::invalid_argument is thrown.
template <class T>
const Kernels<T>& kernels();

std::string isa_in_use();
std::vector<std::string> runnable_isas();  // best first

}  // namespace charrnn_fast
