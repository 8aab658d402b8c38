// Internal: for programs that add a cell of their own. It changes without notice.
//
// A source that includes this is compiled once per instruction set and number type, as
// kernels/isa.hpp says. There, inside of namespace charrnn_fast::CHARRNN_ISA, cell_kernels<Cell,
// T>() gives the kernels of a cell.
#pragma once

#include "kernels/isa.hpp"
