// Operands of products that round them, see Compute. Rows of a table and their gradients take the
// CPU's numbers by plain arithmetic (elementwise.cuh), matrix products the matrix units
// (tiles.cuh).
#pragma once

#include "kernels/launch.cuh"

namespace charrnn_fast {
namespace cuda {

CHARRNN_INLINE float float_of_bits(std::uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}
CHARRNN_INLINE std::uint32_t bits_of(float x) {
  std::uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

// x without its last `bits` bits: to nearest, ties to even. NaN stays NaN.
CHARRNN_INLINE std::uint32_t shortened(float x, int bits) {
  const std::uint32_t all = bits_of(x), last = 1u << bits;
  if (x != x) return (all & ~(last - 1)) | 0x400000u;
  return (all + (last / 2 - 1) + (all >> bits & 1)) & ~(last - 1);
}
CHARRNN_INLINE std::uint32_t to_bfloat16(float x) { return shortened(x, 16) >> 16; }

// x, or if subnormal a zero of its sign.
CHARRNN_INLINE float flushed(float x) {
  const std::uint32_t bits = bits_of(x);
  return (bits & 0x7fffffffu) < 0x00800000u ? float_of_bits(bits & 0x80000000u) : x;
}

template <class T>
CHARRNN_INLINE T operand(T x, Compute compute) {
  if constexpr (sizeof(T) == 4) {
    if (compute == Compute::bfloat16) return float_of_bits(shortened(flushed(x), 16));
    if (compute == Compute::tf32) return float_of_bits(shortened(x, 13));
  }
  return x;
}

// acc + a * b of such operands, as the CPU rounds it.
template <class T>
CHARRNN_INLINE T add_product(T a, T b, T acc, Compute compute) {
  if constexpr (sizeof(T) == 4) {
    if (compute == Compute::bfloat16) return fma_flushed(a, b, acc);
  }
  return fma(a, b, acc);
}

}  // namespace cuda
}  // namespace charrnn_fast
