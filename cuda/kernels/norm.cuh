// Layer normalization of rows, a warp each: forward and, under it, backward.
#pragma once

#include "kernels/launch.cuh"

namespace charrnn_fast {
namespace cuda {

template <class T>
constexpr T norm_epsilon = T(1e-5);

// The sum of f(j) over j < n, by a warp: four chains of sum_lanes lanes, then the lanes. All its
// threads get it.
template <class T, class F>
__device__ T warp_sum(Index n, const F& f) {
  constexpr int lanes = sum_lanes<T>, parts = 4 * lanes;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  T sum = T(0);
  if (lane < parts)
    for (Index j = lane; j < n; j += parts) sum = sum + f(j);
  sum = sum + shuffle_xor(sum, lanes);
  sum = sum + shuffle_xor(sum, 2 * lanes);
  for (unsigned half = lanes / 2; half > 0; half /= 2) sum = sum + shuffle_xor(sum, half);
  return shuffle(sum, 0u);
}

// x = (x - mean) / sqrt(variance + epsilon), for a row of n; returns the divisor's inverse.
template <class T>
__device__ T normalize(T* x, Index n) {
  if (n == 0) return T(0);
  const Index lane = threadIdx.x % 32;
  const T mean = warp_sum<T>(n, [=](Index j) { return x[j]; }) / T(n);
  const T squares = warp_sum<T>(n, [=](Index j) {
    const T d = x[j] - mean;
    return d * d;
  });
  // In double, as on the CPU.
  const auto inverse = T(1.0 / sqrt(static_cast<double>(squares / T(n) + norm_epsilon<T>)));
  sync_warp();  // others' sums may have read what this lane writes
  for (Index j = lane; j < n; j += 32) x[j] = (x[j] - mean) * inverse;
  sync_warp();
  return inverse;
}

// Turns d, the gradient of gain * normalized(x), into that of x.
template <class T>
__device__ void normalize_backward(T* d, const T* gain, const T* normalized, T inverse, Index n) {
  if (n == 0) return;
  const T mean = warp_sum<T>(n, [=](Index j) { return d[j] * gain[j]; }) / T(n);
  const T slope = warp_sum<T>(n, [=](Index j) { return d[j] * gain[j] * normalized[j]; }) / T(n);
  sync_warp();
  for (Index j = threadIdx.x % 32; j < n; j += 32)
    d[j] = inverse * (fma(-normalized[j], slope, d[j] * gain[j]) - mean);
  sync_warp();
}

constexpr unsigned warps_of_block = 4;
inline unsigned warp_blocks(Index rows) {
  return static_cast<unsigned>(ceil_div(rows, warps_of_block));
}
// The row of this warp.
__device__ __forceinline__ Index warp_row() {
  return Index(blockIdx.x) * warps_of_block + threadIdx.x / 32;
}

template <class T>
__global__ void layer_norm_kernel(LayerNormArgs<T> p, Range rows) {
  const Index r = rows.begin + warp_row(), width = p.widths[0] + p.widths[1];
  if (r >= rows.end) return;
  T* const x = p.x + r * width;
  const T inverse[2] = {normalize(x, p.widths[0]), normalize(x + p.widths[0], p.widths[1])};
  if (p.inverse && threadIdx.x % 32 < 2)
    p.inverse[r * 2 + threadIdx.x % 2] = inverse[threadIdx.x % 2];
  for (Index j = threadIdx.x % 32; j < width; j += 32) {
    const T hat = x[j];
    if (p.normalized) p.normalized[r * width + j] = hat;
    x[j] = fma(p.gain[j], hat, p.bias ? p.bias[j] : T(0));
  }
}
template <class T>
void layer_norm(const LayerNormArgs<T>& p, Range rows) {
  if (size_of(rows) > 0)
    launch({dim3(warp_blocks(size_of(rows))), dim3(32 * warps_of_block)}, table_stream(),
           layer_norm_kernel<T>, p, rows);
}

template <class T>
__global__ void layer_norm_backward_kernel(LayerNormBackwardArgs<T> p, Range rows) {
  const Index r = rows.begin + warp_row(), width = p.widths[0] + p.widths[1];
  if (r >= rows.end) return;
  for (Index group = 0, at = 0; group < 2; at += p.widths[group++])
    normalize_backward(p.d + r * p.stride + at, p.gain + at, p.normalized + r * width + at,
                       p.inverse[r * 2 + group], p.widths[group]);
}
template <class T>
void layer_norm_backward(const LayerNormBackwardArgs<T>& p, Range rows) {
  if (size_of(rows) > 0)
    launch({dim3(warp_blocks(size_of(rows))), dim3(32 * warps_of_block)}, table_stream(),
           layer_norm_backward_kernel<T>, p, rows);
}

}  // namespace cuda
}  // namespace charrnn_fast
