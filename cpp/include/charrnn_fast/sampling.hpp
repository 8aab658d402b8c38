// Drawing tokens: counter-based random numbers, so that a stream's text depends on its seed alone.
#pragma once

#include <array>
#include <cstdint>

#include "charrnn_fast/config.hpp"

namespace charrnn_fast {

// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) of the key
// (its low half, its high half) and a counter.
std::array<std::uint32_t, 4> philox(std::uint64_t key, std::array<std::uint32_t, 4> counter);

// The same of the key `seed` and the counter (position's low half, high half, lane, 0).
std::array<std::uint32_t, 4> philox(std::uint64_t seed, std::uint64_t position, std::uint32_t lane);

struct SamplingOptions {
  double temperature = 1;  // logits are divided by it; 0: the likeliest token (the first of equals)
  Index top_k = 0;         // keep the k likeliest tokens; 0: all
  double top_p = 1;        // of these, keep the fewest whose probabilities reach p
};

// Throws std::invalid_argument for a temperature below 0 or not finite, top_k below 0, top_p
// outside (0, 1].
void check(const SamplingOptions& options);

// Memory for draw_tokens.
template <class T>
Index draw_elements(Index vocab_size);

// tokens[b] from logits [B, V]: the draw number `position` of the stream seeds[b], which is
// u = (first word of philox(seed, position, 0) >> 8) * 2^-24 against the cumulated probabilities.
// Throws std::invalid_argument where a row's probabilities are not finite.
template <class T>
void draw_tokens(const T* logits, Index batch, Index vocab_size, const std::uint64_t* seeds,
                 std::uint64_t position, const SamplingOptions& options, Token* tokens,
                 T* workspace);

}  // namespace charrnn_fast
