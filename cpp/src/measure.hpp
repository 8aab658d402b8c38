// The kernels' parts by themselves, for tests of accuracy and for benchmarks.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "charrnn_fast/config.hpp"

namespace charrnn_fast {

// function: "exp", "sigmoid" or "tanh"; throws std::invalid_argument for another.
template <class T>
void apply_math(const std::string& function, const T* x, Index n, T* out);

// What math.hpp states for float.
double math_ulp_bound(const std::string& function);

// The largest error in ulp against long double over the floats of the bit patterns first,
// first + stride, ... (count of them), and where it occurs.
std::pair<double, double> math_max_ulp(const std::string& function, std::uint64_t first,
                                       std::uint64_t count, std::uint64_t stride);

// c [M, N] = a [M, K] @ b [K, N] by the packed product.
template <class T>
void multiply(const T* a, const T* b, Index rows, Index cols, Index depth, T* c);

// FLOP/s of independent fused multiply-adds on this thread, the best of repeated short runs.
template <class T>
double fma_peak(double seconds);

}  // namespace charrnn_fast
