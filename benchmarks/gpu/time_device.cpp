// Times what a device does beside the CPU, both through Model: training steps and evaluations of
// character models, and texts. One JSON line a row, with the losses of the two. Training and
// evaluation also with each tier that the layers can take (cuda.hpp), "tier" is null where every
// layer takes its own; and with rounded operands, "compute", beside the CPU's float32.
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
#include "charrnn_fast/registry.hpp"

namespace {

using namespace charrnn_fast;
using Clock = std::chrono::steady_clock;

constexpr Index vocab_size = 65;

struct Row {
  const char* cell;
  Index layers, hidden_size, batch, seq_len;
  Compute compute = Compute::float32;
};

// A model with the tokens of its batches, on one device.
class Run {
 public:
  Run(const Row& row, Device& device)
      : row_(row),
        device_(device),
        model_(shape(row), device),
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

  static NetworkShape shape(const Row& row) {
    NetworkShape shape{row.cell, vocab_size, row.hidden_size, vocab_size, row.layers};
    shape.compute = row.compute;
    return shape;
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
struct Times {
  double least, median;
};
Times time_calls(const Measured& m, Run& run, double seconds) {
  std::vector<double> times;
  const auto begin = Clock::now();
  do {
    const auto start = Clock::now();
    (run.*m.call)();
    run.wait();
    times.push_back(std::chrono::duration<double, std::milli>(Clock::now() - start).count());
  } while (times.size() < 3 ||
           std::chrono::duration<double>(Clock::now() - begin).count() < seconds);
  std::sort(times.begin(), times.end());
  return {times.front(), times[times.size() / 2]};
}

struct Done {
  double results[std::size(measured)];
  Times times[std::size(measured)];
};
// The first results, before the numbers of updates differ; then the times of the first `calls`.
Done run_all(const Row& row, Device& device, double seconds, std::size_t calls) {
  Run run(row, device);
  Done done;
  for (std::size_t i = 0; i < std::size(measured); ++i) done.results[i] = (run.*measured[i].call)();
  for (std::size_t i = 0; i < calls; ++i) done.times[i] = time_calls(measured[i], run, seconds);
  return done;
}

void print(const Row& row, const char* tier, const Measured& m, Times there, Times here,
           double on_device, double on_cpu) {
  std::printf(
      "{\"what\": \"%s\", \"cell\": \"%s\", \"layers\": %lld, \"hidden_size\": %lld, \"batch\": "
      "%lld, \"seq_len\": %lld, \"compute\": \"%s\", \"tier\": %s%s%s, \"device_ms\": [%.4f, "
      "%.4f], \"cpu_ms\": [%.4f, "
      "%.4f], \"device_result\": %.9g, \"cpu_result\": %.9g}\n",
      m.what, row.cell, static_cast<long long>(row.layers), static_cast<long long>(row.hidden_size),
      static_cast<long long>(row.batch), static_cast<long long>(row.seq_len), name_of(row.compute),
      tier ? "\"" : "", tier ? tier : "null", tier ? "\"" : "", there.least, there.median,
      here.least, here.median, on_device, on_cpu);
  std::fflush(stdout);
}

// Whether all layers can take the tier, which they do then.
bool takes(const Row& row, const char* tier) {
  set_cuda_tier(tier);
  try {
    (void)cuda_plan(Run::shape(row), row.batch, row.seq_len);
    return true;
  } catch (const std::invalid_argument&) {
    return false;
  }
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
      const Done cpu = run_all(row, cpu_device(), seconds / 2, std::size(measured));
      for (const char* tier : {static_cast<const char*>(nullptr), "T1", "T2", "T3", "T4"}) {
        if (!takes(row, tier)) continue;
        const std::size_t calls = tier ? 2 : std::size(measured);  // a text is single steps
        const Done done = run_all(row, device, seconds / 2, calls);
        for (std::size_t i = 0; i < calls; ++i)
          print(row, tier, measured[i], done.times[i], cpu.times[i], done.results[i],
                cpu.results[i]);
      }
      set_cuda_tier(nullptr);
      for (const Compute compute : {Compute::tf32, Compute::bfloat16}) {
        Row rounded = row;
        rounded.compute = compute;
        const Done done = run_all(rounded, device, seconds / 2, std::size(measured));
        for (std::size_t i = 0; i < std::size(measured); ++i)
          print(rounded, nullptr, measured[i], done.times[i], cpu.times[i], done.results[i],
                cpu.results[i]);
      }
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
