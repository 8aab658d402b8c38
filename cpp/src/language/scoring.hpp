// The loss of a text, and the log-probabilities of many texts at once.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "charrnn_fast/model.hpp"
#include "language/drawing.hpp"

namespace charrnn_fast {

// The mean loss of ids [N], N >= 2, in nats, from the zero state.
template <class T>
double mean_loss(Model<T>& model, const std::vector<Token>& ids) {
  constexpr Index block = 1024;  // steps: bounds the memory
  std::vector<T> state(static_cast<std::size_t>(model.state_elements(1)), T(0));
  const auto predicted = static_cast<Index>(ids.size()) - 1;
  double total = 0;
  for (Index start = 0; start < predicted; start += block) {
    const Token* const inputs = ids.data() + start;
    const Index steps = std::min(block, predicted - start);
    total += model.evaluate({steps, 1, inputs, nullptr}, inputs + 1, state.data()).loss_sum;
  }
  return total / static_cast<double>(predicted);
}

// log p of each text [N]: the sum of log p(id | first, all ids before) over its ids. Every text
// starts from the zero state, and the network reads the id `first` before it. A text's result does
// not depend on the others.
template <class T>
std::vector<double> log_probabilities(Model<T>& model, Token first,
                                      const std::vector<std::vector<Token>>& texts) {
  constexpr Index most_steps = 1024, most_streams = 256;
  constexpr Index elements = Index(1) << 24;  // of hidden vectors and gates at once
  const NetworkShape& shape = model.network().shape();
  const Index width = shape.hidden_size * (shape.num_layers + 4);
  // The same for all texts: their sums go block by block, and other blocks would round otherwise.
  const Index block =
      std::min(most_steps, std::max<Index>(1, elements / (width + shape.output_size)));
  const auto length = [&](std::size_t i) { return static_cast<Index>(texts[i].size()); };
  std::vector<double> result(texts.size(), 0.0);
  // Sorted by length, the longest first: a batch then has little padding.
  std::vector<std::size_t> order(texts.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return length(a) > length(b); });
  for (std::size_t begin = 0; begin < order.size() && length(order[begin]) > 0;) {
    const Index longest = std::min(length(order[begin]), block);
    const auto streams = static_cast<std::size_t>(
        std::min(most_streams, std::max<Index>(1, elements / (width * longest))));
    const std::size_t end = std::min(order.size(), begin + streams);
    std::vector<std::size_t> batch(order.begin() + static_cast<std::ptrdiff_t>(begin),
                                   order.begin() + static_cast<std::ptrdiff_t>(end));
    begin = end;
    while (length(batch.back()) == 0) batch.pop_back();
    std::vector<Token> last(batch.size(), first);
    std::vector<T> state(
        static_cast<std::size_t>(model.state_elements(static_cast<Index>(batch.size()))), T(0));
    for (Index start = 0; start < length(batch[0]); start += block) {
      const auto before = static_cast<Index>(batch.size());
      while (length(batch.back()) <= start) batch.pop_back();
      const auto B = static_cast<Index>(batch.size());
      std::vector<Index> lengths, rows(batch.size());
      for (const std::size_t i : batch) lengths.push_back(std::min(block, length(i) - start));
      std::iota(rows.begin(), rows.end(), Index(0));
      if (B < before) state = state_rows(model.network(), state, before, rows);
      // Padding must be valid ids.
      const Index steps = lengths[0];
      std::vector<Token> inputs(static_cast<std::size_t>(steps * B), 0), targets(inputs);
      for (Index b = 0; b < B; ++b) {
        const Token* const ids = texts[batch[static_cast<std::size_t>(b)]].data() + start;
        for (Index t = 0; t < lengths[static_cast<std::size_t>(b)]; ++t) {
          const auto at = static_cast<std::size_t>(t * B + b);
          targets[at] = ids[t];
          inputs[at] = t > 0 ? ids[t - 1] : last[static_cast<std::size_t>(b)];
        }
        last[static_cast<std::size_t>(b)] = ids[lengths[static_cast<std::size_t>(b)] - 1];
      }
      std::vector<double> losses(batch.size());
      model.evaluate({steps, B, inputs.data(), nullptr, lengths.data()}, targets.data(),
                     state.data(), losses.data());
      for (std::size_t b = 0; b < batch.size(); ++b) result[batch[b]] -= losses[b];
    }
  }
  return result;
}

}  // namespace charrnn_fast
