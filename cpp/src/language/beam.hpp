// Beam search: the likeliest text of a length, or up to a stop string.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "errors.hpp"
#include "language/drawing.hpp"

namespace charrnn_fast {

struct LikeliestTokens {
  std::vector<Token> tokens;
  double log_probability;
};

// Of one step: some 40 bytes each, 11 GB.
inline constexpr Index most_candidates = Index{1} << 28;

// Throws std::invalid_argument if a step of the search has too many candidates. There are no more
// beginnings than texts.
inline void check_candidates(Index beam, Index length, Index vocabulary) {
  Index beginnings = 1;
  for (Index step = 1; step < length && beginnings < beam && vocabulary > 1; ++step)
    beginnings = std::min(beam, beginnings * vocabulary);
  require(beginnings <= most_candidates / vocabulary, "a step of a beam search must have ",
          most_candidates, " candidates or fewer, got ", beginnings, " beginnings of ", vocabulary,
          " symbols; take a smaller beam");
}

// The length of the longest stop string that `token` completes behind the row's tail, else 0.
inline std::size_t completed(const std::vector<std::vector<Token>>& stops,
                             const std::vector<Token>& tail, Token token) {
  std::size_t longest = 0;
  for (const std::vector<Token>& stop : stops) {
    if (stop.back() != token || stop.size() <= longest || stop.size() - 1 > tail.size()) continue;
    if (std::equal(stop.begin(), stop.end() - 1,
                   tail.end() - static_cast<std::ptrdiff_t>(stop.size() - 1)))
      longest = stop.size();
  }
  return longest;
}

// See LanguageModel::beam_search. The beginnings are the streams of one batch. stops: none is
// empty.
template <class T>
LikeliestTokens find_likeliest(Model<T>& model, const DrawingStart<T>& start, Index length,
                               const std::vector<std::vector<Token>>& stops, Storage weights,
                               Index width) {
  constexpr double impossible = -std::numeric_limits<double>::infinity();
  struct Beginning {
    std::size_t parent;
    Token token;
  };
  struct Ended {
    double log_probability;
    std::size_t step, parent, cut;  // cut: tokens of the stop string before the last
  };
  const auto V = static_cast<std::size_t>(model.output_size());
  std::size_t longest = 1;
  for (const auto& stop : stops) longest = std::max(longest, stop.size());
  std::vector<T> state = start.state;
  std::vector<Token> fed{start.token};
  std::vector<double> sums{0};
  std::vector<std::vector<Token>> tails(1);  // the last tokens of each, at most `longest`
  std::vector<std::vector<Beginning>> steps;
  std::optional<Ended> best;
  const auto traced = [&](std::size_t count, std::size_t row) {
    std::vector<Token> tokens(count);
    for (std::size_t step = count; step-- > 0;) {
      tokens[step] = steps[step][row].token;
      row = steps[step][row].parent;
    }
    return tokens;
  };
  for (Index step = 0; step < length; ++step) {
    const std::size_t rows = fed.size();
    std::vector<T> nats(rows * V);
    model.next(static_cast<Index>(rows), fed.data(), state.data(), nats.data(), weights);
    std::vector<double> candidates(rows * V);
    std::vector<std::size_t> order;
    for (std::size_t row = 0; row < rows; ++row)
      for (std::size_t id = 0; id < V; ++id) {
        const std::size_t at = row * V + id;
        const double sum = candidates[at] = sums[row] + static_cast<double>(nats[at]);
        const std::size_t stop = completed(stops, tails[row], static_cast<Token>(id));
        if (stop == 0) {
          if (sum > impossible) order.push_back(at);
        } else if (sum > (best ? best->log_probability : impossible)) {
          best = Ended{sum, static_cast<std::size_t>(step), row, stop - 1};
        }
      }
    const auto kept =
        static_cast<std::ptrdiff_t>(std::min(order.size(), static_cast<std::size_t>(width)));
    std::partial_sort(
        order.begin(), order.begin() + kept, order.end(), [&](std::size_t a, std::size_t b) {
          return candidates[a] != candidates[b] ? candidates[a] > candidates[b] : a < b;
        });
    order.resize(static_cast<std::size_t>(kept));
    // A text only gets less likely: none of these can win any more.
    if (order.empty() || (best && best->log_probability >= candidates[order[0]])) break;
    std::vector<Beginning> chosen;
    std::vector<std::vector<Token>> tails_of;
    std::vector<Index> parents;
    fed.clear(), sums.clear();
    for (const std::size_t at : order) {
      const Beginning one{at / V, static_cast<Token>(at % V)};
      chosen.push_back(one);
      parents.push_back(static_cast<Index>(one.parent));
      fed.push_back(one.token);
      sums.push_back(candidates[at]);
      std::vector<Token> tail = tails[one.parent];
      tail.push_back(one.token);
      if (tail.size() > longest) tail.erase(tail.begin());
      tails_of.push_back(std::move(tail));
    }
    state = state_rows(model.network(), state, static_cast<Index>(rows), parents);
    tails = std::move(tails_of);
    steps.push_back(std::move(chosen));
  }
  const bool whole = static_cast<Index>(steps.size()) == length;
  if (!best || (whole && sums[0] > best->log_probability))
    return {traced(steps.size(), 0), sums[0]};
  std::vector<Token> tokens = traced(best->step, best->parent);
  tokens.resize(tokens.size() - best->cut);
  return {std::move(tokens), best->log_probability};
}

}  // namespace charrnn_fast
