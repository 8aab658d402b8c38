// Internal: for programs that add a cell of their own. It changes without notice, as do the tables
// of kernels that it names.
#pragma once

#include "charrnn_fast/network.hpp"
#include "kernels/table.hpp"

namespace charrnn_fast {

// A network of a cell that is not in cells.hpp's list; the shape's name of a cell is not looked at.
// The cell's kernels are of the device, and stay while the network is used.
template <class T>
Network<T> network_of_cell(const NetworkShape& shape, const CellKernels<T>& cell, Device& device);

}  // namespace charrnn_fast
