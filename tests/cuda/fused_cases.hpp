// What a device may do in one kernel where the CPU takes several: compared with the CPU, bit for
// bit, at sizes that are the kernels' own edges.
#pragma once

#include "device_cases.hpp"
#include "team.hpp"

namespace charrnn_fast {

// The same device without these kernels: what takes one launch takes several, as on the CPU.
class SeparateDevice final : public Device {
 public:
  explicit SeparateDevice(Device& whole)
      : Device("separate", false, &f32_.kernels, &f64_.kernels),
        whole_(whole),
        f32_(*whole.f32),
        f64_(*whole.f64) {}

  void* allocate(std::size_t bytes) override { return whole_.allocate(bytes); }
  void release(void* memory) override { whole_.release(memory); }
  void upload_bytes(const void* from, std::size_t bytes, void* to) override {
    whole_.upload_bytes(from, bytes, to);
  }
  void download_bytes(const void* from, std::size_t bytes, void* to) override {
    whole_.download_bytes(from, bytes, to);
  }
  void copy_bytes(const void* from, std::size_t bytes, void* to) override {
    whole_.copy_bytes(from, bytes, to);
  }
  void zero_bytes(void* to, std::size_t bytes) override { whole_.zero_bytes(to, bytes); }
  void synchronize() override { whole_.synchronize(); }
  int parts(double) const override { return 1; }
  int parts_before_wait(double) const override { return 1; }
  void run(int parts, TeamFunction f, void* context) override { whole_.run(parts, f, context); }

