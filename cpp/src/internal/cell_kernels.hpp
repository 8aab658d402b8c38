// Internal: the kernels of a cell, for programs that add one. Changes without notice.
//
// Compile a source that includes this once per instruction set and number type, as kernels/isa.hpp
// says. In namespace charrnn_fast::CHARRNN_ISA, cell_kernels<Cell, T>() returns the cell's kernels.
#pragma once

#include "kernels/isa.hpp"
