// Streams of tokens, one per seed, from a common start.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "charrnn_fast/model.hpp"

namespace charrnn_fast {

// Where drawing begins: the state of one row, and the token to read next.
template <class T>
struct DrawingStart {
  std::vector<T> state;
  Token token;
};

// Copies rows of the states [all h [L, from, R], all c [L, from, H]] of `from` streams.
template <class T>
std::vector<T> state_rows(const Network<T>& network, const std::vector<T>& states, Index from,
                          const std::vector<Index>& rows) {
  const auto batch = static_cast<Index>(rows.size());
  std::vector<T> result(static_cast<std::size_t>(network.state_elements(batch)));
  for (Index s = 0; s < network.num_states(); ++s) {
    const Index width = network.state_width(s);
    const T* in = states.data() + network.state_offset(s, from);
    T* out = result.data() + network.state_offset(s, batch);
    for (Index l = 0; l < network.shape().num_layers; ++l, in += from * width)
      for (const Index row : rows) out = std::copy_n(in + row * width, width, out);
  }
  return result;
}

// Reads tokens, one or more, from the zero state, except the last: drawing reads that one.
template <class T>
DrawingStart<T> read_tokens(Model<T>& model, const std::vector<Token>& tokens, Storage weights) {
  constexpr Index block = 1024;  // bounds the memory
  std::vector<T> state(static_cast<std::size_t>(model.state_elements(1)), T(0));
  const auto last = static_cast<Index>(tokens.size()) - 1;
  for (Index start = 0; start < last; start += block)
    model.read({std::min(block, last - start), 1, tokens.data() + start, nullptr}, state.data(),
               weights);
  return {std::move(state), tokens.back()};
}

// Draw n of a stream (counted from 0) depends only on its seed and n: not on other streams, and not
// on how many tokens are drawn per call.
template <class T>
class Drawing {
 public:
  // prime: what stands before the first draw, for a repetition_penalty.
  Drawing(Model<T>& model, const DrawingStart<T>& start, const std::vector<Token>& prime,
          std::vector<std::uint64_t> seeds, const SamplingOptions& options, Storage weights)
      : model_(model), options_(options), weights_(weights), seeds_(std::move(seeds)) {
    last_.assign(seeds_.size(), start.token);
    state_ = state_rows(model.network(), start.state, 1, std::vector<Index>(seeds_.size(), 0));
    if (options.repetition_penalty > 1) {
      const std::size_t streams = seeds_.size();
      const auto window = static_cast<std::size_t>(options.repetition_window);
      const std::size_t known = std::min(window, prime.size());
      recent_.assign(window * streams, -1);
      for (std::size_t j = 0; j < known; ++j)
        std::fill_n(recent_.end() - static_cast<std::ptrdiff_t>((known - j) * streams), streams,
                    prime[prime.size() - known + j]);
    }
  }

  // B, the number of streams.
  Index count() const { return static_cast<Index>(seeds_.size()); }

  // The next tokens [steps, B]; valid until the next call.
  const Token* draw(Index steps) {
    drawn_.resize(static_cast<std::size_t>(steps * count()));
    model_.sample(steps, count(), last_.data(), state_.data(), seeds_.data(), position_, options_,
                  drawn_.data(), weights_, recent_.empty() ? nullptr : recent_.data());
    std::copy(drawn_.end() - static_cast<std::ptrdiff_t>(last_.size()), drawn_.end(),
              last_.begin());
    position_ += static_cast<std::uint64_t>(steps);
    return drawn_.data();
  }

  // Keeps only these streams, in this order.
  void keep(const std::vector<Index>& streams) {
    state_ = state_rows(model_.network(), state_, count(), streams);
    const auto before = static_cast<std::size_t>(count());
    const auto from = std::exchange(recent_, {});
    for (std::size_t row = 0; row < from.size(); row += before)
      for (const Index s : streams) recent_.push_back(from[row + static_cast<std::size_t>(s)]);
    const auto select = [&](auto& values) {
      auto from = std::exchange(values, {});
      for (const Index s : streams) values.push_back(from[static_cast<std::size_t>(s)]);
    };
    select(seeds_);
    select(last_);
  }

 private:
  Model<T>& model_;
  SamplingOptions options_;
  Storage weights_;
  std::vector<std::uint64_t> seeds_;
  std::vector<Token> last_, drawn_;
  std::vector<Token> recent_;  // [window, B], see Model::sample; empty without a penalty
  std::vector<T> state_;
  std::uint64_t position_ = 0;
};

}  // namespace charrnn_fast
