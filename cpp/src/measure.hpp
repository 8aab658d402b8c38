// Single kernels, for tests of accuracy and for benchmarks.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "charrnn_fast/model.hpp"

namespace charrnn_fast {

// function must be "exp", "sigmoid" or "tanh", else std::invalid_argument is thrown.
template <class T>
void apply_math(const std::string& function, const T* x, Index n, T* out);

// The bound that math.hpp states for float.
double math_ulp_bound(const std::string& function);

// The largest error in ulp against long double, and where it occurs, over the floats of the bit
// patterns first, first + stride, ... (count of them).
std::pair<double, double> math_max_ulp(const std::string& function, std::uint64_t first,
                                       std::uint64_t count, std::uint64_t stride);

// c [M, N] = a [M, K] @ b [K, N], by the packed product.
template <class T>
void multiply(const T* a, const T* b, Index rows, Index cols, Index depth, T* c);

// FLOP/s of independent fused multiply-adds on this thread: the best of repeated short runs.
template <class T>
double fma_peak(double seconds);

// Bytes per second at which this thread reads a buffer of `bytes` bytes (at least 64) repeatedly:
// the best of repeated short runs.
double read_bandwidth(Index bytes, double seconds);

// Seconds per step: the mean over `count` calls (at least 1) of Model::step with the same x [B, I].
// state [S, L, B, H] is updated in place.
template <class T>
double time_steps(Model<T>& model, const T* x, Index batch, T* state, Index count);

}  // namespace charrnn_fast
