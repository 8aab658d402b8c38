// Internal: a network of a cell, for programs that add one. Changes without notice, as do the
// kernel tables.
#pragma once

#include "charrnn_fast/network.hpp"
#include "kernels/table.hpp"

namespace charrnn_fast {

// A network of a cell outside of cells.hpp's list; shape.cell is ignored. The cell's kernels must
// be the device's and outlive the network.
template <class T>
Network<T> network_of_cell(const NetworkShape& shape, const CellKernels<T>& cell, Device& device);

}  // namespace charrnn_fast
