// Texts of a small model on a device beside the CPU's: where does each first differ? A text follows
// from its seed, so it can differ only where rounding moves a probability across a draw. One JSON
// line for each text that differs, with that draw's distance from the nearest boundary; then one
// for all. Fails if a distance is above 1e-5.
//
//   compare_texts STREAMS LENGTH    on the emulator, 64 texts of 2000 characters take minutes
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "charrnn_fast/cuda.hpp"
#include "charrnn_fast/model.hpp"

namespace {

using namespace charrnn_fast;

constexpr Index vocab_size = 28, hidden_size = 32, num_layers = 2;
constexpr double most_distance = 1e-5;
const char* const cells[] = {"lstm", "gru", "rnn"};

std::size_t count(Index n) { return static_cast<std::size_t>(n); }

class Sampler {
 public:
  Sampler(const char* cell, Device& device)
      : model_({cell, vocab_size, hidden_size, vocab_size, num_layers}, device) {
    model_.change_parameters([&](float* flat) {
      const float limit = 3 / std::sqrt(static_cast<float>(hidden_size));
      std::uint32_t random = 1;
      for (const Parameter& p : model_.network().parameters())
        for (Index i = 0; i < p.elements(); ++i) {
          random = random * 1664525 + 1013904223;
          flat[p.offset + i] = limit * (static_cast<float>(random >> 8) * 0x1p-23f - 1);
        }
    });
  }

  // [length, streams]; seed b for stream b
  std::vector<Token> texts(Index streams, Index length) {
    std::vector<Token> first(count(streams), 0), drawn(count(streams * length));
    std::vector<float> state(count(model_.state_elements(streams)), 0);
    std::vector<std::uint64_t> seeds;
    for (Index b = 0; b < streams; ++b) seeds.push_back(static_cast<std::uint64_t>(b));
    model_.sample(length, streams, first.data(), state.data(), seeds.data(), 0, {}, drawn.data());
    return drawn;
  }

  // Of draw `at` of a text: how far u is from the nearest sum of probabilities.
  double distance(const std::vector<Token>& text, std::uint64_t seed, Index at) {
    std::vector<float> state(count(model_.state_elements(1)), 0), logits(vocab_size);
    for (Index i = 0; i <= at; ++i) {
      const Token token = i > 0 ? text[count(i - 1)] : 0;
      model_.step({1, 1, &token, nullptr}, state.data(), logits.data());
    }
    double total = 0, sum = 0, least = 1;
    for (float x : logits) total += std::exp(static_cast<double>(x));
    const double u = (philox(seed, static_cast<std::uint64_t>(at), 0)[0] >> 8) * 0x1p-24;
    for (float x : logits) {
      sum += std::exp(static_cast<double>(x));
      least = std::min(least, std::fabs(sum / total - u));
    }
    return least;
  }

 private:
  Model<float> model_;
};

}  // namespace

int main(int argc, char** argv) {
  const Index streams = argc == 3 ? std::atoll(argv[1]) : 0;
  const Index length = argc == 3 ? std::atoll(argv[2]) : 0;
  if (streams < 1 || length < 1) {
    std::fputs("usage: compare_texts STREAMS LENGTH\n", stderr);
    return 2;
  }
  bool good = true;
  try {
    for (const char* cell : cells) {
      Sampler here(cell, cpu_device()), there(cell, cuda_device());
      const std::vector<Token> a = here.texts(streams, length), b = there.texts(streams, length);
      std::vector<int> used(vocab_size, 0);
      for (Token token : a) used[count(token)] = 1;
      Index different = 0;
      for (Index s = 0; s < streams; ++s) {
        Index at = 0;
        std::vector<Token> text;
        for (; at < length && a[count(at * streams + s)] == b[count(at * streams + s)]; ++at)
          text.push_back(a[count(at * streams + s)]);
        if (at == length) continue;
        ++different;
        const double distance = here.distance(text, static_cast<std::uint64_t>(s), at);
        good &= distance <= most_distance;
        std::printf(
            "{\"cell\": \"%s\", \"seed\": %lld, \"first_difference\": %lld, "
            "\"distance\": %.3g}\n",
            cell, static_cast<long long>(s), static_cast<long long>(at), distance);
      }
      std::printf(
          "{\"cell\": \"%s\", \"texts\": %lld, \"length\": %lld, \"tokens_used\": %lld, "
          "\"different\": %lld}\n",
          cell, static_cast<long long>(streams), static_cast<long long>(length),
          static_cast<long long>(std::count(used.begin(), used.end(), 1)),
          static_cast<long long>(different));
      std::fflush(stdout);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return good ? 0 : 1;
}
