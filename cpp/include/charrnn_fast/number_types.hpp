// How numbers are stored and rounded where it is not the network's own type T.
#pragma once

#include <cstdint>

namespace charrnn_fast {

// Number type of packed weights: T (full); or bfloat16, for T float and without backward: half the
// memory, the same arithmetic (but those of Packing::forward_tokens are always T). Parameters
// rounded to bfloat16 give the same bits with either.
enum class Storage { full, bfloat16 };

// How the operands of all matrix products are rounded: not at all (float32, which also stands for T
// double); to TF32, 10 bits of fraction; or to bfloat16, 7 bits. Nearest, ties to even. Sums,
// states, gradients and parameters stay T.
enum class Compute { float32, tf32, bfloat16 };

using Bfloat16 = std::uint16_t;  // the upper half of a float's bits

}  // namespace charrnn_fast
