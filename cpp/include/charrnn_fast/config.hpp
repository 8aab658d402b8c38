// Used by every header of charrnn_fast: the index type and the host/device macro.
#pragma once

#include <cstdint>

// One definition of each cell for every device: nvcc compiles these functions for host and device;
// a C++ compiler inlines them into the calling loop.
#if defined(__CUDACC__)
#define CHARRNN_INLINE __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define CHARRNN_INLINE inline __attribute__((always_inline))
#else
#define CHARRNN_INLINE inline
#endif

namespace charrnn_fast {

using Index = std::int64_t;  // sizes, strides and offsets, in elements
using Token = std::int32_t;

constexpr int max_states = 4;                // of a cell
constexpr int max_slots = 3, max_hyper = 7;  // of an optimizer's rule

}  // namespace charrnn_fast
