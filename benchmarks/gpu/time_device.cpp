// Times what a device does beside the CPU, both through Model: training steps and evaluations of
// character models, and texts. The losses of the two are compared first. One JSON line a row.
//
//   time_device SECONDS [tiny]    seconds for each row; tiny: sizes for a rehearsal on the emulator
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <string>
#include <vector>

#include "charrnn_fast/cuda.hpp"
#include "charrnn_fast/model.hpp"

namespace {

using namespace charrnn_fast;
using Clock = std::chrono::steady_clock;

constexpr Index vocab_size = 65;

struct Row {
  const char* cell;
  Index layers, hidden_size, batch, seq_len;
};

// A model with the tokens of its batches, on one device.
class Run {
 public:
  Run(const Row& row, Device& device)
      : row_(row),
        device_(device),
        model_({row.cell, vocab_size, row.hidden_size, vocab_size, row.layers}, device),
        optimizer_("adam", {}, model_.network().parameter_elements(), device) {
    model_.change_parameters([&](float* flat) {
      const float limit = 1 / std::sqrt(static_cast<float>(row.hidden_size));
      std::uint32_t random = 1;
      for (const Parameter& p : model_.network().parameters())
        for (Index i = 0; i < p.elements(); ++i) {
          random = random * 1664525 + 1013904223;
          flat[p.offset + i] = limit * (static_cast<float>(random >> 8) * 0x1p-23f - 1);
        }
    });
    std::uint32_t random = 2;
    for (Index i = 0; i < 2 * row.batch * row.seq_len; ++i) {
      random = random * 1664525 + 1013904223;
      tokens_.push_back(static_cast<Token>((random >> 8) % vocab_size));
    }
    state_.resize(static_cast<std::size_t>(model_.state_elements(row.batch)));
  }

  double train() {
    return model_.train_step(batch(), targets(), state_.data(), optimizer_, TrainOptions{1e-3, 5.0})
        .loss;
  }
  double evaluate() {
    const auto losses = model_.evaluate(batch(), targets(), state_.data());
    return losses.loss_sum / static_cast<double>(losses.count);
  }
  double sample() {
    const auto streams = static_cast<std::size_t>(row_.batch);
    const std::vector<std::uint64_t> seeds(streams, 7);
    std::vector<Token> drawn(streams * static_cast<std::size_t>(row_.seq_len));
    model_.sample(row_.seq_len, row_.batch, tokens_.data(), state_.data(), seeds.data(), 0, {},
                  drawn.data());
    double sum = 0;
    for (Token token : drawn) sum += token;
    return sum;
  }
  void wait() { device_.synchronize(); }

 private:
  Model<float>::Batch batch() const { return {row_.seq_len, row_.batch, tokens_.data(), nullptr}; }
  const Token* targets() const { return tokens_.data() + row_.seq_len * row_.batch; }

  const Row row_;
  Device& device_;
  Model<float> model_;
  Optimizer<float> optimizer_;
  std::vector<Token> tokens_;
  std::vector<float> state_;
};

struct Measured {
  const char* what;
  double (Run::*call)();
};
constexpr Measured measured[] = {
    {"train", &Run::train}, {"evaluate", &Run::evaluate}, {"sample", &Run::sample}};

// The least and the median milliseconds of one call within the seconds, at least three calls.
void time_call(const Row& row, const Measured& m, double on_device, double on_cpu, Run& there,
               Run& here, double seconds) {
  std::vector<double> times[2];
  for (int side = 0; side < 2; ++side) {
    Run& run = side == 0 ? there : here;
    const auto begin = Clock::now();
    do {
      const auto start = Clock::now();
      (run.*m.call)();
      run.wait();
      times[side].push_back(
          std::chrono::duration<double, std::milli>(Clock::now() - start).count());
    } while (times[side].size() < 3 ||
             std::chrono::duration<double>(Clock::now() - begin).count() < seconds / 2);
    std::sort(times[side].begin(), times[side].end());
  }
  std::printf(
      "{\"what\": \"%s\", \"cell\": \"%s\", \"layers\": %lld, \"hidden_size\": %lld, \"batch\": "
      "%lld, \"seq_len\": %lld, \"device_ms\": [%.4f, %.4f], \"cpu_ms\": [%.4f, %.4f], "
      "\"device_result\": %.9g, \"cpu_result\": %.9g}\n",
      m.what, row.cell, static_cast<long long>(row.layers), static_cast<long long>(row.hidden_size),
      static_cast<long long>(row.batch), static_cast<long long>(row.seq_len), times[0].front(),
      times[0][times[0].size() / 2], times[1].front(), times[1][times[1].size() / 2], on_device,
      on_cpu);
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  const double seconds = argc > 1 ? std::atof(argv[1]) : 0;
  if (argc > 3 || !(seconds > 0) || (argc == 3 && std::strcmp(argv[2], "tiny") != 0)) {
    std::fputs("usage: time_device SECONDS [tiny]\n", stderr);
    return 2;
  }
  const std::vector<Row> rows =
      argc == 3 ? std::vector<Row>{{"lstm", 2, 8, 3, 4}, {"gru", 1, 8, 3, 4}}
                : std::vector<Row>{{"lstm", 2, 128, 50, 50},  {"lstm", 2, 512, 64, 128},
                                   {"lstm", 1, 1024, 64, 50}, {"gru", 2, 128, 50, 50},
                                   {"gru", 1, 1024, 64, 50},  {"rnn", 2, 128, 50, 50},
                                   {"lstm", 1, 128, 1, 128}};
  try {
    Device& device = cuda_device();
    for (const Row& row : rows) {
      Run there(row, device), here(row, cpu_device());
      double results[2][std::size(measured)];  // before the numbers of updates differ
      for (std::size_t i = 0; i < std::size(measured); ++i) {
        results[0][i] = (there.*measured[i].call)();
        results[1][i] = (here.*measured[i].call)();
      }
      for (std::size_t i = 0; i < std::size(measured); ++i)
        time_call(row, measured[i], results[0][i], results[1][i], there, here, seconds);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
