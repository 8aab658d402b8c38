// What tests run on teams: a test of their barriers, and everything that a model does.
#pragma once

#include <cstdint>
#include <vector>

#include "charrnn_fast/model.hpp"
#include "charrnn_fast/threads.hpp"
#include "check.hpp"
#include "cpu/thread_pool.hpp"
#include "values.hpp"

namespace charrnn_fast {

// A lost wake-up hangs, a lost write shows. Returns the sum of the teams' sizes.
inline long check_barriers(int threads, int rounds) {
  set_num_threads(threads);
  std::vector<int> counts(static_cast<std::size_t>(threads), -1);
  long good = 0, members = 0;
  for (int r = 0; r < rounds; ++r)
    ThreadPool::instance().run(threads, [&](const Team& team) {
      counts[static_cast<std::size_t>(team.part)] = r;
      team.wait();
      if (team.part == r % team.parts) {
        members += team.parts;
        for (int i = 0; i < team.parts; ++i) good += counts[static_cast<std::size_t>(i)] == r;
      }
      team.wait();
    });
  CHECK(good == members && members >= rounds, "%ld of %ld in %d rounds on %d threads", good,
        members, rounds, threads);
  return members;
}

// Everything that a model does, as bytes: training, evaluating, sampling, single steps.
template <class T>
std::vector<char> results(const CellInfo& cell) {
  constexpr Index steps = 5, B = 14, V = 11, H = 36, L = 2;
  NetworkShape shape{cell.name, V, H, V, L, Bias::both};
  shape.nonlinearity = cell.nonlinearity;
  Model<T> model(shape);
  model.change_parameters([&](T* p) {
    for (const Parameter& q : model.network().parameters()) {
      const auto values = random_values<T>(q.elements(), static_cast<unsigned>(q.offset));
      for (Index i = 0; i < q.elements(); ++i)
        p[q.offset + i] = T(0.3) * values[static_cast<std::size_t>(i)];
    }
  });
  Optimizer<T> optimizer("adam", OptimizerOptions{}, model.network().parameter_elements());
  const auto tokens = random_tokens((steps + 1) * B, V, 1);
  const typename Model<T>::Batch in{steps, B, tokens.data(), nullptr};
  const SequenceInput<T> one{1, B, tokens.data(), nullptr};
  std::vector<T> state(static_cast<std::size_t>(model.state_elements(B)), T(0));
  std::vector<T> y(static_cast<std::size_t>(B * V));
  std::vector<Token> drawn(static_cast<std::size_t>(steps * B));
  const std::vector<std::uint64_t> seeds(B, 3);
  std::vector<char> bytes;
  const auto keep = [&](const void* data, std::size_t size) {
    const char* const p = static_cast<const char*>(data);
    bytes.insert(bytes.end(), p, p + size);
  };
  for (int i = 0; i < 3; ++i) {
    const auto [loss, norm] =
        model.train_step(in, tokens.data() + B, state.data(), optimizer, {0.01, 1.0, 1.0, true});
    keep(&loss, sizeof loss), keep(&norm, sizeof norm);
  }
  const double evaluation = model.evaluate(in, tokens.data() + B, state.data()).loss_sum;
  keep(&evaluation, sizeof evaluation);
  model.step(one, state.data(), y.data());
  model.sample(steps, B, tokens.data(), state.data(), seeds.data(), 0, {1, 5, 0.9}, drawn.data());
  keep(y.data(), y.size() * sizeof(T));
  keep(drawn.data(), drawn.size() * sizeof(Token));
  keep(state.data(), state.size() * sizeof(T));
  keep(model.parameters(),
       static_cast<std::size_t>(model.network().parameter_elements()) * sizeof(T));
  return bytes;
}

}  // namespace charrnn_fast
