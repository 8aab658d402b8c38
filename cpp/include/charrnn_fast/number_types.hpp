// How numbers are stored and rounded where it is not the network's own type T.
#pragma once

#include <cstdint>

namespace charrnn_fast {

// Number type of packed weights: T (full); or, for T float and without backward, bfloat16 (half the
// memory) or int8 with one scale per row (a quarter). Arithmetic stays in T, but that products with
// int8 are sums of integers; and weights of Packing::forward_tokens are always T. Parameters
// rounded to bfloat16 give the same bits with full and bfloat16; parameters rounded to int8 give
// the same bits with int8 as those they were rounded from.
enum class Storage { full, bfloat16, int8 };
constexpr int num_storages = 3;

// How the operands of all matrix products are rounded: not at all (float32, which also stands for T
// double); to TF32, 10 bits of fraction; or to bfloat16, 7 bits. Nearest, ties to even. Sums,
// states, gradients and parameters stay T.
enum class Compute { float32, tf32, bfloat16 };

using Bfloat16 = std::uint16_t;  // the upper half of a float's bits

}  // namespace charrnn_fast
