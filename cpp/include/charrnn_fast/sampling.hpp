// Sampling: counter-based random numbers, so that a stream's text depends on its seed alone.
#pragma once

#include <array>
#include <cstdint>

#include "charrnn_fast/config.hpp"

namespace charrnn_fast {

// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) of a counter
// and a key (low half, high half).
std::array<std::uint32_t, 4> philox(std::uint64_t key, std::array<std::uint32_t, 4> counter);

// The same with key `seed` and counter (position's low half, high half, lane, 0).
std::array<std::uint32_t, 4> philox(std::uint64_t seed, std::uint64_t position, std::uint32_t lane);

struct SamplingOptions {
  double temperature = 1;  // divides the logits; 0: the likeliest token (the first of equals)
  Index top_k = 0;         // keep the k likeliest tokens; 0: all
  double top_p = 1;        // of these, keep the fewest whose probabilities sum to p or more
  // Before all else, the logits of the last repetition_window tokens are lowered: divided by the
  // penalty if positive (Keskar et al., "CTRL", 2019, arXiv 1909.05858, section 4.1), else
  // multiplied, since dividing would raise them. 1: none.
  double repetition_penalty = 1;
  Index repetition_window = 64;
};

// temperature must be finite and at least 0, top_k at least 0, top_p in (0, 1], repetition_penalty
// finite and at least 1, repetition_window in 1 to 2^30, else std::invalid_argument is thrown.
void check(const SamplingOptions& options);

// A stream of draws: its seed, the number of its next draw, and how it draws.
struct StreamSampling {
  std::uint64_t seed = 0, position = 0;
  SamplingOptions options;
};

// Elements of draw_tokens' workspace.
template <class T>
Index draw_elements(Index vocab_size);

// tokens[b] from logits [B, V]: draw number `position` of the stream seeds[b]. Compares u = (first
// word of philox(seed, position, 0) >> 8) * 2^-24 with the cumulative probabilities. recent:
// [repetition_window, B] tokens that the penalty is for, -1 for none, or null. Throws
// std::invalid_argument if a row's probabilities are not finite.
template <class T>
void draw_tokens(const T* logits, Index batch, Index vocab_size, const std::uint64_t* seeds,
                 std::uint64_t position, const SamplingOptions& options, Token* tokens,
                 T* workspace, const Token* recent = nullptr);

}  // namespace charrnn_fast