 private:
  template <class T>
  struct Table {
    explicit Table(const Kernels<T>& whole)
        : kernels(whole), cells(whole.cells, whole.cells + whole.num_cells) {
      for (CellKernels<T>& cell : cells) cell.sample = nullptr;
      kernels.cells = cells.data();
      kernels.head = nullptr;
      kernels.control = nullptr;
    }
    Kernels<T> kernels;
    std::vector<CellKernels<T>> cells;
  };
  Device& whole_;
  Table<float> f32_;
  Table<double> f64_;
};

// ---- the decoder with its loss --------------------------------------------------------------

struct HeadCase {
  Index outputs, hidden_size, rows;
  Bias bias = Bias::both;
  bool losses_only = false;
};
// Tiles of 64, 128 and 256 columns, and small and large ones of rows; several chains of the depth
// and of the vocabulary; several sums of dh (hidden_size above 512); more rows than one block of
// the loss; a vocabulary that the kernel does not take.
inline std::vector<HeadCase> head_cases() {
  return {{1, 5, 3},
          {65, 130, 20},
          {128, 33, 9, Bias::none},
          {129, 16, 8},
          {256, 300, 7},
          {256, 1000, 2},
          {7, 3, 2500},
          {90, 20, 30, Bias::single, true},
          {256, 2, 16400},
          {257, 8, 9}};
}

template <class T>
Results run_head(const HeadCase& c, Device& device) {
  const Network<T> network({"rnn", 4, c.hidden_size, c.outputs, 1, c.bias}, device);
  std::vector<AlignedBuffer<T>> buffers;
  const auto fill = [&](const std::vector<T>& values) {
    AlignedBuffer<T>& buffer = buffers.emplace_back(device);
    buffer.reserve(std::max<Index>(1, static_cast<Index>(values.size())));
    device.upload(values.data(), static_cast<Index>(values.size()), buffer.get());
    return buffer.get();
  };
  const Index elements = network.parameter_elements(), h_elements = c.rows * c.hidden_size;
  std::vector<T> flat(count(elements), T(0));
  for (const Parameter& p : network.parameters()) {
    const auto values = random_values<T>(p.elements(), static_cast<unsigned>(p.offset));
    std::copy(values.begin(), values.end(), flat.begin() + p.offset);
  }
  MirroredBuffer<Token> targets(device);
  targets.reserve(c.rows);
  const auto tokens = random_tokens(c.rows, c.outputs, 2, true);
  std::copy(tokens.begin(), tokens.end(), targets.get());
  targets.upload(c.rows);
  const T* const parameters = fill(flat);
  const T* const h = fill(random_values<T>(h_elements, 3));
  T* const losses = fill(std::vector<T>(count(c.rows)));
  T* const dh = c.losses_only ? nullptr : fill(std::vector<T>(count(h_elements)));
  T* const gradients = c.losses_only ? nullptr : fill(std::vector<T>(count(elements), T(0.5)));
  T* const workspace = fill(std::vector<T>(count(network.head_elements(c.rows, 1))));
  network.head(parameters, h, targets.there(), c.rows, T(0.25), losses, dh, gradients, 1,
               workspace);
  Results results;
  results.add(values_of(device, losses, c.rows));
  if (!c.losses_only) {
    results.add(values_of(device, dh, h_elements));
    results.add(values_of(device, gradients, elements));
  }
  return results;
}

// ---- texts --------------------------------------------------------------------------------

struct SampleCase {
  const char* cell;
  Index layers, hidden_size, vocab_size, batch;
  SamplingOptions options;
  bool zoneout = false;
  const char* nonlinearity = "tanh";
  Bias bias = Bias::both;
  bool damaged = false;  // after token 1, token 2's logit is infinite
};
// Every cell; one and several panels of units and tokens, and chains of the depth; as many streams
// as share blocks; weights that do not fit the kernel, and more layers than it takes.
inline std::vector<SampleCase> sample_cases() {
  return {{"lstm", 2, 33, 40, 3, {}},
          {"gru", 2, 140, 9, 2, {0.8, 4, 0.9}, false, "tanh", Bias::single},
          {"rnn", 3, 13, 70, 1, {0.7, 0, 0.8}, true},
          {"rnn", 1, 40, 33, 260, {1.2, 5, 1}, false, "relu", Bias::none},
          {"gru", 2, 5, 6, 257, {}, true},
          {"peephole_lstm", 1, 13, 9, 4, {0, 0, 1}, true},
          {"coupled_lstm", 2, 9, 12, 258, {1.5, 3, 0.9}},
          {"rnn", 1, 8, 7, 5, {}, false, "relu", Bias::both, true},
          {"rnn", 1, 6, 3, 261, {}, false, "relu", Bias::both, true},
          {"rnn", 1, 1100, 5, 1, {}},
          {"gru", 9, 4, 5, 2, {}},
          {"gru", 2, 5, 6, 3, {0.9, 4, 0.9}, true}};
}

template <class T>
Results run_sample(const SampleCase& c, Storage storage, Device& device) {
  NetworkShape shape{c.cell, c.vocab_size, c.hidden_size, c.vocab_size, c.layers, c.bias};
  shape.nonlinearity = c.nonlinearity;
  if (c.zoneout) shape.regularization.zoneout[0] = 0.2;
  Model<T> model(shape, device);
  const float most = 4 / std::sqrt(static_cast<float>(c.hidden_size));
  model.change_parameters([&](T* flat) {
    for (const Parameter& p : model.network().parameters()) {
      const auto values = random_values<T>(p.elements(), static_cast<unsigned>(p.offset));
      for (Index i = 0; i < p.elements(); ++i) flat[p.offset + i] = T(most) * values[count(i)];
      if (!c.damaged) continue;
      if (p.name == "weight_ih_l0") flat[p.offset + p.rows] = std::numeric_limits<T>::max();
      if (p.name == "decoder.weight") flat[p.offset + 2 * c.hidden_size] = 2;
    }
  });
  constexpr Index length = 5;
  std::vector<T> state = random_values<T>(model.state_elements(c.batch), 4);
  auto first = random_tokens(c.batch, c.damaged ? 1 : c.vocab_size, 5);
  if (c.damaged && c.batch < 100) first.back() = 1;  // few streams may never draw it
  std::vector<std::uint64_t> seeds;
  for (Index b = 0; b < c.batch; ++b) seeds.push_back(static_cast<std::uint64_t>(b) << 30 | 7);
  Results results;
  for (const Index steps : {length, Index(1), Index(0)}) {
    std::vector<Token> drawn(count(length * c.batch), -7);
    std::string error = "none";
    try {
      model.sample(steps, c.batch, first.data(), state.data(), seeds.data(), Index(1) << 33,
                   c.options, drawn.data(), storage);
    } catch (const std::invalid_argument& caught) {
      error = caught.what();
    }
    CHECK((error != "none") == c.damaged, "%s", error.c_str());
    results.add(error);
    if (c.damaged) break;  // the CPU's state has gone on to the error
    results.add(drawn), results.add(state);
  }
  return results;
}

// ---- updates ------------------------------------------------------------------------------

// With hidden_size 140, an array of several chunks of the sum of squares. Updates that are not
// finite in between: by a loss that the device has, and by one that the host has.
template <class T>
Results run_updates(Index hidden_size, Device& device) {
  constexpr Index steps = 2, B = 2, V = 6;
  Model<T> model({"rnn", V, hidden_size, V}, device);
  Optimizer<T> optimizer("adam", {}, model.network().parameter_elements(), device);
  const auto set = [&](double factor, T first) {
    model.change_parameters([&](T* flat) {
      for (const Parameter& p : model.network().parameters()) {
        const auto values = random_values<T>(p.elements(), static_cast<unsigned>(p.offset));
        for (Index i = 0; i < p.elements(); ++i)
          flat[p.offset + i] = static_cast<T>(factor) * values[count(i)];
        if (p.name == "decoder.bias") flat[p.offset] = first;
      }
    });
  };
  const auto tokens = random_tokens(steps * B, V, 1), targets = random_tokens(steps * B, V, 2);
  std::vector<T> state(count(model.state_elements(B)));
  const typename Model<T>::Batch in{steps, B, tokens.data(), nullptr};
  Results results;
  const auto train = [&](const TrainOptions& options) {
    const auto result = model.train_step(in, targets.data(), state.data(), optimizer, options);
    results.add(result.finite() ? 1 : 0);
    if (result.finite()) results.add(result.loss), results.add(result.gradient_norm);
    results.add(optimizer.num_steps()), results.add(model.version()), results.add(state);
    for (Index i = 0; i < 2; ++i)
      results.add(values_of(device, optimizer.slot(i), optimizer.elements()));
  };
  for (int round = 0; round < 2; ++round) {
    set(0.1, T(0));
    train({0.01, 0.5});
    train({0.02, 1e6, 1e-3});
    set(0.1, std::numeric_limits<T>::infinity());
    train({0.01});
    set(0.1, T(0));
    model.accumulate(in, targets.data(), state.data(), state.data());
    model.set_accumulated({round ? 3.0 : std::numeric_limits<double>::quiet_NaN(), 4});
    const auto result = model.update(optimizer, TrainOptions{0.01, 0.1});
    results.add(result.finite() ? 1 : 0);
    results.add(result.gradient_norm), results.add(optimizer.num_steps());
    for (const Parameter& p : model.network().parameters())
      results.add(values_of(device, model.parameters() + p.offset, p.elements()));
  }
  return results;
}

// ---- losses -------------------------------------------------------------------------------

// More rows than the sum of the losses fetches at a time.
template <class T>
Results run_losses(bool ragged, Device& device) {
  constexpr Index steps = 5, B = 70, V = 6;
  Model<T> model({"rnn", V, 3, V}, device);
  const auto tokens = random_tokens(steps * B, V, 1), targets = random_tokens(steps * B, V, 2);
  std::vector<Index> lengths;
  for (Index b = 0; b < B; ++b) lengths.push_back(b * 7 % (steps + 1));
  typename Model<T>::Batch in{steps, B, tokens.data(), nullptr};
  if (ragged) in.lengths = lengths.data();
  model.change_parameters([&](T* flat) {
    const auto values = random_values<T>(model.network().parameter_elements(), 3);
    for (const Parameter& p : model.network().parameters())
      std::copy_n(values.begin() + p.offset, p.elements(), flat + p.offset);
  });
  std::vector<T> state(count(model.state_elements(B)));
  std::vector<double> of_streams(count(B));
  Results results;
  results.add(model.evaluate(in, targets.data(), state.data(), of_streams.data()).loss_sum);
  results.add(of_streams), results.add(state);
  return results;
}

// What `launches` counts, a number that grows, in a training step, an update of accumulated
// gradients, an evaluation and a text of a model.
struct Launches {
  std::uint64_t train, update, evaluate, sample;
};
template <class Count>
Launches launches_of(Device& device, const Count& launches) {
  constexpr Index steps = 4, B = 3, V = 65;
  Model<float> model({"lstm", V, 8, V, 2}, device);
  Optimizer<float> optimizer("adam", {}, model.network().parameter_elements(), device);
  const auto tokens = random_tokens(steps * B, V, 1), targets = random_tokens(steps * B, V, 2);
  std::vector<float> state(count(model.state_elements(B)));
  const Model<float>::Batch in{steps, B, tokens.data(), nullptr};
  const auto counted = [&](const auto& call) {
    call();  // what only a first call does
    const std::uint64_t before = launches();
    call();
    return launches() - before;
  };
  Launches all{};
  all.train = counted([&] {
    model.train_step(in, targets.data(), state.data(), optimizer, TrainOptions{0.01, 1.0});
  });
  model.accumulate(in, targets.data(), state.data(), state.data());
  const std::uint64_t before = launches();
  model.update(optimizer, TrainOptions{0.01, 1.0});
  all.update = launches() - before;
  all.evaluate = counted([&] { model.evaluate(in, targets.data(), state.data(), nullptr); });
  all.sample = counted([&] {
    const std::vector<std::uint64_t> seeds(count(B), 1);
    std::vector<Token> drawn(count(steps * B));
    model.sample(steps, B, tokens.data(), state.data(), seeds.data(), 0, {}, drawn.data());
  });
  return all;
}

// Every `every`-th case, from number `first`.
template <class T>
void check_fused(Device& device, int every = 1, int first = 0) {
  const int bytes = sizeof(T);
  int number = 0;
  for (const HeadCase& c : head_cases())
    if (number++ % every == first && c.rows * bytes < 100000)  // the most rows in float alone
      CHECK(run_head<T>(c, cpu_device()) == run_head<T>(c, device),
            "head of %d outputs, hidden_size %d, %d rows, %d bytes", static_cast<int>(c.outputs),
            static_cast<int>(c.hidden_size), static_cast<int>(c.rows), bytes);
  for (const SampleCase& c : sample_cases())
    for (const Storage storage : {Storage::full, Storage::bfloat16})
      if ((bytes == 4 || storage == Storage::full) && number++ % every == first)
        CHECK(run_sample<T>(c, storage, cpu_device()) == run_sample<T>(c, storage, device),
              "text of %s, hidden_size %d, %d tokens, %d streams, %d bytes, storage %d", c.cell,
              static_cast<int>(c.hidden_size), static_cast<int>(c.vocab_size),
              static_cast<int>(c.batch), bytes, static_cast<int>(storage));
  number = 1;
  for (const bool ragged : {false, true})
    if (number++ % every == first)
      CHECK(run_losses<T>(ragged, cpu_device()) == run_losses<T>(ragged, device),
            "losses, %s, %d bytes", ragged ? "ragged" : "equal lengths", bytes);
  number = 7;  // beside small cases: the thread sanitizer takes few threads
  for (const Index hidden_size : {5, 140})
    if (number++ % every == first)
      CHECK(run_updates<T>(hidden_size, cpu_device()) == run_updates<T>(hidden_size, device),
            "updates, hidden_size %d, %d bytes", static_cast<int>(hidden_size), bytes);
}

}  // namespace charrnn_fast
