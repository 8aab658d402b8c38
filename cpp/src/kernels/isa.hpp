// The file that each kernel source includes. The build compiles kernels.cpp once per instruction
// set and number type with
//   CHARRNN_ISA            namespace of the set, e.g. x86_64_v3
//   CHARRNN_SCALAR         float or double
// and the set's compiler flags. All code is in an anonymous namespace; the object file exports only
// its table's accessor.
#pragma once

#include <algorithm>
#include <type_traits>
#include <utility>

#include "charrnn_fast/cells.hpp"
#include "charrnn_fast/optimizers.hpp"
#include "kernels/table.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace charrnn_fast {
namespace CHARRNN_ISA {
namespace {

// Bytes of a vector; accumulators of a tile: what fits in the registers besides the broadcasts and
// one vector of weights.
#if defined(__AVX512F__)
constexpr int vector_bytes = 64, tile_accumulators = 24;
#elif defined(__AVX2__)
constexpr int vector_bytes = 32, tile_accumulators = 12;
#elif defined(__aarch64__)
constexpr int vector_bytes = 16, tile_accumulators = 24;
#else
constexpr int vector_bytes = 16, tile_accumulators = 12;
#endif

CHARRNN_INLINE Index min_of(Index a, Index b) { return a < b ? a : b; }
CHARRNN_INLINE Index max_of(Index a, Index b) { return a > b ? a : b; }
CHARRNN_INLINE constexpr Index ceil_div(Index a, Index b) { return (a + b - 1) / b; }

// Most gates of a cell.
constexpr int max_gates = 4;

// Each file uses only those above it.
// clang-format off
#include "kernels/unroll.hpp"
#include "kernels/pack.hpp"
#include "kernels/rounding.hpp"
#include "kernels/int8.hpp"
#include "kernels/gemm.hpp"
#include "kernels/norm.hpp"
#include "kernels/philox.hpp"
#include "kernels/masks.hpp"
#include "kernels/recurrent.hpp"
#include "kernels/several.hpp"
#include "kernels/streams.hpp"
#include "kernels/cell_kernels.hpp"
#include "kernels/elementwise.hpp"
#include "kernels/sequences.hpp"
#include "kernels/draws.hpp"
// clang-format on

}  // namespace
}  // namespace CHARRNN_ISA
}  // namespace charrnn_fast
