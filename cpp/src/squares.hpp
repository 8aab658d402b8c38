// Sums of squares in a device's memory, in the order of sum_of_squares in optimizer.hpp.
#pragma once

#include "charrnn_fast/device.hpp"
#include "kernels/table.hpp"

namespace charrnn_fast {

inline Index square_chunks(Index n) { return (n + square_chunk - 1) / square_chunk; }

// *sum = the sum of squares of x [n]; chunks: workspace of square_chunks(n) numbers.
template <class T>
void sum_of_squares(Device& device, const T* x, Index n, double* chunks, double* sum);

}  // namespace charrnn_fast
